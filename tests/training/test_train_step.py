import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding

from benchmarks import agreement, bad_numbers
from dream_jax import experiment, objectives
from dream_jax.data import batches
from dream_jax.optimizers import make_optimizer
from dream_jax.runtime import sharding
from dream_jax.training import flat, loop, train_state
from dream_jax.training import weights as model_weights
from dream_jax.training.bad_numbers import is_finite
from dream_jax.training.train_step import make_losses, make_train_step

BATCH, SIZE, EPOCH = 4, 16, 5
CONSERVATIVE = (
    *("objective.name=conservative_dream", "objective.kind=eps", "task.name=unconditional", "task.residual=False"),
    *("objective.distance=l2", "objective.minimum=0.1", "objective.maximum=0.5", "objective.ramp_epochs=20"),
    *("objective.start_epoch=10", "schedule.continuous=False"),
)


def small(*changes):
    return experiment.build(tiny.tiny_config(*tiny.SMALL, *changes))


def losses_of(built):
    return make_losses(built, jax.random.key(7, impl="threefry2x32"), EPOCH)


def batch_of(rows):
    """The pictures of a step's rows: each a function of its row."""
    pictures = np.random.default_rng(3).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    return {"image": jnp.asarray(pictures[np.asarray(rows)]), "row": jnp.asarray(rows, jnp.int32)}


def weights(built):
    return jax.tree.map(jnp.asarray, agreement.weights(model_weights.shapes_of(built)))


def lowered(built, rectify=True):
    """The gradient of the mean loss, as a program not yet compiled."""
    losses = losses_of(built)
    gradient = jax.jit(jax.value_and_grad(lambda params, batch, step: losses(params, batch, step, rectify)[0].mean()))
    return gradient.lower(weights(built), batch_of(range(BATCH)), jnp.int32(0))


def test_p_none_is_the_standard_objective_to_the_letter():
    standard, off, on = (
        lowered(small(change)) for change in ("objective.name=standard", "objective.p=None", "objective.p=1.0")
    )
    # The same program has the same loss and gradient to the bit.
    assert off.as_text() == standard.as_text() != on.as_text()
    # Forward and backward are three passes, and the self-estimate is a fourth.
    assert on.cost_analysis()["flops"] / standard.cost_analysis()["flops"] == pytest.approx(4 / 3, rel=0.05)


def test_conservative_dream_is_the_standard_objective_before_its_start():
    conservative = small(*CONSERVATIVE)
    standard = small(*CONSERVATIVE, "objective.name=standard")
    assert lowered(conservative, rectify=False).as_text() == lowered(standard).as_text()
    assert [objectives.rectifies(conservative.config.objective, step, EPOCH) for step in (0, 49, 50, 99)] == [
        False,
        False,
        True,
        True,
    ]


class Recorder:
    """A network of one number, that keeps what it is given."""

    def __init__(self):
        self.calls = []

    def told(self, schedule, alpha):
        return alpha

    def apply(self, variables, inputs, level, dropout_keys=None):
        # The condition comes first.
        x = inputs[..., -3:]
        output = jnp.tanh(variables["params"] * x)
        self.calls.append((np.float64(x), np.float64(level), np.float64(output), dropout_keys))
        return output


