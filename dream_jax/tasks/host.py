"""Levels on the host, where classical methods work."""

import numpy as np

from dream_jax.tasks import value_range


def to_unit(levels) -> np.ndarray:
    """Grey levels to float64 in [0, 1]."""
    return np.asarray(levels, np.float64) / value_range.white(levels.dtype)


def to_levels(picture, dtype) -> np.ndarray:
    """[0, 1] to grey levels, rounded half up and clipped."""
    top = value_range.white(dtype)
    return np.clip(np.floor(picture * top + 0.5), 0, top).astype(dtype)
