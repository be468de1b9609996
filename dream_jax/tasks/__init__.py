"""What is trained: pictures -> (x0, cond), and back. The only place that degrades pictures."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dream_jax.errors import UserError
from dream_jax.tasks import resize, value_range


class Task(NamedTuple):
    """A task is six plain functions and two numbers.

    Attributes:
      make_pair: `(key, hr uint8 [B, H, W, C]) -> (x0, cond)`: what the diffusion model models, and what it is given
        (never noised); both float [B, H, W, .].
      to_picture: `(x0, cond) -> picture` float in [-1, 1].
      constrain: `(x0, cond, limit=clip) -> x0` whose picture is `limit(picture)`; clip, the default, is to [-1, 1].
      degrade: `hr -> low-resolution picture`, whole grey levels 0..255; None where there is none.
      project: `(picture, low-resolution picture, grey levels 0..255) -> picture` nearest to it that degrades to the
        latter (but for rounding); both pictures [B, H, W, C]. None where there is none.
      condition: `low-resolution picture, grey levels 0..255 -> cond`; None where there is none.
      scale: how much larger the picture is than the low-resolution one.
      cond_channels: channels of cond for pictures of three.
    """

    make_pair: Callable
    to_picture: Callable
    constrain: Callable
    degrade: Callable | None = None
    project: Callable | None = None
    condition: Callable | None = None
    scale: int = 1
    cond_channels: int = 0


def super_resolution(scale: int, kernel: str = "pil_bicubic", residual: bool = False, gain: float = 1.0) -> Task:
    """Enlarging by a whole factor, from a low-resolution picture made with a named kernel.

    cond is the low-resolution picture enlarged with the same kernel (SR3, Saharia et al. 2021, section 2).

    Args:
      scale: the factor; picture sides must divide by it.
      kernel: one of `resize.KERNELS`, rounding to grey levels as files on disk do.
      residual: x0 is `gain * (picture - cond)` instead of the picture: an x0 of 0 is the enlarged picture itself.
      gain: brings the residual near the unit variance that noise schedules assume.
    """
    if scale < 2:
        raise UserError(f"task.scale = {scale}: it must be a whole number of at least 2")

    def degrade(hr):
        return resize.resize(hr, hr.shape[-3] // scale, hr.shape[-2] // scale, kernel)

    def condition(low):
        return value_range.to_float(resize.resize(low, low.shape[-3] * scale, low.shape[-2] * scale, kernel))

    def make_pair(key, hr):
        del key
        cond = condition(degrade(hr))
        picture = value_range.to_float(hr)
        return (gain * (picture - cond) if residual else picture), cond

    def project(picture, low):
        return resize.project(picture, value_range.to_float(low, picture.dtype), kernel)

    def to_picture(x0, cond):
        return _clip(x0 / gain + cond if residual else x0)

    def constrain(x0, cond, limit=_clip):
        return gain * (limit(x0 / gain + cond) - cond) if residual else limit(x0)

    return Task(make_pair, to_picture, constrain, degrade, project, condition, scale, cond_channels=3)


def unconditional() -> Task:
    """Generation: x0 is the picture, and cond has no channels."""

    def make_pair(key, hr):
        del key
        picture = value_range.to_float(hr)
        return picture, picture[..., :0]

    return Task(
        make_pair,
        to_picture=lambda x0, cond: _clip(x0),
        constrain=lambda x0, cond, limit=_clip: limit(x0),
    )


def _clip(picture):
    return jnp.clip(picture, -1, 1)