@pytest.mark.parametrize("step", [50, 73, 120])
def test_conservative_dream_from_its_start_is_the_mix_by_the_formulas(step):
    recorder = Recorder()
    built = small(*CONSERVATIVE)._replace(network=recorder)
    batch = batch_of(range(8))
    loss, facts = losses_of(built)(jnp.float32(0.7), batch, jnp.int32(step), True)
    (x_t, alpha, eps_hat, first), (x_rect, _, second_hat, second) = recorder.calls

    ramp = min(step // EPOCH / 20, 1)
    lam = ramp * (0.1 + 0.4 * (np.float64(facts["t"]) - 1) / built.schedule.num_steps)
    np.testing.assert_allclose(facts["lam"], lam, rtol=1e-5)
    np.testing.assert_array_equal(alpha, np.float32(built.schedule.alpha[facts["t"]]))

    x0 = np.float64(batch["image"]) / 127.5 - 1
    alpha, sigma, lam = (v[:, None, None, None] for v in (alpha, built.schedule.sigma[facts["t"]], lam))
    eps = (x_t - alpha * x0) / sigma
    x0_hat = np.clip((x_t - sigma * eps_hat) / alpha, -1, 1)
    np.testing.assert_allclose(x_rect, alpha * (lam * x0_hat + (1 - lam) * x0) + sigma * eps, atol=1e-4)
    mix = 0.7 * (eps_hat - eps) ** 2 + 0.3 * (second_hat - eps) ** 2
    np.testing.assert_allclose(loss, mix.mean((1, 2, 3)), rtol=1e-3)
    assert not np.any(jax.random.key_data(first) == jax.random.key_data(second))


def test_first_pass_has_no_dropout_and_sees_the_plain_noise():
    recorder = Recorder()
    built = small("task.residual=False", "objective.kind=eps")._replace(network=recorder)
    _, facts = losses_of(built)(jnp.float32(0.7), batch_of(range(4)), jnp.int32(3), True)
    (x_t, alpha, eps_hat, keys), (rectified, _, _, dropout_keys) = recorder.calls
    assert keys is None and dropout_keys is not None
    # x_t and its rectified form differ by sigma lam (eps - eps_hat), with lam = sigma at p = 1.
    sigma = np.sqrt(1 - alpha**2)
    x0 = np.float64(batch_of(range(4))["image"]) / 127.5 - 1
    alpha, sigma = (v[:, None, None, None] for v in (alpha, sigma))
    eps = (x_t - alpha * x0) / sigma
    np.testing.assert_allclose(rectified - x_t, sigma**2 * (eps - eps_hat), atol=1e-3)
    np.testing.assert_allclose(facts["lam"], sigma[:, 0, 0, 0], rtol=1e-3)


def test_an_example_is_a_function_of_its_row_and_the_step_only():
    built = small()
    losses = losses_of(built)
    params = weights(built)
    run = jax.jit(lambda batch, step: losses(params, batch, step, True))
    whole = run(batch_of(range(8)), jnp.int32(3))
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    permuted = run(batch_of(order), jnp.int32(3))
    half = run(batch_of(range(4)), jnp.int32(3))
    later = run(batch_of(range(4)), jnp.int32(4))
    for a, b in zip(jax.tree.leaves(permuted), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b[np.array(order)], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b[:4], rtol=1e-5)
    assert not np.any(np.isclose(later[0], half[0], rtol=1e-5))


def test_steps_that_rectify():
    def steps(*changes, count=12):
        config = tiny.tiny_config(*changes)
        return [step for step in range(count) if objectives.rectifies(config.objective, step, EPOCH)]

    assert steps() == list(range(12))
    assert steps("objective.p=None") == steps("objective.name=standard") == []
    assert steps("objective.estimate_every=4") == [0, 4, 8]
    assert steps("objective.start_step=7") == [7, 8, 9, 10, 11]
    assert steps("objective.start_step=7", "objective.start_epoch=2") == [10, 11]
    assert steps("objective.start_epoch=1", "objective.estimate_every=3") == [6, 9]


def make_stepper(*changes):
    """(train_step, start, batch): a train step of two microbatches, and what to feed it."""
    built = small("accumulation=2", "optimizer.learning_rate=0.01", "ema_decay=0.5", *changes)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(built.config.optimizer)
    state = train_state.start(weights(built), optimizer)
    specs = sharding.state_specs(state, mesh)
    state = jax.device_put(state, sharding.named(specs, mesh))
    train_step = make_train_step(built, optimizer, mesh, specs, EPOCH)
    batch = jax.device_put(batch_of(range(BATCH)), NamedSharding(mesh, sharding.BATCH))
    return train_step, lambda: jax.tree.map(jnp.copy, state), batch


@pytest.fixture(scope="module")
def stepper():
    return make_stepper()


def test_a_step_reduces_once_outside_the_loop_over_microbatches(stepper):
    train_step, make, batch = stepper

    def names(jaxpr, within=False):
        for equation in jaxpr.eqns:
            if within:
                yield equation.primitive.name
            inner = within or equation.primitive.name in ("scan", "while")
            for value in equation.params.values():
                for sub in value if isinstance(value, (tuple, list)) else [value]:
                    sub = getattr(sub, "jaxpr", sub)
                    if hasattr(sub, "eqns"):
                        yield from names(sub, inner)

    looped = set(names(train_step.trace(make(), batch, True).jaxpr.jaxpr))
    assert "conv_general_dilated" in looped
    assert not [name for name in looped if name.startswith(("psum", "all_", "reduce_scatter", "ppermute"))]


def test_runs_of_other_seeds_take_the_same_program_and_other_noise():
    (one, make, batch), (other, _, _) = make_stepper(), make_stepper("seed=7")
    programs = [step.lower(make(), batch, True).as_text() for step in (one, other)]
    assert programs[0] == programs[1]
    errors = [float(step(make(), batch, True)[1]["eps_error"]) for step in (one, one, other)]
    assert errors[0] == errors[1] != errors[2]


def test_the_network_is_traced_once_for_the_estimate_and_once_for_the_gradient(monkeypatch):
    traced, predict = [], experiment.Experiment.predict
    monkeypatch.setattr(experiment.Experiment, "predict", lambda *given: traced.append(None) or predict(*given))
    train_step, make, batch = make_stepper()
    train_step.trace(make(), batch, True)
    assert len(traced) == 2


def test_losses_at_noise_alone_are_finite():
    # Of two levels, half of the examples have the last, where alpha is 0.
    process = "schedule.name=rddm", "schedule.num_steps=2", "schedule.continuous=False", "evaluation.steps=1,"
    losses_of = make_losses(small(*process), jax.random.key(0, impl="threefry2x32"), EPOCH)
    _, make, batch = make_stepper(*process)
    losses, facts = jax.jit(losses_of, static_argnums=3)(flat.trees(make().params), batch, jnp.int32(0), True)
    assert set(np.asarray(facts["t"])) == {1, 2} and np.isfinite(losses).all()


def test_a_step_donates_its_state(stepper):
    train_step, make, batch = stepper
    state = make()
    train_step(state, batch, True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_the_average_starts_as_a_copy_and_follows_the_weights(stepper):
    train_step, make, batch = stepper
    state = make()
    expected = jax.tree.map(np.asarray, state.params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, expected)
    for step in range(8):
        state, _ = train_step(state, batch, True)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * np.asarray(p), expected, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.ema, expected)
    assert int(state.step) == 8


def test_a_step_that_is_not_finite_is_not_applied(stepper):
    train_step, make, batch = stepper
    state, metrics = train_step(make(), batch, True)
    params = flat.trees(state.params)
    params |= {"conv_in": jax.tree.map(lambda a: a * 1e38, params["conv_in"])}
    poisoned = state.replace(params=jax.tree.map(jnp.asarray, flat.flatten(params)))
    before = jax.tree.map(np.asarray, poisoned)
    after, bad = train_step(poisoned, batch, True)
    assert not np.isfinite(bad["gradient_norm"])
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=before.step), before)
    assert int(after.step) == int(before.step) + 1
    metrics, bad = jax.device_get((metrics, bad))
    assert loop.summarise([metrics, bad, None, metrics], last=13) == (
        loop.summarise([metrics] * 2, last=2) | {"skipped": 2, "skipped_steps": [11, 12]}
    )


