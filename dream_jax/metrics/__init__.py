"""Measures of pictures, as functions of arrays, and the table of those that evaluations report."""

from dream_jax.metrics.compared import Compared, PictureSet, each, in_batches, picture_set
from dream_jax.metrics.distributions import (
    frechet_distance,
    inception_score,
    kernel_distance,
    sliced_wasserstein,
    sliced_wasserstein_levels,
)
from dream_jax.metrics.family import METRICS, PROTOCOLS, Metric, chosen, first_that_measures
from dream_jax.metrics.features import inception, inception_features
from dream_jax.metrics.perceptual import lpips, lpips_diversity
from dream_jax.metrics.pixels import mean_colour_error, mean_squared_error, psnr, ssim

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "Compared",
    "Metric",
    "PictureSet",
    "chosen",
    "each",
    "first_that_measures",
    "frechet_distance",
    "in_batches",
    "inception",
    "inception_features",
    "inception_score",
    "kernel_distance",
    "lpips",
    "lpips_diversity",
    "mean_colour_error",
    "mean_squared_error",
    "picture_set",
    "psnr",
    "sliced_wasserstein",
    "sliced_wasserstein_levels",
    "ssim",
]
