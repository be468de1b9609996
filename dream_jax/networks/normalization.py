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
    pictures: Sequence[jax.Array],
    scale,
    bias,
    groups: int,
    dtype,
    *,
    factor=1,
    shift=0,
    silu=False,
    words=None,
    rate=0,
    statistics=None,
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
      words: two uint32 [B], of which `dropout.kept` makes what dropout keeps; None for no dropout.
      rate: of dropout.
      statistics: (mean, deviation), each [B, C], by which is judged instead of by those of the pictures, as `measure`
        finds them. There is no gradient of its own then.

    Returns:
      [B, H, W, C].
    """
    rows = _zeros(pictures)
    scale, bias = (p.astype(rows.dtype)[None] + rows[:1] for p in (scale, bias))
    factor, shift = _as_rows(rows, factor, shift)
    if statistics is not None:
        mean, deviation = statistics
        line = rows, scale * factor / deviation, scale * (shift - mean) / deviation + bias
        return _apply(pictures, line, _kept(pictures, words, rate), dtype, silu, rate)
    return _normalize(tuple(pictures), scale, bias, factor, shift, words, groups, dtype, silu, rate)


def measure(pictures: Sequence[jax.Array], groups: int, *, factor=1, shift=0):
    """(mean, deviation), each [B, C], by which `normalize` judges: those of each picture and group of channels."""
    factor, shift = _as_rows(_zeros(pictures), factor, shift)
    pivot, first, second = _all_moments(pictures)
    start = factor * pivot + shift
    origin = _firsts(start, groups)
    mean, deviation = _mean_and_deviation(first, second, factor, start - origin, groups)
    return mean + origin, deviation


def _zeros(pictures):
    """[B, C], in which arithmetic is done; of the pictures' type inside shard_map, so that gradients are too."""
    wide = jnp.promote_types(pictures[0].dtype, jnp.float32)
    return jnp.concatenate([jnp.zeros_like(x[:, 0, 0], wide) for x in pictures], axis=-1)


def _as_rows(zeros, *parts):
    """Each part as [B, C] of the type of zeros."""
    return (jnp.broadcast_to(p, zeros.shape).astype(zeros.dtype) + zeros for p in parts)


# Jitted, so that layers of one shape are traced and differentiated once: tracing is most of a start whose program is
# compiled already.
@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
@functools.partial(jax.jit, static_argnums=(6, 7, 8, 9))
def _normalize(pictures, scale, bias, factor, shift, words, *static):
    return _forward(pictures, scale, bias, factor, shift, words, *static)[0]


@functools.partial(jax.jit, static_argnums=(6, 7, 8, 9))
def _forward(pictures, scale, bias, factor, shift, words, groups, dtype, silu, rate):
    moments = _all_moments(pictures)
    standard = _standard(*moments, factor, shift, groups)
    slope, middle, _ = standard
    line = moments[0], scale * slope, scale * middle + bias
    y = _apply(pictures, line, _kept(pictures, words, rate), dtype, silu, rate)
    return y, (pictures, moments, standard, line, scale, words)


def _apply(pictures, line, kept, dtype, silu, rate):
    """slope * (x - pivot) + offset, line being (pivot, slope, offset), then SiLU, then dropout."""

    def result(x, columns):
        pivot, slope, offset = (_row(a, columns) for a in line)
        z = slope * (x.astype(slope.dtype) - pivot) + offset
        z = jax.nn.silu(z) if silu else z
        return z if kept is None else jnp.where(kept[..., columns], z / (1 - rate), 0)

    return jnp.concatenate([result(x, columns) for x, columns in _columns(pictures)], axis=-1).astype(dtype)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _backward(groups, dtype, silu, rate, saved, g):
    pictures, (pivot, first, second), (slope, middle, deviation), line, scale, words = saved
    # The mask is computed anew, or the compiler keeps the forward pass's.
    words = lax.optimization_barrier(words)

    def shifted_and_gradient(x, g, kept, columns):
        """x - pivot, and the gradient with respect to what SiLU is of."""
        pivot, slope, offset = (_row(a, columns) for a in line)
        x, g = x.astype(slope.dtype) - pivot, g[..., columns].astype(slope.dtype)
        if kept is not None:
            g = jnp.where(kept[..., columns], g / (1 - rate), 0)
        if silu:
            z = slope * x + offset
            gate = jax.nn.sigmoid(z)
            g = g * gate * (1 + z * (1 - gate))
        return x, g

    bands, kept = [], _kept(pictures, words, rate)
    for x, columns in _columns(pictures):
        x, to_z = shifted_and_gradient(x, g, kept, columns)
        bands.append(_bands(to_z * x, to_z))
    if jax.default_backend() != "cpu":
        # Computed a second time, from the same arrays, what the sums were of: else it would be written out in float32.
        # (XLA:CPU does as it should by itself, and a train step is 12% slower with the barrier.)
        bands, pictures, g, words = lax.optimization_barrier((bands, pictures, g, words))
        kept = _kept(pictures, words, rate)
    moment, to_bias = (jnp.concatenate(each, axis=-1) for each in zip(*(_sums(each, 1) for each in bands), strict=True))
    to_scale = slope * moment + middle * to_bias
    # With pixels * (what the means of the gradient, and of it times the standardized value, are): GroupNorm's gradient.
    one, other = _group_means(groups, scale * to_bias, scale * to_scale)
    to_shift = (scale * to_bias - one - other * (slope * first + middle)) / deviation
    to_factor = (
        scale * moment - one * first - other * (slope * second + middle * first)
    ) / deviation + pivot * to_shift
    pixels = pictures[0].shape[1] * pictures[0].shape[2]
    combination = slope * scale, slope * other * slope / pixels, slope * (one + other * middle) / pixels

    def gradient(x, columns):
        dtype = x.dtype
        x, to_z = shifted_and_gradient(x, g, kept, columns)
        of_z, of_x, rest = (_row(a, columns) for a in combination)
        return (of_z * to_z - of_x * x - rest).astype(dtype)

    to_pictures = tuple(gradient(x, columns) for x, columns in _columns(pictures))
    to_scale, to_bias = (a[None] for a in _sums((to_scale, to_bias), 0))
    return to_pictures, to_scale, to_bias, to_factor, to_shift, None


