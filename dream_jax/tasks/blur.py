"""Blur: Gaussian, and of motion along a line.

Sums are of whole numbers, the same in any order and on any device; the weights are rounded from exponentials and
cosines in float32, whose last bit may be another on another device.
Beyond an edge the nearest pixel goes on, as `skimage.filters.gaussian` has it.
"""

import jax
import jax.numpy as jnp

from dream_jax.tasks import value_range

BLURS = ("gaussian", "motion")

# Of a Gaussian's coefficients: levels of 16 bits times them are whole numbers of 31 bits.
GAUSSIAN_BITS = 15
# Of a line's: rounding undoes what a Fourier transform in float32 errs by.
MOTION_BITS = 10


def _fixed(weights, centre, bits):
    """Weights as multiples of 2**-bits which sum to 1; the centre takes what rounding leaves."""
    fixed = jnp.floor(weights / weights.sum() * 2**bits + 0.5).astype(jnp.int32)
    return fixed.at[centre].add(2**bits - fixed.sum())


def radius(width) -> int:
    """Of a Gaussian of this width, where it is cut off: at four widths."""
    return int(4 * width + 0.5)


def gaussian_weights(width, most: int):
    """int32[2 most + 1], which sum to 2**15; width may be traced, and `most` is the radius of the largest."""
    x = jnp.abs(jnp.arange(-most, most + 1, dtype=jnp.float32))
    weights = jnp.exp(-jnp.square(x / jnp.maximum(width, 1e-3)) / 2)
    return _fixed(jnp.where(x <= jnp.floor(4 * width + 0.5), weights, 0), most, GAUSSIAN_BITS)


def _along(levels, weights, axis):
    reach, size = len(weights) // 2, levels.shape[axis]
    padded = jnp.pad(levels, [(reach, reach) if i == axis else (0, 0) for i in range(levels.ndim)], "edge")

    def add(i, total):
        return total + jax.lax.dynamic_slice_in_dim(padded, i, size, axis) * weights[i]

    half = jnp.full_like(levels, 2 ** (GAUSSIAN_BITS - 1))
    return jax.lax.fori_loop(0, len(weights), add, half) >> GAUSSIAN_BITS


def gaussian(picture, width, most: int | None = None):
    """Whole levels [H, W, C] blurred by a Gaussian of this standard deviation in pixels, cut off at four of them.

    Where the width is traced, `most` is the `radius` of the largest. Levels of 8 bits are computed with as of 16.
    """
    most = radius(width) if most is None else most
    weights, finer = gaussian_weights(width, most), 65535 // value_range.white(picture.dtype)
    levels = picture.astype(jnp.int32) * finer
    for axis in (0, 1):
        levels = _along(levels, weights, axis)
    return ((levels + finer // 2) // finer).astype(picture.dtype)


def motion_weights(length, angle, most: float):
    """int32[K, K], which sum to 2**10: a line of so many pixels at an angle in radians, antialiased.

    A pixel's weight falls linearly with its distance from the line between the centres of the first and the last
    pixel, to nothing at one pixel. `most` is the longest length.
    """
    reach = int(most) // 2 + 1
    x = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
    along = x[None] * jnp.cos(angle) + x[:, None] * jnp.sin(angle)
    across = x[:, None] * jnp.cos(angle) - x[None] * jnp.sin(angle)
    beyond = jnp.maximum(jnp.abs(along) - jnp.maximum(length - 1, 0) / 2, 0)
    weights = jnp.maximum(1 - jnp.hypot(beyond, across), 0)
    return _fixed(weights, (reach, reach), MOTION_BITS)


def convolve(picture, weights):
    """Whole levels [H, W, C] convolved with weights int32 [K, K] which sum to 2**10, and rounded at the end."""
    height, width, _ = picture.shape
    reach = weights.shape[0] // 2
    # Only now: SciPy is a tenth of a start's time, and few runs blur.
    from scipy import fft

    shape = [fft.next_fast_len(side + 2 * reach, real=True) for side in (height, width)]
    pads = [(reach, size - side - reach) for size, side in zip(shape, (height, width), strict=True)]
    padded = jnp.pad(picture.astype(jnp.int32), [*pads, (0, 0)], "edge").transpose(2, 0, 1)
    # By bytes, around 0: products in float32 are then exact but for less than half of the last bit.
    parts = [padded & 255] if value_range.white(picture.dtype) == 255 else [padded & 255, padded >> 8]
    transform = jnp.fft.rfft2(weights.astype(jnp.float32), shape)
    sums = [jnp.fft.irfft2(jnp.fft.rfft2(part.astype(jnp.float32) - 128) * transform[None], shape) for part in parts]
    exact = [jnp.floor(z + 0.5).astype(jnp.int32) + 128 * 2**MOTION_BITS for z in sums]
    total = sum(part << (8 * place) for place, part in enumerate(exact))
    start = 2 * reach
    inside = total[:, start : start + height, start : start + width].transpose(1, 2, 0)
    return ((inside + 2 ** (MOTION_BITS - 1)) >> MOTION_BITS).astype(picture.dtype)


def motion(picture, length, angle, most: float):
    """Whole levels [H, W, C] blurred by motion along a line, see `motion_weights`."""
    return convolve(picture, motion_weights(length, angle, most))
