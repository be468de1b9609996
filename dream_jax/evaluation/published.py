"""What the DREAM paper reports in settings that a person may repeat (arXiv 2312.00210v2, Table 1)."""

from typing import NamedTuple

from ml_collections import FrozenConfigDict

from dream_jax.config import keys

# In the order of the figures below. The paper does not say which network its LPIPS has.
METRICS = ("PSNR, dB", "SSIM", "LPIPS", "FID")


class Setting(NamedTuple):
    """A setting of the paper.

    Attributes:
      title: what was trained and measured, and where the figures are printed.
      image_size, scale: of the config that repeats it, whose network is sr3 and predicts eps.
      figures: {p: figures of METRICS}; p = None is the standard objective.
    """

    title: str
    image_size: int
    scale: int
    figures: dict[float | None, tuple[float, ...]]


SETTINGS = (
    Setting(
        "SR3, faces 16 to 128 pixels, trained on FFHQ, 100 pictures of CelebA-HQ (Table 1)",
        image_size=128,
        scale=8,
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
        image_size=160,
        scale=4,
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
    task, sr3 = config.task, config.network.name == "sr3" and config.objective.kind == "eps"
    for setting in SETTINGS:
        same = (config.image_size, task.scale) == (setting.image_size, setting.scale)
        if sr3 and task.name == "super_resolution" and not task.residual and same:
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
