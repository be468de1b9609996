"""Colours for maps that are no pictures: of depth, and of classes."""

import functools

import numpy as np

from dream_jax.files.numbers import of_bits


def of_depth(levels: np.ndarray) -> np.ndarray:
    """Levels uint8 or uint16 [..., 1] as uint8 [..., 3]: viridis, dark blue is black, yellow is white."""
    return _viridis()[of_bits(np.ascontiguousarray(levels[..., 0]), 8)]


def of_classes(levels: np.ndarray) -> np.ndarray:
    """Numbers of classes uint8 or uint16 [..., 1] as uint8 [..., 3]: each its own colour, void white."""
    numbers = levels[..., 0].astype(np.int64)
    # Steps of the golden section keep hues of neighbouring numbers far apart, however many there are.
    hue, shade = numbers * 0.618034 % 1, 1 - 0.25 * (numbers // 8 % 3)
    ramp = np.abs((6 * hue[..., None] + np.array([0, 4, 2])) % 6 - 3) - 1
    colours = (255 * shade[..., None] * (0.2 + 0.8 * np.clip(ramp, 0, 1))).astype(np.uint8)
    return np.where(levels == np.iinfo(levels.dtype).max, np.uint8(255), colours)


@functools.cache
def _viridis():
    # Here, as no start of training or drawing should wait for this import.
    from matplotlib import colormaps

    return (255 * colormaps["viridis"](np.arange(256))[:, :3] + 0.5).astype(np.uint8)
