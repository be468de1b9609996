"""Convolutions whose gradients are fast inside loops on CPU."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dream_jax.networks import products
from dream_jax.networks.parameters import Conv

_NHWC = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=_NHWC,
    feature_group_count=1,
    batch_group_count=1,
    precision=None,
    preferred_element_type=None,
):
    """`lax.conv_general_dilated` of NHWC pictures and HWIO kernels, with a gradient that is fast inside loops.

    For `nn.Conv(conv_general_dilated=...)`. On CPU, JAX's own weight gradient is 10 to 100 times slower inside scan,
    while or cond than outside; here each of the two gradients is one convolution wherever it stands. Reverse mode only.
    Elsewhere it is lax's own, whose gradients are what cuDNN and the TPU compiler look for.

    Args:
        lhs: [B, H, W, Cin] pictures.
        rhs: [kh, kw, Cin, Cout] kernel.
        window_strides, padding, lhs_dilation, rhs_dilation, precision, preferred_element_type: as in lax; padding is
            "SAME", "VALID" or a pair for each side.

    Raises:
        NotImplementedError: for groups and for other layouts.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if numbers != lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC):
        raise NotImplementedError(f"only the layout {_NHWC} is supported, got {dimension_numbers}")
    if feature_group_count != 1 or batch_group_count != 1:
        raise NotImplementedError("grouped convolutions are not supported")
    if jax.default_backend() != "cpu":
        features = rhs.shape[3]
        lhs, rhs = _by_eights(lhs, rhs)
        y = lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, _NHWC,
            precision=precision, preferred_element_type=preferred_element_type,
        )  # fmt: skip
        return y if features == y.shape[-1] else y[..., :features]
    strides = tuple(window_strides)
    lhs_dilation = tuple(lhs_dilation or (1, 1))
    rhs_dilation = tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        dilated = [(k - 1) * d + 1 for k, d in zip(rhs.shape[:2], rhs_dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], dilated, strides, padding)
    padding = tuple((int(low), int(high)) for low, high in padding)
    return _conv(lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, precision, preferred_element_type)


def _by_eights(x, w):
    """Pictures and kernel with channels as tensor cores take them, by eights: XLA adds zeros to float16 alone."""
    if jax.default_backend() != "gpu" or x.dtype.itemsize != 2:
        return x, w
    few, few_features = (-n % 8 for n in w.shape[2:])
    if few:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, few)))
    if few or few_features:
        w = jnp.pad(w, ((0, 0), (0, 0), (0, few), (0, few_features)))
    return x, w


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5, 6, 7))
def _conv(x, w, strides, padding, x_dilation, w_dilation, precision, result_type):
    return lax.conv_general_dilated(
        x, w, strides, padding, x_dilation, w_dilation, _NHWC, precision=precision, preferred_element_type=result_type
    )


def _conv_forward(x, w, *static):
    return _conv(x, w, *static), (x, w)


def _conv_backward(strides, padding, x_dilation, w_dilation, precision, result_type, saved, g):
    # With d = dilated by and y[o] = sum_k x_d[o*s + k*r - low] w[k], the gradients are
    #   x_d[i]: sum_k g_d[i + low - k*r] w[k]   and   w[k]: sum_o x_d[o*s + k*r - low] g[o].
    # The low paddings follow by matching the indices, the high ones from the number of values wanted.
    x, w = saved
    pads_x, pads_w = (), ()
    for n, k, m, s, (low, _), dx, dw in zip(
        x.shape[1:3], w.shape[:2], g.shape[1:3], strides, padding, x_dilation, w_dilation, strict=True
    ):
        reach, x_size, g_size = (k - 1) * dw, (n - 1) * dx + 1, (m - 1) * s + 1
        pads_x += ((reach - low, x_size - g_size + low),)
        pads_w += ((low, reach + g_size - x_size - low),)
    # Transposed arrays, not transposed dimension numbers: XLA:CPU puts dimension numbers into the form of its fast
    # convolution outside loops only.
    flipped = lax.rev(w, (0, 1)).transpose(0, 1, 3, 2).astype(g.dtype)
    grad_x = _conv(g, flipped, x_dilation, pads_x, strides, w_dilation, precision, result_type)
    as_batch, as_kernel = x.transpose(3, 1, 2, 0).astype(g.dtype), g.transpose(1, 2, 0, 3)
    grad_w = _conv(as_batch, as_kernel, w_dilation, pads_w, x_dilation, strides, precision, result_type)
    return grad_x.astype(x.dtype), grad_w.transpose(1, 2, 0, 3).astype(w.dtype)


