"""Colourisation: colours for a luminance that is known."""

import jax.numpy as jnp

from dream_jax.errors import UserError
from dream_jax.tasks import value_range
from dream_jax.tasks.task import Task, as_observed, mean_square, restoration

# ITU-R BT.601, in 65536ths, as Pillow's `convert("L")`.
LUMA = 19595, 38470, 7471


def colourisation(residual: bool = False, gain: float = 1.0, channels: int = 3) -> Task:
    """Colours from the luminance of BT.601, which the result has again: the same levels of 8 bits, and of 16
    within one.

    cond is the luminance. With `residual`, x0 is `gain` times what the colours differ by from its grey.
    """
    if channels != 3:
        raise UserError(f"data.channels = {channels}: colourisation is of three colours")

    def grey(cond):
        return jnp.broadcast_to(cond, (*cond.shape[:-1], 3))

    def given(picture, mask=None):
        return luminance(picture) if picture.shape[-1] == 3 else jnp.asarray(picture)

    return restoration(
        lambda keys, picture: luminance(picture),
        as_observed,
        residual=residual,
        gain=gain,
        reference=grey,
        keep=with_luminance,
        baseline=lambda observed, sides=None: grey(as_observed(observed)),
        baseline_name="grey",
        consistency=lambda result, observed: mean_square(luminance(result), jnp.asarray(observed)),
        project=lambda picture, observed: with_luminance(picture, value_range.to_float(observed, picture.dtype)),
        columns=lambda observed, baseline: {"grey": baseline},
        given=given,
        observed_channels=1,
        cond_channels=1,
    )


def luminance(picture):
    """Levels [..., 3] to levels [..., 1] of the same type, as Pillow's `convert("L")`."""
    picture = jnp.asarray(picture)
    red, green, blue = (picture[..., i : i + 1].astype(jnp.uint32) * weight for i, weight in enumerate(LUMA))
    return ((red + green + blue + 0x8000) >> 16).astype(picture.dtype)


def with_luminance(picture, target):
    """The colours [..., 3] of a picture, moved along grey to a luminance [..., 1]; all in [-1, 1].

    Where that leaves the range, they are mixed with grey until they are inside, which keeps the luminance.
    """
    own = sum(picture[..., i : i + 1] * (weight / 65536) for i, weight in enumerate(LUMA))
    colour, target = picture - own, target.astype(picture.dtype)
    room = jnp.where(colour > 0, 1 - target, 1 + target)
    share = jnp.min(room / jnp.maximum(jnp.abs(colour), 1e-6), -1, keepdims=True)
    return target + jnp.minimum(share, 1) * colour
