import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from dream_jax.errors import UserError
from dream_jax.networks import GenerationUNet, SR3UNet, convolution, layers

SR3 = SR3UNet(8, (1, 2), (1,), num_res_blocks=1, norm_groups=4, dropout=0.3)
GENERATION = GenerationUNet(8, (2,), 1, (0,), num_heads=2, norm_groups=4, dropout=0.3)
SMALL = SR3.clone(channel_multipliers=(1,), attention_levels=())
NHWC = ("NHWC", "HWIO", "NHWC")

# Compiling is nearly all that these tests cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes_of(network, channels):
    size = network.divisor
    inputs = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(lambda x, t: network.init(jax.random.key(0), x, t), inputs, level)["params"]


def random_params(network, channels, seed=0):
    """Weights that no part of the network can hide behind: nothing is zero. (Drawn by numpy: no compilation.)"""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.3
        return (scale * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(draw, shapes_of(network, channels))


def example(channels=4, batch=2, height=8, width=8):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, height, width, channels)).astype(np.float32)
    return x, rng.random(batch).astype(np.float32), jax.random.split(jax.random.key(3, impl="threefry2x32"), batch)


@functools.partial(jit, static_argnums=0)
def apply(network, params, x, level, keys=None):
    return network.apply({"params": params}, x, level, keys)


def gradient(network, params, x, level, keys):
    return jax.grad(lambda p: jnp.mean(network.apply({"params": p}, x, level, keys) ** 2))(params)


def distance(a, b):
    """Relative, over whole trees."""
    norm = sum(float(np.sum(np.square(x))) for x in jax.tree.leaves(b))
    parts = jax.tree.map(lambda x, y: float(np.sum(np.square(np.asarray(x) - np.asarray(y)))), a, b)
    return math.sqrt(sum(jax.tree.leaves(parts)) / norm)


def test_parameter_counts_are_the_published_ones():
    for network, channels, count in [(SR3UNet(), 6, 97_807_491), (GenerationUNet(), 3, 54_846_979)]:
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(network, channels))) == count


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

        @functools.partial(jit, static_argnums=0)
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


def test_group_norm_of_a_large_mean():
    x = 1e3 + np.random.default_rng(0).standard_normal((2, 4, 4, 6)).astype(np.float32)

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.group_norm(x, 3, name="norm", dtype=jnp.float32, param_dtype=jnp.float32)

    y = Norm().apply({"params": {"norm": {"scale": np.ones(6), "bias": np.zeros(6)}}}, x)
    groups = x.astype(np.float64).reshape(2, 4, 4, 3, 2)
    mean = groups.mean((1, 2, 4), keepdims=True)
    expected = (groups - mean) / np.sqrt(groups.var((1, 2, 4), keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-3)


def test_encodings():
    x = jnp.asarray([0.0, 0.7, 40.0])
    for encode, last in [(layers.noise_level_encoding, 1e4 ** (-3 / 4)), (layers.time_encoding, 1e-4)]:
        e = encode(x, 8)
        assert e.shape == (3, 8)
        np.testing.assert_allclose(e[:, :4] ** 2 + e[:, 4:] ** 2, np.ones((3, 4)), atol=1e-6)
        np.testing.assert_allclose(e[:, 0], np.sin(x), atol=1e-6)
        np.testing.assert_allclose(e[:, 3], np.sin(x * last), atol=1e-6)


def test_space_to_depth_and_back():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    y = layers.space_to_depth(x, 2)
    assert y.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(y[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
    np.testing.assert_array_equal(layers.depth_to_space(y, 2), x)
    np.testing.assert_array_equal(layers.space_to_depth(x, 1), x)


def test_dropout_is_a_function_of_key_and_layer():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, keys=None):
            return layers.Dropout(0.25, name="a")(x, keys), layers.Dropout(0.25, name="b")(x, keys)

    run = jit(Two().apply)
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), 8)
    x = jnp.ones((8, 16, 16, 4))
    a, b = run({}, x, keys)
    assert set(np.unique(a)) == {0, np.float32(1 / 0.75)}
    np.testing.assert_allclose(np.mean(a), 1, atol=0.03)
    assert 0.3 < np.mean(np.asarray(a) != np.asarray(b)) < 0.45  # independent masks: 2 * 0.25 * 0.75
    assert not np.array_equal(a[0], a[1])
    some = np.asarray([5, 2])
    np.testing.assert_array_equal(run({}, x[:2], keys[some])[0], a[some])
    np.testing.assert_array_equal(Two().apply({}, x)[0], x)
    np.testing.assert_array_equal(run({}, x.astype(jnp.bfloat16), keys)[0] > 0, a > 0)
    with jax.enable_x64(True):
        wide = run({}, jnp.ones(x.shape, jnp.float64), keys)[0]
        assert wide.dtype == jnp.float64
        np.testing.assert_array_equal(wide > 0, a > 0)


NETWORKS = pytest.mark.parametrize("network", [SR3, GENERATION], ids=["sr3", "generation"])


@NETWORKS
def test_what_an_output_depends_on(network):
    params = random_params(network, 4)
    x, level, keys = example()
    y = apply(network, params, x, level)
    assert y.shape == (2, 8, 8, 3) and y.dtype == jnp.float32
    assert not np.allclose(y, apply(network, params, x, level + 0.3), atol=1e-3)

    dropped = apply(network, params, x, level, keys)
    assert not np.allclose(y, dropped, atol=1e-2)
    # Each example for itself, whatever its place and company.
    mixed = apply(network, params, np.stack([x[1], -x[1]]), level[::-1], keys[::-1])
    np.testing.assert_allclose(mixed[0], dropped[1], atol=1e-5)

    half = apply(network.clone(dtype=jnp.bfloat16), params, x, level)
    assert half.dtype == jnp.float32 and 1e-4 < distance(half, y) < 0.05


