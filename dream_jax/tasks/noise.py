"""Noise on grey levels."""

import jax
import jax.numpy as jnp

from dream_jax.tasks import value_range


def add(key, picture, deviation):
    """Gaussian noise, independent of each level of a picture [H, W, C], and whole levels of the same type again.

    deviation is in levels of 255, whatever white is.
    """
    normal = jax.random.normal(key, picture.shape, jnp.float32)
    levels = deviation * (value_range.white(picture.dtype) / 255) * normal
    return value_range.to_whole(picture.astype(jnp.float32) + levels, picture.dtype)
