"""Resizing that agrees with Pillow's files, on device."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.errors import UserError
from dream_jax.tasks import value_range


def _cubic(x):
    # Keys 1981, equation 4 generalised to a = -0.5.
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x):
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


KERNELS = {  # name: (half width in pixels of the coarser grid, kernel)
    "pil_bicubic": (2.0, _cubic),
    "pil_bilinear": (1.0, lambda x: np.maximum(1 - np.abs(x), 0.0)),
    "pil_lanczos": (3.0, _lanczos),
    "pil_box": (0.5, lambda x: ((x > -0.5) & (x <= 0.5)).astype(np.float64)),
}


def coefficients(kernel, size_in, size_out, outputs=slice(None)):
    """Pillow's coefficients along one axis before it rounds them: float64[size_out, size_in], rows that sum to 1.

    Of some outputs only: (coefficients [outputs, inputs], the slice of inputs that these outputs are made of).
    """
    support, weight = KERNELS[kernel]
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    centre = (np.arange(size_out)[outputs, None] + 0.5) * scale
    first = np.maximum(np.trunc(centre - support * stretch + 0.5), 0)
    end = np.minimum(np.trunc(centre + support * stretch + 0.5), size_in)
    inputs = slice(int(first[0, 0]), int(end[-1, 0])) if outputs != slice(None) else slice(0, size_in)
    pixel = np.arange(size_in)[None, inputs]
    weights = weight((pixel - centre + 0.5) / stretch) * ((pixel >= first) & (pixel < end))
    return weights / weights.sum(1, keepdims=True), inputs


# A matrix of all outputs and inputs is fast, but grows with the square of a side: longer ones are done in blocks.
BLOCK = 2048


@functools.lru_cache(maxsize=32)
def resize_matrices(kernel, size_in, size_out):
    """Pillow's 22-bit coefficients: (float32[2, outputs, inputs], inputs) of each block of outputs, in order.

    A coefficient is `256 * matrix[0] + matrix[1]`, and inputs are a slice. Each half times grey levels sums to whole
    numbers below 2**24, so float32 products are exact in any order of summation: the same on every device.
    """
    blocks = []
    for start in range(0, size_out, BLOCK):
        whole = max(size_in, size_out) <= BLOCK
        outputs = slice(None) if whole else slice(start, min(start + BLOCK, size_out))
        weights, inputs = coefficients(kernel, size_in, size_out, outputs)
        fixed = np.trunc(weights * 2**22 + np.copysign(0.5, weights)).astype(np.int64)
        high = (fixed + 128) >> 8
        blocks.append((np.stack([high, fixed - (high << 8)]).astype(np.float32), inputs))
    return blocks


def _times_16(levels, matrix, axis):
    """Clipped as 8 bits, and not rounded: of 16 bits there is no file's arithmetic to agree with."""
    equation = {-2: "...wc,vw->...vc", -3: "...hwc,vh->...vwc"}[axis]
    exact = jnp.asarray((matrix[0] * 256.0 + matrix[1]) / 2.0**22, levels.dtype)
    return jnp.clip(jnp.einsum(equation, levels, exact, precision=jax.lax.Precision.HIGHEST), 0, 65535)


def _times(levels, matrix, axis):
    equation = {-2: "...wc,kvw->k...vc", -3: "...hwc,kvh->k...vwc"}[axis]
    matrix = jnp.asarray(matrix, levels.dtype)
    high, low = jnp.einsum(equation, levels, matrix, precision=jax.lax.Precision.HIGHEST)
    fixed = (high.astype(jnp.int32) << 8) + low.astype(jnp.int32)
    return jnp.clip((fixed + 2**21) >> 22, 0, 255).astype(levels.dtype)


def _resize_axis(levels, axis, size, kernel, times):
    blocks = []
    for matrix, inputs in resize_matrices(kernel, levels.shape[axis], size):
        part = jax.lax.slice_in_dim(levels, inputs.start, inputs.stop, axis=axis)
        blocks.append(times(part, matrix, axis))
    return jnp.concatenate(blocks, axis)


# Jitted, as pictures are also resized one by one: a size is compiled once, not each of its twenty operations.
@functools.partial(jax.jit, static_argnames=("height", "width", "kernel"))
def resize(pictures, height, width, kernel="pil_bicubic"):
    """Resize as Pillow's `Image.resize`: antialiased when shrinking, horizontally, then vertically, rounded after each.

    `pictures` [..., H, W, C] are grey levels 0..255, uint8 or whole numbers in a float; the result
    [..., height, width, C] is whole grey levels of the same type. Equal to Pillow's level for level, except that Pillow
    13 goes vertically first where the height shrinks much more than the width. Levels 0..65535, uint16, are rounded at
    the end only. Has no gradient. Works under jit and shard_map. Raises UserError for a kernel that is not in KERNELS.
    """
    if kernel not in KERNELS:
        raise UserError(f"resize kernel {kernel!r} is unknown; choose one of {', '.join(KERNELS)}")
    pictures = jnp.asarray(pictures)
    levels = pictures.astype(jnp.promote_types(pictures.dtype, jnp.float32))
    times = _times_16 if pictures.dtype == jnp.uint16 else _times
    for axis, size in ((-2, width), (-3, height)):
        if levels.shape[axis] != size:
            levels = _resize_axis(levels, axis, size, kernel, times)
    if pictures.dtype == jnp.uint16:
        levels = jnp.floor(levels + 0.5)
    return levels.astype(pictures.dtype)


