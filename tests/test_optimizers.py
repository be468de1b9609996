import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from dream_jax.errors import UserError
from dream_jax.optimizers import OPTIMIZERS, make_optimizer
from dream_jax.training import flat, train_state

PARAMS = {"w": jnp.array([3.0, -4.0]), "b": jnp.array(2.0)}
GRADIENT = {"w": jnp.array([0.3, -0.6]), "b": jnp.array(0.0)}
DEFAULTS = {"name": "sgd", "learning_rate": 0.1, "warmup_steps": 0, "betas": (0.9, 0.999), "epsilon": 1e-8}


def make(**options):
    more = {"weight_decay": 0.0, "clip": None, "decay": "constant", "decay_steps": None, "final": 0.0}
    return make_optimizer(ConfigDict(DEFAULTS | more | options))


def updates(optimizer, gradient=GRADIENT, count=1):
    """The updates of `count` steps with one gradient, at fixed parameters."""
    state, made = optimizer.init(PARAMS), []
    for _ in range(count):
        update, state = optimizer.update(gradient, state, PARAMS)
        made.append(update)
    return made


def test_sgd_is_the_scaled_gradient():
    chex.assert_trees_all_close(updates(make())[0], jax.tree.map(lambda g: -0.1 * g, GRADIENT))


@pytest.mark.parametrize("warmup", [1, 2, 5])
def test_warmup_rises_to_the_rate_and_stays(warmup):
    rates = [-update["w"][0] / GRADIENT["w"][0] for update in updates(make(warmup_steps=warmup), count=warmup + 3)]
    np.testing.assert_allclose(rates, 0.1 * np.minimum(np.arange(1, warmup + 4) / warmup, 1), rtol=1e-5)


def test_the_rate_falls_after_the_warmup_and_stays():
    shape = {"cosine": lambda share: 0.5 * (1 + np.cos(np.pi * share)), "linear": lambda share: 1 - share}
    for (name, falls), warmup in itertools.product(shape.items(), (0, 3)):
        optimizer = make(decay=name, decay_steps=8, warmup_steps=warmup, final=0.2)
        rates = [-update["w"][0] / GRADIENT["w"][0] for update in updates(optimizer, count=11)]
        share = np.clip((np.arange(11) - warmup) / (8 - warmup), 0, 1)
        expected = 0.1 * (0.2 + 0.8 * falls(share))
        expected[:warmup] = 0.1 * np.arange(1, warmup + 1) / 3
        np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_clipping_keeps_the_direction_and_bounds_the_global_norm():
    large = jax.tree.map(lambda g: 100 * g, GRADIENT)
    (update,) = updates(make(clip=0.5, learning_rate=1.0), large)
    np.testing.assert_allclose(optax.tree.norm(update), 0.5, rtol=1e-6)
    chex.assert_trees_all_close(update, jax.tree.map(lambda g: -0.5 * g / optax.tree.norm(GRADIENT), GRADIENT))
    chex.assert_trees_all_close(updates(make(clip=10.0)), updates(make()))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_against_its_published_recursion(name):
    b1, b2, epsilon, decay = 0.8, 0.95, 1e-3, 0.01
    optimizer = make(name=name, betas=(b1, b2), epsilon=epsilon, weight_decay=decay)
    g, m, v = np.float64(GRADIENT["w"]), 0.0, 0.0
    for t, update in enumerate(updates(optimizer, count=4), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + epsilon)
        expected = -0.1 * (step + (decay * np.asarray(PARAMS["w"]) if name == "adamw" else 0))
        np.testing.assert_allclose(update["w"], expected, rtol=1e-5)


def test_adamw_decays_where_there_is_no_gradient():
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    (update,) = updates(make(name="adamw", weight_decay=0.2), nothing)
    chex.assert_trees_all_close(update, jax.tree.map(lambda p: -0.1 * 0.2 * p, PARAMS))
    chex.assert_trees_all_equal(updates(make(name="adam", weight_decay=0.2), nothing)[0], nothing)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(UserError, match="adam, adamw, sgd"):
        make(name="adagrad")
    for name in OPTIMIZERS:
        make(name=name)


def test_the_average_follows_at_first_and_then_keeps_its_decay():
    step = np.arange(200_000)
    decay = np.asarray(train_state.ema_decay(step, 0.9999))
    np.testing.assert_allclose(decay[0], 0.1, rtol=1e-6)
    np.testing.assert_allclose(decay[90], 91 / 100, rtol=1e-6)
    assert (np.diff(decay) >= 0).all() and decay.max() == np.float32(0.9999)
    np.testing.assert_array_equal(train_state.ema_decay(jnp.arange(5), 0.0), 0)


def test_a_short_run_forgets_its_initial_weights():
    kept = np.prod(train_state.ema_decay(np.arange(300), 0.9999))
    assert kept < 1e-10 < 0.9999**300


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, inputs, alpha, dropout_keys=None):
        return nn.Dense(3)(inputs) * alpha[:, None, None, None]


def test_the_first_state():
    def create():
        return train_state.create(Tiny(), make(name="adam"), jax.random.key(0), (1, 2, 2, 6))

    state = create()
    assert state.step == 0 and state.step.dtype == jnp.int32
    chex.assert_trees_all_equal(state.params, state.ema)
    # One buffer may not be donated twice.
    for p, e in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
        assert p.unsafe_buffer_pointer() != e.unsafe_buffer_pointer()
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(create), state)
    assert flat.shapes(state.params)["Dense_0"]["kernel"].shape == (6, 3)
