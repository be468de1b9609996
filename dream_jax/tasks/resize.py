"""Resizing that agrees with Pillow's files, on device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.errors import UserError


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


def _resize_axis_16(levels, axis, size, kernel):
    """Clipped as 8 bits, and not rounded: of 16 bits there is no file's arithmetic to agree with."""
    equation = {-2: "...wc,vw->...vc", -3: "...hwc,vh->...vwc"}[axis]
    blocks = []
    for matrix, inputs in resize_matrices(kernel, levels.shape[axis], size):
        part = jax.lax.slice_in_dim(levels, inputs.start, inputs.stop, axis=axis)
        exact = jnp.asarray((matrix[0] * 256.0 + matrix[1]) / 2.0**22, levels.dtype)
        blocks.append(jnp.einsum(equation, part, exact, precision=jax.lax.Precision.HIGHEST))
    return jnp.clip(jnp.concatenate(blocks, axis), 0, 65535)


def _resize_axis(levels, axis, size, kernel):
    equation = {-2: "...wc,kvw->k...vc", -3: "...hwc,kvh->k...vwc"}[axis]
    blocks = []
    for matrix, inputs in resize_matrices(kernel, levels.shape[axis], size):
        part = jax.lax.slice_in_dim(levels, inputs.start, inputs.stop, axis=axis)
        matrix = jnp.asarray(matrix, levels.dtype)
        high, low = jnp.einsum(equation, part, matrix, precision=jax.lax.Precision.HIGHEST)
        fixed = (high.astype(jnp.int32) << 8) + low.astype(jnp.int32)
        blocks.append(jnp.clip((fixed + 2**21) >> 22, 0, 255).astype(levels.dtype))
    return jnp.concatenate(blocks, axis)


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
    along = _resize_axis_16 if pictures.dtype == jnp.uint16 else _resize_axis
    for axis, size in ((-2, width), (-3, height)):
        if levels.shape[axis] != size:
            levels = along(levels, axis, size, kernel)
    if pictures.dtype == jnp.uint16:
        levels = jnp.floor(levels + 0.5)
    return levels.astype(pictures.dtype)


@functools.lru_cache(maxsize=32)
def _shrink_and_inverse(kernel, size_in, size_out):
    shrink, _ = coefficients(kernel, size_in, size_out)
    return shrink, np.linalg.pinv(shrink)


def project(pictures, low, kernel="pil_bicubic"):
    """The nearest pictures [B, H, W, C] whose shrunk ones are `low` [B, h, w, C]; floats in any one range.

    Shrinking is linear but for its rounding, A = A_v x A_h, so that they are `x + A^+ (low - A x)` with the
    pseudo-inverse A^+: range-null space decomposition (Wang et al. 2022, DDNM, arXiv 2212.00490, eq. 4).
    """
    axes = [_shrink_and_inverse(kernel, pictures.shape[axis], low.shape[axis]) for axis in (1, 2)]
    (shrink_v, inverse_v), (shrink_h, inverse_h) = jax.tree.map(lambda m: jnp.asarray(m, pictures.dtype), axes)

    def along_both(vertical, horizontal, z):
        return jnp.einsum("vh,uw,bhwc->bvuc", vertical, horizontal, z, precision=jax.lax.Precision.HIGHEST)

    missing = low - along_both(shrink_v, shrink_h, pictures)
    return pictures + along_both(inverse_v, inverse_h, missing)
