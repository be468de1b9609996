"""Noise on grey levels."""

import jax
import jax.numpy as jnp

from dream_jax.tasks import value_range


def normal(key, picture):
    """Gaussian noise of deviation 1, independent of each level of a picture [H, W, C]."""
    return jax.random.normal(key, picture.shape, jnp.float32)


def add(picture, noise, deviation):
    """Levels with noise of a deviation, in levels of 255 whatever white is; whole levels of the same type again."""
    levels = deviation * (value_range.white(picture.dtype) / 255) * noise
    return value_range.to_whole(picture.astype(jnp.float32) + levels, picture.dtype)
