"""The two ranges of pictures' values: grey levels on disk, 0..255 or 0..65535, and [-1, 1] inside."""

import jax.numpy as jnp


def white(dtype) -> int:
    """The level that means white: 65535 of uint16, 255 of all others, floats among them."""
    return 65535 if jnp.dtype(dtype) == jnp.uint16 else 255


def to_float(picture, dtype=jnp.float32):
    """Grey levels to [-1, 1]: `x / 127.5 - 1`, of uint16 `x / 32767.5 - 1`; any shape."""
    picture = jnp.asarray(picture)
    return picture.astype(dtype) / (white(picture.dtype) / 2) - 1


def to_levels(picture, dtype=jnp.uint8):
    """[-1, 1] to grey levels uint8 or uint16, rounded half up and clipped; any shape, inverse of `to_float`."""
    picture, top = jnp.asarray(picture), white(dtype)
    levels = (picture.astype(jnp.promote_types(picture.dtype, jnp.float32)) + 1) * (top / 2)
    return jnp.clip(jnp.floor(levels + 0.5), 0, top).astype(dtype)


def to_uint8(picture):
    """`to_levels` of 8 bits."""
    return to_levels(picture)


def to_whole(values, dtype):
    """Grey levels with fractions to those that a file holds: rounded half up and clipped; uint8, uint16 or a float."""
    return jnp.clip(jnp.floor(values + 0.5), 0, white(dtype)).astype(dtype)
