"""What the DREAM paper reports in settings that a person may repeat (arXiv 2312.00210v2, Table 1)."""

from typing import NamedTuple

from ml_collections import FrozenConfigDict

from dream_jax.config import command_line, keys

# In the order of the figures below. The paper does not say which network its LPIPS has.
METRICS = ("PSNR, dB", "SSIM", "LPIPS", "FID")
# What makes up a setting of the paper.
_THE_PAPERS = (
    "task.",
    "schedule.",
    "network.",
    "image_size",
    "evaluation.whole",
    "evaluation.tile",
    "evaluation.overlap",
)


class Setting(NamedTuple):
    """A setting of the paper.

    Attributes:
      title: what was trained and measured, and where the figures are printed.
      recipe: the config that repeats it.
      figures: {p: figures of METRICS}; p = None is the standard objective.
    """

    title: str
    recipe: str
    figures: dict[float | None, tuple[float, ...]]


SETTINGS = (
    Setting(
        "SR3, faces 16 to 128 pixels, trained on FFHQ, 100 pictures of CelebA-HQ (Table 1)",
        recipe="sr3_faces_16_128",
        figures={
            None: (23.85, 0.71, 0.184, 61.98),
            0.0: (25.04, 0.76, 0.204, 77.51),
            1.0: (24.63, 0.74, 0.177, 56.01),
            2.0: (24.62, 0.74, 0.180, 61.72),
            3.0: (24.15, 0.71, 0.182, 58.89),
        },
    ),
    Setting(
        "SR3, 4x, trained on DIV2K and Flickr2K, 100 pictures of DIV2K (Table 1)",
        recipe="sr3_div2k_4x",
        figures={
            None: (27.02, 0.76, 0.121, 16.72),
            0.0: (28.67, 0.81, 0.189, 16.72),
            1.0: (28.10, 0.79, 0.121, 14.32),
            2.0: (28.06, 0.79, 0.140, 15.54),
            3.0: (27.88, 0.79, 0.123, 14.83),
        },
    ),
)


def setting_of(config: FrozenConfigDict) -> Setting | None:
    """The setting of the paper that a config repeats, as far as a config can say; None for all others."""
    given = keys.flatten(config)
    for setting in SETTINGS:
        recipe = keys.flatten(command_line.load(setting.recipe))
        same = [given[key] == value for key, value in recipe.items() if key.startswith(_THE_PAPERS)]
        if all(same) and given["objective.kind"] == recipe["objective.kind"]:
            return setting
    return None


def figures_of(setting: Setting, settings) -> tuple[float, ...] | None:
    """The paper's figures for an objective, `config.objective`; None for those that the paper does not have."""
    if settings.name == "standard":
        return setting.figures[None]
    defaults = keys.defaults().objective
    changed = {key for key, value in settings.items() if value != defaults[key]}
    # Its DREAM is the default one but for p.
    return setting.figures.get(settings.p) if changed <= {"p"} else None