def test_a_nan_in_one_place_is_not_applied():
    """In the gradient, in the loss, and in a picture; its type alone is not what does it."""

    def is_not_applied(train_step, state, batch):
        before = jax.tree.map(np.asarray, state)
        state, metrics = train_step(state, batch, True)
        jax.tree.map(np.testing.assert_array_equal, state.replace(step=before.step), before)
        assert not is_finite(jax.device_get(metrics))
        return state, metrics

    with bad_numbers.wrong("gradient", step=1), bad_numbers.wrong("loss", step=2):
        train_step, make, batch = make_stepper()
        with bad_numbers.wrong("picture", step=1):
            bad = batches.Batches(np.asarray(batch["image"]).repeat(3, 0), BATCH, batch["image"].sharding)(0)
        batch = batch | {"image": jax.device_put(batch["image"].astype(jnp.float32), batch["image"].sharding)}
        state, metrics = is_not_applied(train_step, make(), batch)
        assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["gradient_norm"])
        state, metrics = is_not_applied(train_step, state, batch)
        assert not np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])
        state, metrics = is_not_applied(train_step, state, bad)
        assert not np.isfinite(metrics["loss"]) and not np.isfinite(metrics["gradient_norm"])
        assert is_finite(jax.device_get(train_step(state, batch, True)[1]))
