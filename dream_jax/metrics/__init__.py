"""Measures of pictures, as pure functions of arrays."""

from dream_jax.metrics.distributions import (
    frechet_distance,
    inception_score,
    kernel_distance,
    sliced_wasserstein,
    sliced_wasserstein_levels,
)
from dream_jax.metrics.features import inception, inception_features
from dream_jax.metrics.perceptual import lpips, lpips_diversity
from dream_jax.metrics.pixels import consistency, mean_colour_error, mean_squared_error, psnr, ssim

__all__ = [
    "consistency",
    "frechet_distance",
    "inception",
    "inception_features",
    "inception_score",
    "kernel_distance",
    "lpips",
    "lpips_diversity",
    "mean_colour_error",
    "mean_squared_error",
    "psnr",
    "sliced_wasserstein",
    "sliced_wasserstein_levels",
    "ssim",
]