_normalize.defvjp(_forward, _backward)


def _all_moments(pictures):
    """The `_moments` of all channels."""
    return [jnp.concatenate(each, axis=-1) for each in zip(*map(_moments, pictures), strict=True)]


def _moments(x):
    """(pivot, mean of x - pivot, mean of its square), each [B, C], in one pass over the picture.

    The pivot is one of the channel's own values: E[x^2] - E[x]^2 alone loses digits where the mean is large. Values of
    16 bits have none to lose in float32, and 0 is theirs.
    """
    pixels = x.shape[1] * x.shape[2]
    few_digits = x.dtype.itemsize == 2
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    pivot = jnp.zeros_like(x[:, :1, :1]) if few_digits else x[:, :1, :1]
    means = (jnp.sum(bands, axis=1) / pixels for bands in _bands(x - pivot, jnp.square(x - pivot)))
    return pivot[:, 0, 0], *means


def _bands(*pictures):
    """The sums over bands of rows [B, bands, C] of each picture [B, H, W, C].

    Of a sum over all pixels XLA:GPU holds that it has too few threads, and writes out, in float32, what is summed.
    """
    batch, height, _, channels = pictures[0].shape
    return lax.optimization_barrier(
        [jnp.sum(x.reshape(batch, math.gcd(height, 16), -1, channels), axis=2) for x in pictures]
    )


def _sums(arrays, axis):
    """The sums of like arrays over an axis: one operation, so one kernel, which XLA:GPU does not make of several."""
    zeros = [jnp.zeros((), a.dtype) for a in arrays]
    return lax.reduce(tuple(arrays), tuple(zeros), lambda a, b: tuple(map(jnp.add, a, b)), (axis,))


def _standard(pivot, first, second, factor, shift, groups):
    """(slope, middle, deviation), each [B, C].

    Standardized by group, factor * x + shift is slope * (x - pivot) + middle. first and second are the means of
    x - pivot and of its square; deviation is the group's standard one.
    """
    start = factor * pivot + shift
    # From the first channel's, so that no digits are lost where all channels are far from 0.
    start -= _firsts(start, groups)
    mean, deviation = _mean_and_deviation(first, second, factor, start, groups)
    return factor / deviation, (start - mean) / deviation, deviation


def _firsts(rows, groups):
    """The first channel of each group for all of it, [B, C] again."""
    return jnp.repeat(rows[:, :: rows.shape[-1] // groups], rows.shape[-1] // groups, axis=-1)


def _mean_and_deviation(first, second, factor, start, groups):
    """Of groups of factor * (x - pivot) + start, each [B, C]."""
    mean, square = _group_means(
        groups, factor * first + start, factor * (factor * second + 2 * start * first) + jnp.square(start)
    )
    # Rounding makes the variance of one value, which is 0, negative.
    return mean, jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0) + _EPSILON)


def _group_means(groups, *rows):
    """Each [B, C]'s means over the groups of channels, [B, C] again."""
    means = (jnp.mean(a.reshape(len(a), groups, -1), axis=-1) for a in rows)
    return [jnp.repeat(a, rows[0].shape[-1] // groups, axis=-1) for a in means]


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