_conv.defvjp(_conv_forward, _conv_backward)


class BiasApart(Conv):
    """`Conv` that returns (result without bias, bias [C]), for whom adds it in a pass of its own."""

    use_bias: bool = False

    @nn.compact
    def __call__(self, inputs):
        return super().__call__(inputs), self.param("bias", self.bias_init, (self.features,), self.param_dtype)


def conv(features: int, kernel_size: int = 3, stride: int = 1, apart: bool = False, **options) -> Conv:
    """A square convolution padded by kernel_size // 2 on every side, PyTorch's habit ("SAME" differs at stride 2).

    apart: as BiasApart.
    """
    half = kernel_size // 2
    options.setdefault("conv_general_dilated", conv_general_dilated)
    return (BiasApart if apart else Conv)(
        features,
        (kernel_size, kernel_size),
        (stride, stride),
        ((half, half), (half, half)),
        **options,
    )


def wide_conv(features: int, dtype, **options) -> Conv:
    """`conv` with products in dtype and a result in float32 or better, whose bias is added there."""
    wide = jnp.promote_types(dtype, jnp.float32)
    if dtype == wide:
        return conv(features, dtype=dtype, **options)

    def wide_products(x, w, strides, padding, **_):
        product = functools.partial(conv_general_dilated, window_strides=strides, padding=padding)
        return products.wide(product, x.astype(dtype), w.astype(dtype))

    return conv(features, dtype=wide, conv_general_dilated=wide_products, **options)


def double_size_conv(features: int, **options) -> Conv:
    """PyTorch's ConvTranspose2d(kernel 4, stride 2, padding 1): [B, H, W, C] -> [B, 2H, 2W, features].

    A convolution of the zero-interleaved picture; the kernel is PyTorch's, flipped in height and width.
    """
    return Conv(
        features,
        (4, 4),
        padding=((2, 2), (2, 2)),
        input_dilation=(2, 2),
        conv_general_dilated=_interleaved_conv,
        **options,
    )


def enlarged_conv(features: int, **options) -> Conv:
    """`conv` of the picture with each pixel repeated 2 x 2: [B, H, W, C] -> [B, 2H, 2W, features].

    At less than half of its products, and the repeated picture is never written out.
    """
    return conv(features, conv_general_dilated=_repeated_conv, **options)


def _repeated_conv(x, w, *_, **options):
    # A repeated pixel is a pixel between zeros, spread over 2 x 2; so the kernel is spread in its place.
    wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    for axis in (0, 1):
        after, before = (jnp.pad(wide, [(n, 1 - n) if a == axis else (0, 0) for a in range(4)]) for n in (0, 1))
        wide = after + before
    return _interleaved_conv(x, wide.astype(w.dtype), **options)


def _interleaved_conv(x, w, *_, precision=None, **__):
    # Of the 4 x 4 kernel each output pixel meets only the 2 x 2 values that fall on no zero: even ones for outputs at
    # even places, odd ones for odd. So one 2 x 2 convolution makes all four kinds, at a quarter of the products
    # (and XLA:CPU has no fast convolution of an interleaved picture).
    batch, height, width, channels = x.shape
    w = w.reshape(2, 2, 2, 2, channels, -1).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, channels, -1)
    # Padded beforehand, or XLA swaps the operands of the weight's gradient into a form that is not fast.
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    y = conv_general_dilated(x, w, (1, 1), "VALID", precision=precision)
    y = y.reshape(batch, height + 1, width + 1, 2, 2, -1)
    y = jnp.stack([y[:, :-1, :, 0], y[:, 1:, :, 1]], axis=2)
    y = jnp.stack([y[:, :, :, :-1, 0], y[:, :, :, 1:, 1]], axis=4)
    return y.reshape(batch, 2 * height, 2 * width, -1)