class Choices(NamedTuple):
    """Pillow's coefficients for several pairs of sizes of one axis: what is not zero of them, filled up with zeros.

    weights int32 [sizes, outputs, taps] are of 22 bits, the first of which is for input `first` [sizes, outputs]; the
    largest sizes are `outputs` and `inputs`.
    """

    weights: np.ndarray
    first: np.ndarray
    inputs: int


@functools.lru_cache(maxsize=32)
def choices(kernel: str, sizes: tuple[tuple[int, int], ...]) -> Choices:
    """Of pairs (size in, size out); raises UserError for one above `BLOCK`."""
    if max(map(max, sizes)) > BLOCK:
        raise UserError(f"task.scales: sides of pictures that are trained on must be at most {BLOCK} pixels")
    rows = [_not_zero(kernel, *pair) for pair in sizes]
    inputs, outputs = (max(sides) for sides in zip(*sizes, strict=True))
    taps = max(weights.shape[1] for weights, _ in rows)
    weights, starts = np.zeros((len(sizes), outputs, taps), np.int32), np.zeros((len(sizes), outputs), np.int32)
    for i, (row, first) in enumerate(rows):
        weights[i, : len(row), : row.shape[1]] = row
        starts[i, : len(row)] = first
    return Choices(weights, starts, inputs)


def _not_zero(kernel, size_in, size_out):
    """(what is not zero of a matrix, int32 [outputs, taps]; the first input of each [outputs])."""
    ((high, low), _), *_ = resize_matrices(kernel, size_in, size_out)
    matrix = 256 * high.astype(np.int32) + low.astype(np.int32)
    first = np.argmax(matrix != 0, 1)
    taps = int(np.max(size_in - np.argmax(matrix[:, ::-1] != 0, 1) - first))
    wide = np.pad(matrix, ((0, 0), (0, taps)))
    return np.take_along_axis(wide, first[:, None] + np.arange(taps), 1), first


def bytes_of_choices(kernel: str, sizes: tuple[tuple[int, int], ...]) -> int:
    """What the weights of `choices` take at most."""
    support, _ = KERNELS[kernel]
    taps = max(min(math.ceil(2 * support * max(size_in / size_out, 1)) + 1, size_in) for size_in, size_out in sizes)
    return 4 * len(sizes) * max(size_out for _, size_out in sizes) * taps


def resize_chosen(picture, choice, vertical: Choices, horizontal: Choices):
    """`resize` of one picture [H, W, C] by the pair of sizes with a number that may be traced.

    The picture lies at the top left of its array, and so does the result, which is 0 beyond.
    """
    levels = picture.astype(jnp.promote_types(picture.dtype, jnp.float32))
    times = _times_16 if picture.dtype == jnp.uint16 else _times
    for axis, table in ((-2, horizontal), (-3, vertical)):
        weights, first = jnp.asarray(table.weights)[choice], jnp.asarray(table.first)[choice]
        tap = jnp.arange(table.inputs)[None] - first[:, None]
        there = (tap >= 0) & (tap < weights.shape[1])
        fixed = jnp.where(there, jnp.take_along_axis(weights, jnp.clip(tap, 0, weights.shape[1] - 1), 1), 0)
        high = (fixed + 128) >> 8
        levels = times(levels, jnp.stack([high, fixed - (high << 8)]).astype(jnp.float32), axis)
    return value_range.to_whole(levels, picture.dtype)


@functools.lru_cache(maxsize=32)
def _shrink_and_inverse(kernel, size_in, size_out, width):
    shrink, _ = coefficients(kernel, size_in, size_out)
    if not width:
        return shrink, np.linalg.pinv(shrink)
    from scipy import ndimage

    # What blurring takes to less than a tenth is not to be had back of whole levels.
    shrink = shrink @ ndimage.gaussian_filter1d(np.eye(size_in), width, axis=0, mode="nearest", truncate=4.0)
    return shrink, np.linalg.pinv(shrink, rcond=0.1)


def project(pictures, low, kernel="pil_bicubic", width: float = 0.0):
    """The nearest pictures [B, H, W, C] whose shrunk ones are `low` [B, h, w, C]; floats in any one range.

    Shrinking is linear but for its rounding, A = A_v x A_h, so that they are `x + A^+ (low - A x)` with the
    pseudo-inverse A^+: range-null space decomposition (Wang et al. 2022, DDNM, arXiv 2212.00490, eq. 4). With a width,
    a Gaussian of it blurs before, and what that makes faint is left as it is.
    """
    axes = [_shrink_and_inverse(kernel, pictures.shape[axis], low.shape[axis], width) for axis in (1, 2)]
    (shrink_v, inverse_v), (shrink_h, inverse_h) = jax.tree.map(lambda m: jnp.asarray(m, pictures.dtype), axes)

    def along_both(vertical, horizontal, z):
        return jnp.einsum("vh,uw,bhwc->bvuc", vertical, horizontal, z, precision=jax.lax.Precision.HIGHEST)

    missing = low - along_both(shrink_v, shrink_h, pictures)
    return pictures + along_both(inverse_v, inverse_h, missing)
