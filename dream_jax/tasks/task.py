"""The record of a task: the functions and sizes that every task has."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dream_jax.tasks import value_range


def clip(picture):
    """The picture within [-1, 1]."""
    return jnp.clip(picture, -1, 1)


class Task(NamedTuple):
    """Pictures -> (x0, cond), and back. Pictures are float [B, H, W, C] in [-1, 1] where nothing else is said.

    Attributes:
      observe: `(keys [B], pictures uint8) -> observed` [B, h, w, .]: what is known of pictures, in whole grey levels
        0..255 as files hold them. Each picture's key draws what is random about it.
      condition: `observed -> cond` float [B, H, W, cond_channels]: what the network is given; it is never noised.
      encode: `(picture, cond) -> x0`: what the diffusion model models.
      to_picture: `(x0, cond) -> picture`.
      constrain: `(x0, cond, limit=clip) -> x0` whose picture is `limit(picture)`.
      baseline: `observed -> picture` that results are compared with; None where a result has no original.
      baseline_name: what that is called in tables and pictures.
      consistency: `(result, observed) -> [B]`, how far a result, in grey levels, is from what was observed of its
        original: mean squared, of values in [0, 1]. None where nothing was observed.
      project: `(picture, observed) -> picture` nearest to it of which the same is observed, but for rounding; observed
        here are grey levels. None where there is none.
      columns: `(observed, baseline) -> {label: pictures}`, uint8: the first columns of a picture grid.
      scale: how many times larger a picture is than what was observed of it.
      channels, cond_channels: of pictures and of cond.
      takes_low: whether what is observed may also be a picture that is there, `scale` times smaller, of any making.
      divisor: what the sides of pictures must divide by.
    """

    observe: Callable
    condition: Callable
    encode: Callable
    to_picture: Callable
    constrain: Callable
    baseline: Callable | None = None
    baseline_name: str = ""
    consistency: Callable | None = None
    project: Callable | None = None
    columns: Callable = lambda observed, baseline: {}
    scale: int = 1
    channels: int = 3
    cond_channels: int = 0
    divisor: int = 1
    takes_low: bool = False

    @property
    def paired(self) -> bool:
        """Whether a result has an original that it can be compared with."""
        return self.baseline is not None

    def make_pair(self, keys, picture, low=None):
        """`(keys [B], pictures [B, H, W, C]) -> (x0, cond)`, of levels; low [B, h, w, C] is what was observed."""
        cond = self.condition(self.observe(keys, _as_floats(picture)) if low is None else _as_floats(low))
        return self.encode(value_range.to_float(picture), cond), cond


def _as_floats(levels):
    """Whole levels 0..255 in floats, which are what is computed with: no rounding back in between."""
    levels = jnp.asarray(levels)
    return levels.astype(jnp.float32) if levels.dtype == jnp.uint8 else levels
