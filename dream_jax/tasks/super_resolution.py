"""Super-resolution: enlarging pictures."""

import jax.numpy as jnp

from dream_jax.errors import UserError
from dream_jax.tasks import resize, value_range
from dream_jax.tasks.task import Task, clip

NEEDS_LOW = (
    "pictures as large as their originals are not made here but must be there, as the low-resolution ones: "
    "data.lr_folder, data.lr_key, or --low"
)


def super_resolution(
    scale: int, kernel: str = "pil_bicubic", residual: bool = False, gain: float = 1.0, channels: int = 3
) -> Task:
    """Enlarging by a whole factor, from a low-resolution picture made with a named kernel, or from one that is there.

    cond is the low-resolution picture enlarged with the same kernel (SR3, Saharia et al. 2021, section 2).

    Args:
      scale: the factor; picture sides must divide by it. At 1 there are only pictures that are there.
      kernel: one of `resize.KERNELS`, rounding to grey levels as files on disk do.
      residual: x0 is `gain * (picture - cond)` instead of the picture: an x0 of 0 is the enlarged picture itself.
      gain: brings the residual near the unit variance that noise schedules assume.
      channels: of pictures.
    """
    if scale < 1:
        raise UserError(f"task.scale = {scale}: it must be a whole number of at least 1")

    def observe(keys, picture):
        del keys
        if scale == 1:
            raise UserError(f"task.scale = 1: {NEEDS_LOW}")
        return resize.resize(picture, picture.shape[-3] // scale, picture.shape[-2] // scale, kernel)

    def condition(low):
        return value_range.to_float(resize.resize(low, low.shape[-3] * scale, low.shape[-2] * scale, kernel))

    def encode(picture, cond):
        return gain * (picture - cond) if residual else picture

    def to_picture(x0, cond):
        return clip(x0 / gain + cond if residual else x0)

    def constrain(x0, cond, limit=clip):
        return gain * (limit(x0 / gain + cond) - cond) if residual else limit(x0)

    def consistency(result, low):
        return _mean_square(observe(None, result), jnp.asarray(low))

    def project(picture, low):
        return resize.project(picture, value_range.to_float(low, picture.dtype), kernel)

    baseline_name = "low resolution" if scale == 1 else kernel.removeprefix("pil_")
    return Task(
        observe,
        condition,
        encode,
        to_picture,
        constrain,
        baseline=condition,
        baseline_name=baseline_name,
        consistency=consistency if scale > 1 else None,
        project=project if scale > 1 else None,
        columns=lambda low, enlarged: {"low resolution": low, baseline_name: enlarged},
        scale=scale,
        channels=channels,
        cond_channels=channels,
        divisor=scale,
        takes_low=True,
    )


def _mean_square(a, b):
    """Of the difference of levels of one type [B, H, W, C], as values in [0, 1]: [B]."""
    difference = a.astype(jnp.float32) - b.astype(jnp.float32)
    # One axis at a time: a single float32 sum over a large picture would lose digits.
    return jnp.square(difference).mean(2).mean(1).mean(1) / float(value_range.white(a.dtype)) ** 2
