import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from dream_jax.errors import UserError
from dream_jax.networks import GenerationUNet, SR3UNet, layers, parameters

SR3 = SR3UNet(8, (1, 2), (1,), num_res_blocks=1, norm_groups=4, dropout=0.3)
GENERATION = GenerationUNet(8, (2,), 1, (0,), num_heads=2, norm_groups=4, dropout=0.3)
SMALL = SR3.clone(channel_multipliers=(1,), attention_levels=())


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


@functools.partial(jax.jit, static_argnums=0)
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
    whole = jax.jit(functools.partial(gradient, network))(params, x, level, keys)
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

    assert distance(jax.jit(accumulated)(params, x, level, keys), whole) < 1e-5


@pytest.mark.parametrize("network", [SMALL, GENERATION], ids=["sr3", "generation"])
def test_first_parameters_are_those_of_init_to_the_bit(network):
    key, shape = jax.random.key(5, impl="threefry2x32"), (1, 8, 8, 4)
    whole = jax.jit(lambda key: network.init(key, jnp.zeros(shape), jnp.ones(1))["params"])(key)
    for each in network, network.clone(remat=True):
        draw, shapes = parameters.drawing(each, key, shape)
        chex.assert_trees_all_equal_shapes_and_dtypes(shapes, whole)
        chex.assert_trees_all_equal(draw(key), whole)
        assert jax.eval_shape(draw, key) == shapes


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

    @jax.jit
    def init(key):
        params = network.init(key, x, level)["params"]
        return params["down_0_0"]["conv_0"]["kernel"], params["conv_out"]["kernel"]

    kernel, last = init(jax.random.key(0))
    kernel = kernel.reshape(-1, 8)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(8), atol=1e-5)
    assert not last.any()


@pytest.mark.parametrize("network", [SR3, GENERATION])
def test_statistics_measured_on_a_picture_are_those_it_is_judged_by(network):
    params, (x, level, _) = random_params(network, 4), example()
    found, written = jax.jit(lambda *a: network.apply({"params": params}, *a, mutable="statistics"))(x, level)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    judging = [name for name in names if name.endswith(("['scale']", "['qkv']['kernel']"))]
    assert len(jax.tree.leaves(written)) == 2 * len(judging)
    expected = apply(network, params, x, level)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Each example has its own, by which any other may be judged.
    given = jax.jit(lambda statistics, *a: network.apply({"params": params, **statistics}, *a))
    swapped = jax.tree.map(lambda a: a[::-1], written)
    np.testing.assert_allclose(given(written, x, level), expected, atol=1e-5)
    np.testing.assert_allclose(given(swapped, x[::-1], level[::-1])[::-1], expected, atol=1e-5)
    assert np.abs(given(swapped, x, level) - expected).max() > 0.01


def test_making_parameters_measures_nothing():
    variables = jax.eval_shape(lambda x, t: SMALL.init(jax.random.key(0), x, t), *example()[:2])
    assert set(variables) == {"params"}
