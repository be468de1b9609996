"""GroupNorm, and what a residual block does beside it, as one operation with a gradient of its own."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from dream_jax.networks import dropout

_EPSILON = 1e-5


def normalize(
    pictures: Sequence[jax.Array], scale, bias, groups: int, dtype, *, factor=1, shift=0, silu=False, words=None, rate=0
):
    """GroupNorm of `factor * x + shift`, then SiLU, then dropout; x is the pictures side by side, never written out.

    Statistics and all arithmetic are in float32 or better. Each picture is read twice on the way forth and twice on
    the way back; nothing of its size is kept for the gradient but itself. Reverse mode only.

    Args:
      pictures: each [B, H, W, Ci], of one dtype; the sum of Ci is C.
      scale, bias: [C], GroupNorm's.
      groups: divides C.
      dtype: of the result.
      factor, shift: [B, C] or broadcast to it.
      silu: whether SiLU follows.
      words: uint32 [B, 2], of which `dropout.kept` makes what dropout keeps; None for no dropout.
      rate: of dropout.

    Returns:
      [B, H, W, C].
    """
    wide = jnp.promote_types(pictures[0].dtype, jnp.float32)
    # One row per example, of the pictures' type inside shard_map, so that gradients are too.
    rows = jnp.concatenate([jnp.zeros_like(x[:, 0, 0], wide) for x in pictures], axis=-1)
    scale, bias, factor, shift = (
        jnp.broadcast_to(p, rows.shape).astype(wide) + rows for p in (scale, bias, factor, shift)
    )
    return _normalize(tuple(pictures), scale, bias, factor, shift, words, groups, dtype, silu, rate)


# Jitted, so that layers of one shape are traced and differentiated once: tracing is most of a start whose program is
# compiled already.
@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
@functools.partial(jax.jit, static_argnums=(6, 7, 8, 9))
def _normalize(pictures, scale, bias, factor, shift, words, *static):
    return _forward(pictures, scale, bias, factor, shift, words, *static)[0]


@functools.partial(jax.jit, static_argnums=(6, 7, 8, 9))
def _forward(pictures, scale, bias, factor, shift, words, groups, dtype, silu, rate):
    moments = [jnp.concatenate(each, axis=-1) for each in zip(*map(_moments, pictures), strict=True)]
    rows = *moments, scale, bias, factor, shift
    slope, offset = _line(*rows, groups)
    kept = _kept(pictures, words, rate)

    def result(x, columns):
        z = _row(slope, columns) * (x.astype(slope.dtype) - _row(moments[0], columns)) + _row(offset, columns)
        z = jax.nn.silu(z) if silu else z
        return z if kept is None else jnp.where(kept[..., columns], z / (1 - rate), 0)

    y = jnp.concatenate([result(x, columns) for x, columns in _columns(pictures)], axis=-1)
    return y.astype(dtype), (pictures, rows, words)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _backward(groups, dtype, silu, rate, saved, g):
    pictures, rows, words = saved
    (slope, offset), transpose = jax.vjp(functools.partial(_line, groups=groups), *rows)
    mean = rows[0]

    def centred_and_gradient(x, g, kept, columns):
        """x - mean, and the gradient with respect to slope * (x - mean) + offset."""
        x, g = x.astype(slope.dtype) - _row(mean, columns), g[..., columns].astype(slope.dtype)
        if kept is not None:
            g = jnp.where(kept[..., columns], g / (1 - rate), 0)
        if silu:
            z = _row(slope, columns) * x + _row(offset, columns)
            gate = jax.nn.sigmoid(z)
            g = g * gate * (1 + z * (1 - gate))
        return x, g

    sums, kept = [], _kept(pictures, words, rate)
    for x, columns in _columns(pictures):
        x, to_line = centred_and_gradient(x, g, kept, columns)
        sums.append(_pixel_sums(to_line * x, to_line))
    to_slope, to_offset = (jnp.concatenate(each, axis=-1) for each in zip(*sums, strict=True))
    if jax.default_backend() != "cpu":
        # Computed a second time, from the same arrays, what the sums were of: else it would be written out in float32.
        # (XLA:CPU does as it should by itself, and a train step is 12% slower with the barrier.)
        again = (to_slope, to_offset), pictures, g, words
        (to_slope, to_offset), pictures, g, words = lax.optimization_barrier(again)
        kept = _kept(pictures, words, rate)
    to_mean, to_variance, *others = transpose((to_slope, to_offset))
    to_mean -= slope * to_offset
    pixels = pictures[0].shape[1] * pictures[0].shape[2]

    def gradient(x, columns):
        dtype = x.dtype
        x, to_line = centred_and_gradient(x, g, kept, columns)
        to_x = _row(slope, columns) * to_line + _row(2 / pixels * to_variance, columns) * x
        return (to_x + _row(to_mean / pixels, columns)).astype(dtype)

    return tuple(gradient(x, columns) for x, columns in _columns(pictures)), *others, None


_normalize.defvjp(_forward, _backward)


def _moments(x):
    """Mean and variance over pixels [B, C], in one pass over the picture.

    The sums are of differences from one of the channel's own values: E[x^2] - E[x]^2 alone loses digits where the mean
    is large. Values of 16 bits have none to lose in float32.
    """
    pixels = x.shape[1] * x.shape[2]
    few_digits = x.dtype.itemsize == 2
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    pivot = jnp.zeros_like(x[:, :1, :1]) if few_digits else x[:, :1, :1]
    first, second = (total / pixels for total in _pixel_sums(x - pivot, jnp.square(x - pivot)))
    return first + pivot[:, 0, 0], second - jnp.square(first)


def _pixel_sums(*pictures):
    """The sums over pixels [B, C] of each picture [B, H, W, C], in bands first.

    Of a sum over all pixels XLA:GPU holds that it has too few threads, and writes out, in float32, what is summed.
    """
    batch, height, _, channels = pictures[0].shape
    bands = [jnp.sum(x.reshape(batch, math.gcd(height, 16), -1, channels), axis=2) for x in pictures]
    return [jnp.sum(x, axis=1) for x in lax.optimization_barrier(bands)]


def _line(mean, variance, scale, bias, factor, shift, groups):
    """(slope, offset), each [B, C]: GroupNorm of factor * x + shift is slope * (x - mean) + offset."""

    def group_mean(a):
        means = jnp.mean(a.reshape(len(a), groups, -1), axis=-1)
        return jnp.repeat(means, a.shape[-1] // groups, axis=-1)

    mean = factor * mean + shift
    centred = mean - group_mean(mean)
    slope = scale * lax.rsqrt(group_mean(jnp.square(factor) * variance + jnp.square(centred)) + _EPSILON)
    return slope * factor, slope * centred + bias


def _kept(pictures, words, rate):
    shape = *pictures[0].shape[:3], sum(x.shape[-1] for x in pictures)
    return None if words is None else dropout.kept(words, shape, rate)


def _columns(pictures):
    """Each picture with the slice of channels that is its own."""
    stop = 0
    for x in pictures:
        start, stop = stop, stop + x.shape[-1]
        yield x, slice(start, stop)


def _row(a, columns):
    return a[:, None, None, columns]
