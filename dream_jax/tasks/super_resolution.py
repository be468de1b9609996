"""Super-resolution: enlarging pictures."""

import jax.numpy as jnp

from dream_jax.errors import UserError
from dream_jax.tasks import resize, value_range
from dream_jax.tasks.task import Task, mean_square, restoration

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

    def condition(low, sides=None):
        height, width = sides or (low.shape[-3] * scale, low.shape[-2] * scale)
        return value_range.to_float(resize.resize(low, height, width, kernel))

    def consistency(result, low):
        return mean_square(observe(None, result), jnp.asarray(low))

    def project(picture, low):
        return resize.project(picture, value_range.to_float(low, picture.dtype), kernel)

    baseline_name = "low resolution" if scale == 1 else kernel.removeprefix("pil_")
    return restoration(
        observe,
        condition,
        residual=residual,
        gain=gain,
        reference=lambda cond: cond,
        baseline=condition,
        baseline_name=baseline_name,
        consistency=consistency if scale > 1 else None,
        project=project if scale > 1 else None,
        columns=lambda low, enlarged: {"low resolution": low, baseline_name: enlarged},
        beside="low",
        needs_beside=scale == 1,
        scale=scale,
        divisor=scale,
        channels=channels,
        cond_channels=channels,
    )
