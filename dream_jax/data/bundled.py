"""The photographs inside scikit-image: nothing has to be downloaded for them."""

import functools
import importlib.util
from pathlib import Path

from dream_jax.data.indexed import Source
from dream_jax.errors import UserError
from dream_jax.files import images
from dream_jax.files.picture import USUAL, Reading, as_wanted

# Photographs inside the scikit-image package. The two motorcycles are a stereo pair, so they must stay on one side.
BUNDLED = {
    "train": (
        *("astronaut.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg", "hubble_deep_field.jpg"),
        *("brick.png", "camera.png", "coins.png", "grass.png", "gravel.png", "moon.png"),
    ),
    "eval": ("chelsea.png", "coffee.png"),
}


@functools.cache
def _decoded(folder, split):
    # Once a process: decoding them takes longer than starting to train on them.
    return [images.read(folder / name) for name in BUNDLED[split]]


def photographs(split: str, reading: Reading = USUAL) -> Source:
    """Photographs that come with scikit-image: eleven to train on, 20 times each, and two others to evaluate on."""
    if split not in BUNDLED:
        raise UserError(f"the bundled photographs have the splits {', '.join(BUNDLED)}, not {split!r}")
    if reading.channels not in (1, 3):
        raise UserError(
            f"data.channels = {reading.channels}: the bundled photographs have three, or one as grey; name others with "
            "data.folder"
        )
    package = importlib.util.find_spec("skimage")
    if package is None:
        raise UserError("the bundled photographs are part of scikit-image: pip install scikit-image")
    folder = Path(package.submodule_search_locations[0]) / "data"
    pictures = _decoded(folder, split)
    # A draw from a shuffled list of five takes grain 6 ms, and correspondingly less from a longer one.
    copies = 20 if split == "train" else 1
    return Source(lambda i: as_wanted(pictures[i], reading), len(pictures), copies, BUNDLED[split].__getitem__)
