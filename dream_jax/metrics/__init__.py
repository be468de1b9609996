"""Measures of pictures, as pure functions of arrays."""

from dream_jax.metrics.pixels import consistency, mean_colour_error, mean_squared_error, psnr, ssim

__all__ = ["consistency", "mean_colour_error", "mean_squared_error", "psnr", "ssim"]
