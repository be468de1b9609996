import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dream_jax import experiment
from dream_jax.optimizers import make_optimizer
from dream_jax.runtime import sharding
from dream_jax.training import flat, integrity, train_state
from dream_jax.training.train_step import make_losses, make_train_step

BATCH, SIZE, EPOCH = 4, 16, 5
DTYPES = "float32", "bfloat16", "int32", "bool"
SHAPES = (), (1,), (3,), (32,), (64,), (0, 4), (5, 7), (2, 16), (3, 3, 6, 32), (33, 2)


def random_tree(seed):
    """Nested, of 0 to 12 leaves."""
    rng = np.random.default_rng(seed)
    tree = {"inner": [{}, ()], "outer": {}}
    for number in range(rng.integers(0, 13)):
        leaf = np.asarray(9 * rng.standard_normal(SHAPES[rng.integers(len(SHAPES))]))
        where = tree["outer"] if rng.random() < 0.5 else tree["inner"][0]
        where[f"leaf {number}"] = leaf.astype(jnp.dtype(DTYPES[rng.integers(len(DTYPES))]))
    return tree


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.shape(x) == np.shape(y)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_comes_back_from_its_buffers(seed):
    tree, multiple = random_tree(seed), [1, 2, 3, 8, 100][seed % 5]
    part = flat.flatten(tree, multiple)
    equal(part.tree(), tree)
    equal(flat.trees({"a": part, "b": np.array(3)}), {"a": tree, "b": np.array(3)})
    leaves, total = jax.tree.leaves(tree), 0
    for dtype, buffer in part.buffers.items():
        used = sum(leaf.size for leaf in leaves if leaf.dtype.name == dtype)
        assert buffer.shape == (-(-used // multiple) * multiple,) and buffer.dtype == dtype
        assert not np.any(buffer[used:])
        total += used
    assert total == sum(leaf.size for leaf in leaves)
    for leaf, start in zip(part.layout.leaves, part.layout.starts, strict=True):
        assert leaf.size % 32 or start % 32 == 0
    # A tree of the same shapes has the same layout, so that nothing is compiled for it again.
    assert flat.layout_of(random_tree(seed), multiple) is part.layout
    shapes = flat.shapes({"a": part})["a"]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), tree
    )


def test_jitted_it_is_the_same():
    tree = {"a": np.arange(70.0, dtype=np.float32).reshape(7, 10), "b": [np.ones(3, np.int32), np.float32(5)]}
    part = flat.flatten(tree, 16)
    equal(jax.jit(functools.partial(flat.flatten, multiple=16))(tree).buffers, part.buffers)
    equal(jax.jit(lambda part: part.tree())(part), tree)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_checksums_of_buffers_are_those_of_the_tree(seed, monkeypatch):
    """However long the runs are that are summed at once, and however many devices hold parts of the buffers."""
    tree = random_tree(seed)
    expected = integrity.describe({"x": jax.tree.map(jnp.asarray, tree), "y": jnp.ones(3)})
    part, mesh = flat.flatten(tree, 8), sharding.make_mesh(jax.device_count())
    monkeypatch.setattr(integrity, "_PART", [7, 64, 2**16][seed % 3])
    for make in (integrity._runs, integrity._summing_runs):
        make.cache_clear()
    for spec in (P(), P("shard")):
        placed = jax.device_put(part, NamedSharding(mesh, spec))
        assert integrity.describe({"x": placed, "y": jnp.ones(3)}) == expected
    for make in (integrity._runs, integrity._summing_runs):
        make.cache_clear()


class Network:
    """One of a few small kernels and biases."""

    def told(self, schedule, alpha):
        return alpha

    def apply(self, variables, inputs, level, dropout_keys=None):
        params = variables["params"]
        hidden = jnp.tanh(inputs @ params["in"]["kernel"] + params["in"]["bias"][None, None, None])
        return hidden @ params["out"]["kernel"] + level[:, None, None, None] * params["out"]["bias"][None, None, None]


def first_params(channels):
    rng = np.random.default_rng(0)
    shapes = {"in": {"kernel": (channels, 11), "bias": (11,)}, "out": {"kernel": (11, 3), "bias": (3,)}}
    return jax.tree.map(lambda shape: rng.standard_normal(shape) / 3, shapes, is_leaf=lambda x: isinstance(x, tuple))


@pytest.mark.parametrize(
    "changes",
    [
        ("optimizer.name=adam", "optimizer.clip=0.1"),
        ("optimizer.name=adamw", "optimizer.weight_decay=0.1", "accumulation=2"),
        ("optimizer.name=adam", "optimizer.epsilon=0.0"),
        ("optimizer.name=sgd",),
    ],
    ids=lambda changes: changes[0] + changes[-1],
)
def test_a_step_is_optax_leaf_by_leaf(changes):
    with jax.enable_x64(True):
        common = f"image_size={SIZE}", "optimizer.learning_rate=0.01", "ema_decay=0.5"
        built = experiment.build(tiny.tiny_config(*tiny.SMALL, *common, *changes))._replace(network=Network())
        mesh, own = sharding.make_mesh(devices=jax.devices()[:1]), make_optimizer(built.config.optimizer)
        # Its state keeps the gradient.
        optimizer = optax.chain(optax.trace(0.0), own)
        params = ema = first_params(built.task.channels + built.task.cond_channels)
        # In buffers that are filled up, as for 64 shards.
        state = train_state.start(params, optimizer, 64)
        specs = sharding.state_specs(state, mesh)
        step = make_train_step(built, optimizer, mesh, specs, EPOCH)
        pictures = np.random.default_rng(3).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
        batch = {"image": jnp.asarray(pictures), "row": jnp.arange(BATCH, dtype=jnp.int32)}
        losses_of = make_losses(built, jax.random.key(built.config.seed, impl="threefry2x32"), EPOCH)
        gradient_of = jax.jit(jax.grad(lambda params, number: losses_of(params, batch, number, True)[0].mean()))
        opt_state = own.init(params)
        for number in range(4):
            state, metrics = step(state, batch, True)
            gradient = flat.trees(state.opt_state[0].trace)
            # Noise is drawn in float32, which two programs round differently.
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
                gradient,
                gradient_of(params, jnp.int32(number)),
            )
            updates, opt_state = own.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            # This rate alone is of float32.
            rate = np.float64(1 - np.float32(min(0.5, (1 + number) / (10 + number))))
            ema = jax.tree.map(lambda e, p, rate=rate: (1 - rate) * e + rate * p, ema, params)
            for name, tree in (("gradient", gradient), ("update", updates), ("parameter", params)):
                norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))
                np.testing.assert_allclose(metrics[f"{name}_norm"], norm, rtol=1e-12)
        expected = train_state.TrainState(np.int32(4), params, ema, opt_state)
        result = flat.trees(state.replace(opt_state=state.opt_state[1]))
        assert jax.tree.structure(result) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