@NETWORKS
def test_gradients_through_remat_scan_and_shard_map(network):
    params = random_params(network, 4)
    x, level, keys = example()
    whole = jit(functools.partial(gradient, network))(params, x, level, keys)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(whole))

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data"), P("data"), P("data")), out_specs=P())
    def accumulated(params, x, level, keys):
        params = lax.pcast(params, mesh.axis_names, to="varying")

        def body(total, piece):
            return jax.tree.map(jnp.add, total, gradient(network.clone(remat=True), params, *piece)), None

        pieces = jax.tree.map(lambda a: a[:, None], (x, level, keys))
        total, _ = lax.scan(body, jax.tree.map(jnp.zeros_like, params), pieces)
        return lax.psum(jax.tree.map(lambda g: g / 2, total), "data")

    assert distance(jit(accumulated)(params, x, level, keys), whole) < 1e-5


def test_the_network_in_float64():
    with jax.enable_x64(True):
        wide = SMALL.clone(dtype=jnp.float64, param_dtype=jnp.float64)
        params = random_params(wide, 4)
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(params))
        x, level, _ = example()
        y = apply(wide, params, x, level)
    assert y.dtype == np.float64
    assert 1e-12 < distance(apply(SMALL, jax.tree.map(np.float32, params), x, level), y) < 1e-5


@pytest.mark.parametrize("network", [SR3, SR3.clone(patch=2), GENERATION], ids=["sr3", "sr3 patch", "generation"])
def test_any_size_that_divides(network):
    d = network.divisor
    abstract = shapes_of(network, 4)

    def shape(height, width):
        x, level, keys = example(height=height, width=width)
        return jax.eval_shape(lambda p: network.apply({"params": p}, x, level, keys), abstract).shape

    assert shape(2 * d, 5 * d) == (2, 2 * d, 5 * d, 3)
    for height, width in [(d + 1, d), (d, 2 * d - 1)]:
        with pytest.raises(UserError, match=rf"{height} x {width} .*divide by {d}"):
            shape(height, width)


def test_a_patch_is_one_pixel_of_the_network():
    network = SMALL.clone(patch=2)
    x, level, _ = example()
    params = random_params(network, 4)
    inner = SMALL.clone(out_channels=12)
    y = apply(inner, params, layers.space_to_depth(x, 2), level)
    np.testing.assert_allclose(apply(network, params, x, level), layers.depth_to_space(y, 2), atol=1e-6)
    assert [n.divisor for n in (network, SR3.clone(patch=2), SR3UNet(), GenerationUNet())] == [2, 4, 16, 8]


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (SR3.clone(norm_groups=3), "norm_groups"),
        (SR3.clone(attention_levels=(2,)), "attention_levels"),
        (GENERATION.clone(num_heads=3), "num_heads"),
    ],
)
def test_attributes_that_do_not_fit(network, complaint):
    with pytest.raises(UserError, match=complaint):
        shapes_of(network, 4)


def test_initial_weights():
    x, level, _ = example()
    network = SMALL.clone(zero_init_output=True)

    @jit
    def init(key):
        params = network.init(key, x, level)["params"]
        return params["down_0_0"]["conv_0"]["kernel"], params["conv_out"]["kernel"]

    kernel, last = init(jax.random.key(0))
    kernel = kernel.reshape(-1, 8)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(8), atol=1e-5)
    assert not last.any()


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_group_norm_is_flax_own(mean):
    draw = np.random.default_rng(0).normal
    x = jnp.asarray(mean + draw(size=(2, 8, 6, 12)), jnp.float32)
    weight = jnp.asarray(draw(size=x.shape), jnp.float32)
    params = {"scale": jnp.asarray(draw(size=12), jnp.float32), "bias": jnp.asarray(draw(size=12), jnp.float32)}
    ours = layers.GroupNorm(4, dtype=jnp.float32, param_dtype=jnp.float32)
    flax_own = nn.GroupNorm(4, epsilon=1e-5, use_fast_variance=False)

    def value_and_gradients(norm):
        def loss(params, x):
            return jnp.sum(weight * norm.apply({"params": params}, x))

        return norm.apply({"params": params}, x), jax.grad(loss, argnums=(0, 1))(params, x)

    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == {"params": {"bias": (12,), "scale": (12,)}}
    for found, wanted in zip(*(jax.tree.leaves(value_and_gradients(norm)) for norm in (ours, flax_own)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6 * (2 + mean) * float(jnp.abs(wanted).max()))


def test_fused_attention_is_asked_for_what_is_computed_without_it(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 16), jnp.bfloat16)
    attention = layers.Attention(
        norm_groups=4, num_heads=2, qkv_bias=True, dtype=jnp.bfloat16, param_dtype=jnp.float32,
        kernel_init=nn.initializers.lecun_normal(),
    )  # fmt: skip
    params = attention.init(jax.random.key(1), x)
    plain = attention.apply(params, x)
    fused = jax.nn.dot_product_attention
    asked = []

    def stand_in(*inputs, implementation):
        asked.append(implementation)
        return fused(*inputs)

    monkeypatch.setattr(layers, "_has_cudnn_attention", lambda q: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    np.testing.assert_allclose(
        np.float32(attention.apply(params, x)), np.float32(plain), atol=2e-2 * float(jnp.abs(plain).max())
    )
    assert asked == ["cudnn"]
