"""Measures of pictures, as pure functions of arrays."""

from dream_jax.metrics.distributions import (
    frechet_distance,
    inception_score,
    kernel_distance,
    sliced_wasserstein,
    sliced_wasserstein_levels,
)
from dream_jax.metrics.pixels import consistency, mean_colour_error, mean_squared_error, psnr, ssim

__all__ = [
    "consistency",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "mean_colour_error",
    "mean_squared_error",
    "psnr",
    "sliced_wasserstein",
    "sliced_wasserstein_levels",
    "ssim",
]
