"""Pictures for tests: the photographs inside scikit-image, and noise."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

# Found, not imported: the package takes longer to import than a test to run.
PHOTOS = Path(importlib.util.find_spec("skimage").submodule_search_locations[0]) / "data"


def noise(*shape):
    """Grey levels uint8 of a shape, always the same."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def bicubic(picture, scale=2):
    """Levels uint8 enlarged by Pillow."""
    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(picture).resize((scale * width, scale * height), Image.Resampling.BICUBIC))
