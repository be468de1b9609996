import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dream_jax.networks import convolution

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 5), (7, 8)])
@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (0, 2))])
def test_gradients_of_a_convolution_are_those_of_jax(kernel, stride, size, padding):
    same_as_jax((2, *size, 3), (kernel, kernel, 3, 4), (stride, stride), padding)


@pytest.mark.parametrize("dilations", [((2, 2), (1, 1)), ((1, 1), (2, 2)), ((2, 3), (1, 2))])
def test_gradients_of_a_dilated_convolution_are_those_of_jax(dilations):
    same_as_jax((2, 5, 6, 3), (4, 3, 3, 2), (1, 2), ((2, 2), (1, 3)), *dilations)


def same_as_jax(x_shape, w_shape, strides, padding, lhs_dilation=(1, 1), rhs_dilation=(1, 1)):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, w = jnp.asarray(rng.standard_normal(x_shape)), jnp.asarray(rng.standard_normal(w_shape))

        @functools.partial(jax.jit, static_argnums=0)
        def run(conv):
            y, vjp = jax.vjp(
                lambda x, w: conv(x, w, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers=NHWC), x, w
            )
            return y, *vjp(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

        for ours, theirs in zip(run(convolution.conv_general_dilated), run(lax.conv_general_dilated), strict=True):
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_a_convolution_keeps_types_apart():
    x, w = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 2, 2), jnp.bfloat16)
    conv = functools.partial(convolution.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    y, vjp = jax.vjp(lambda x, w: conv(x, w, preferred_element_type=jnp.float32), x, w)
    assert y.dtype == jnp.float32
    assert [g.dtype for g in vjp(y)] == [jnp.bfloat16] * 2
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda x, w: conv(x, w, precision="highest").sum(), (0, 1)))(x, w))
    assert jaxpr.count("conv_general_dilated[") == 3
    assert jaxpr.count("Precision.HIGHEST") + jaxpr.count("precision=HIGHEST") >= 3


def test_off_cpu_a_convolution_is_the_one_whose_gradients_compilers_know(monkeypatch):
    x, w = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))

    def gradient(conv):
        return str(jax.make_jaxpr(jax.grad(lambda x, w: conv(x, w, (1, 1), "SAME").sum(), (0, 1)))(x, w))

    own = functools.partial(lax.conv_general_dilated, dimension_numbers=NHWC)
    assert gradient(convolution.conv_general_dilated) != gradient(own)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert gradient(convolution.conv_general_dilated) == gradient(own)


@pytest.mark.parametrize("features", [3, 8])
def test_channels_by_eights_change_nothing(monkeypatch, features):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 4, 4, 6)), jnp.bfloat16)
    w = jnp.asarray(rng.standard_normal((3, 3, 6, features)), jnp.bfloat16)

    def value_and_gradients():
        y, vjp = jax.vjp(lambda x, w: convolution.conv_general_dilated(x, w, (1, 1), "SAME"), x, w)
        return y, *vjp(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))

    plain = value_and_gradients()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert convolution._by_eights(x, w)[1].shape == (3, 3, 8, 8)
    for ours, wanted in zip(value_and_gradients(), plain, strict=True):
        assert (ours.shape, ours.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(np.float32(ours), np.float32(wanted), atol=0.02 * float(jnp.abs(wanted).max()))


def test_a_wide_convolution():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 4, 4, 6)), jnp.bfloat16)
    wide = convolution.wide_conv(3, jnp.bfloat16, param_dtype=jnp.float32)
    plain = convolution.conv(3, dtype=jnp.float32, param_dtype=jnp.float32)
    params = plain.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, wide.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, params)
    params["params"]["kernel"] = params["params"]["kernel"].astype(jnp.bfloat16).astype(jnp.float32)
    params["params"]["bias"] = jnp.asarray([0.123456789, 1, 2])

    def gradient(conv):
        return jax.grad(lambda params, x: jnp.sum(jnp.sin(conv.apply(params, x))), (0, 1))(params, x)

    y = wide.apply(params, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, plain.apply(params, x), atol=1e-5)
    for ours, wanted in zip(*map(jax.tree.leaves, (gradient(wide), gradient(plain))), strict=True):
        assert ours.dtype == wanted.dtype
        np.testing.assert_allclose(np.float32(ours), np.float32(wanted), atol=0.02 * float(jnp.abs(wanted).max()))


def test_a_convolution_refuses_what_it_does_not_do():
    x, w = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))
    with pytest.raises(NotImplementedError, match="grouped"):
        convolution.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=2)
    with pytest.raises(NotImplementedError, match="layout"):
        convolution.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))


def test_doubling_is_the_convolution_of_the_interleaved_picture():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    w = rng.standard_normal((4, 4, 4, 3)).astype(np.float32)
    ours = convolution.double_size_conv(3, use_bias=False).apply({"params": {"kernel": w}}, x)
    theirs = lax.conv_general_dilated(x, w, (1, 1), ((2, 2), (2, 2)), (2, 2), dimension_numbers=NHWC)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_an_enlarged_convolution_is_that_of_repeated_pixels():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5, 4)))
        types = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        ours, plain = convolution.enlarged_conv(6, **types), convolution.conv(6, **types)
        params = plain.init(jax.random.key(0), x)
        assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, params)

        def value_and_gradients(apply):
            y, transpose = jax.vjp(apply, params, x)
            return y, transpose(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

        found = value_and_gradients(ours.apply)
        wanted = value_and_gradients(lambda params, x: plain.apply(params, x.repeat(2, axis=1).repeat(2, axis=2)))
        for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
