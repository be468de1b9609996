"""Measures that compare pictures pixel by pixel.

All take grey levels 0..255 (uint8, or such values in a float), or 0..65535 (uint16), which count as 255 at most.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.errors import UserError

_jit = functools.partial(jax.jit, static_argnames=("channel", "crop"))

_WINDOW = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_WINDOW /= _WINDOW.sum()


def _levels(picture):
    # Whole levels become jax's default float: float64 where it is enabled.
    picture = jnp.asarray(picture)
    return picture.astype(jnp.promote_types(picture.dtype, jnp.result_type(float)))


def _unit(picture):
    """How many of a picture's levels are one of 0..255. Results are divided by it: levels would lose their last bit."""
    return 257 if jnp.asarray(picture).dtype == jnp.uint16 else 1


def _select(a, b, channel, crop):
    """The part of a pair of pictures that is compared, as floats [B, H - 2 crop, W - 2 crop, C]."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.ndim != 4 or a.shape != b.shape:
        raise UserError(f"pictures to compare must both be [B, H, W, C], not {a.shape} and {b.shape}")
    if channel not in ("rgb", "y"):
        raise UserError(f"channel must be 'rgb' or 'y', not {channel!r}")
    height, width = a.shape[1] - 2 * crop, a.shape[2] - 2 * crop
    if crop < 0 or min(height, width) < 1:
        raise UserError(f"crop={crop} does not fit pictures of {a.shape[1]} x {a.shape[2]}")
    if channel == "y" and a.shape[3] != 3:
        raise UserError(f"channel='y' needs 3 colours, not {a.shape[3]}")
    return tuple(_levels(z[:, crop : crop + height, crop : crop + width]) for z in (a, b))


def _luma(z):
    """BT.601 luma in studio range of [B, H, W, 3], without its offset of 16: [B, H, W, 1]."""
    return (65.481 * z[..., :1] + 128.553 * z[..., 1:2] + 24.966 * z[..., 2:]) / 255


def _mean(z):
    # One axis at a time: a single float32 sum over a large picture would lose digits.
    return z.mean(2).mean(1).mean(1)


@_jit
def mean_squared_error(a, b, channel="rgb", crop=0):
    """Mean of `(a - b)**2` in squared grey levels: [B, H, W, C] twice -> [B]; channel and crop as for `psnr`."""
    unit = _unit(a)
    a, b = _select(a, b, channel, crop)
    # Differences of grey levels are exact in float32, differences of lumas are not.
    difference = a - b if channel == "rgb" else _luma(a - b)
    return _mean(difference**2) / unit**2


@_jit
def psnr(a, b, channel="rgb", crop=0):
    """Peak signal-to-noise ratio `10 log10(255**2 / MSE)`: [B, H, W, C] twice -> [B] dB; inf for equal pictures.

    `channel="y"` compares luma, BT.601 in studio range, `16 + (65.481 R + 128.553 G + 24.966 B) / 255`, which is
    Matlab's rgb2ycbcr without the rounding to whole levels; the peak stays 255. `crop` pixels are left out on each
    side. Raises UserError for other channels, shapes that differ, or a crop that leaves nothing.
    """
    return 10 * jnp.log10(255**2 / mean_squared_error(a, b, channel, crop))


@jax.jit
def mean_colour_error(a, b):
    """Absolute difference of the pictures' mean colours, averaged over channels: [B, H, W, C] twice -> [B] grey levels.

    It sees a shift of the whole picture's colour, which PSNR hides among other errors and SSIM forgives. Raises
    UserError for shapes that differ.
    """
    unit = _unit(a)
    a, b = _select(a, b, "rgb", 0)
    return jnp.abs((a - b).mean(2).mean(1)).mean(1) / unit


def _pool(means, covariances, axis):
    """Window means and covariances along an axis, from those of the points on it, by the law of total covariance.

    All terms of a variance are positive, so float32 loses nothing, unlike in E[x^2] - E[x]^2.
    """
    size = means[0].shape[axis] - len(_WINDOW) + 1

    def window(z):
        return [jax.lax.slice_in_dim(z, i, i + size, axis=axis) for i in range(len(_WINDOW))]

    def average(terms):
        return sum(float(weight) * term for weight, term in zip(_WINDOW, terms, strict=True))

    x, y = (window(mean) for mean in means)
    mean_x, mean_y = average(x), average(y)
    within = [average(window(covariance)) for covariance in covariances]
    between = [
        average([(i - mean_x) ** 2 for i in x]),
        average([(j - mean_y) ** 2 for j in y]),
        average([(i - mean_x) * (j - mean_y) for i, j in zip(x, y, strict=True)]),
    ]
    return (mean_x, mean_y), [w + b for w, b in zip(within, between, strict=True)]


@_jit
def ssim(a, b, channel="rgb", crop=0):
    """Structural similarity (Wang et al. 2004, equation 13): [B, H, W, C] twice -> [B].

    Gaussian window of 11 x 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255; the mean over the windows that lie
    inside the picture, and over the channels. `channel` and `crop` as for `psnr`. Raises UserError also for pictures
    smaller than the window.
    """
    unit = _unit(a)
    x, y = _select(a, b, channel, crop)
    if channel == "y":
        x, y = 16 * unit + _luma(x), 16 * unit + _luma(y)
    if min(x.shape[1:3]) < len(_WINDOW):
        raise UserError(f"SSIM needs at least 11 x 11 pixels, got {x.shape[1]} x {x.shape[2]} after the crop")
    means, covariances = (x, y), [jnp.zeros_like(x)] * 3
    for axis in (2, 1):
        means, covariances = _pool(means, covariances, axis)
    (mean_x, mean_y), (var_x, var_y, cov) = means, covariances
    c1, c2 = (0.01 * 255 * unit) ** 2, (0.03 * 255 * unit) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return _mean(luminance * (2 * cov + c2) / (var_x + var_y + c2))
