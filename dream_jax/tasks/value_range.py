"""The two ranges of pictures' values: grey levels 0..255 on disk, and [-1, 1] inside."""

import jax.numpy as jnp


def to_float(picture, dtype=jnp.float32):
    """Grey levels 0..255 to [-1, 1]: `x / 127.5 - 1`; any shape."""
    return jnp.asarray(picture).astype(dtype) / 127.5 - 1


def to_uint8(picture):
    """[-1, 1] to grey levels, rounded half up and clipped to 0..255; any shape, inverse of `to_float`."""
    picture = jnp.asarray(picture)
    levels = (picture.astype(jnp.promote_types(picture.dtype, jnp.float32)) + 1) * 127.5
    return jnp.clip(jnp.floor(levels + 0.5), 0, 255).astype(jnp.uint8)
