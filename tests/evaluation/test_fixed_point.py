import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from dream_jax import diffusion, noise_schedule, objectives, samplers, sampling
from dream_jax.__main__ import main
from dream_jax.config import keys
from dream_jax.errors import UserError
from dream_jax.evaluation import fixed_point

PAPER = noise_schedule.linear(2000, 1e-6, 1e-2)


def settings(**changes):
    return ConfigDict(keys.defaults().objective.to_dict() | changes)


# Those of docs/theory.md.
@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        ({"p": None}, 0.993),
        ({"p": 0.0}, 0.350),
        ({"p": 1.0}, 0.703),
        ({"p": 3.0}, 0.906),
        ({"p": 1.0, "stop_step": 100}, 0.993),
        ({"p": 1.0, "noise": "fresh"}, 0.926),
    ],
)
def test_the_table(changes, ratio):
    assert fixed_point.variance_ratio(PAPER, settings(**changes), 0.33, "ddpm", 2000) == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize("noise", objectives.NOISES)
def test_what_the_network_predicts_changes_nothing(noise):
    schedule = noise_schedule.cosine(100)
    alpha, sigma = schedule.at(np.arange(1, 100))
    eps, x0, v = (
        fixed_point.x0_gains(schedule, settings(kind=kind, noise=noise), alpha, sigma, 0.33)
        for kind in ("eps", "x0", "v")
    )
    np.testing.assert_allclose(x0, eps, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(v, eps, rtol=1e-8, atol=1e-12)


def test_the_standard_objective_is_the_conditional_mean():
    schedule = noise_schedule.cosine(100)
    alpha, sigma = schedule.at(np.arange(1, 100))
    gains = fixed_point.x0_gains(schedule, settings(p=None), alpha, sigma, 0.5)
    np.testing.assert_allclose(gains, 0.5 * alpha / (0.5 * alpha**2 + sigma**2), rtol=1e-10)


@jax.jit
def many_samples(rows, gains):
    # Levels may come again, and have one gain each.
    order = jnp.argsort(rows.alpha)
    known = rows.alpha[order], gains[order]
    return sampling.run(
        jax.random.key(0), lambda x, alpha, sigma: jnp.interp(alpha, *known) * x, (400, 16, 16, 1), rows
    )


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_the_variance_is_that_of_many_samples(sampler):
    levels = samplers.levels_of(noise_schedule.cosine(100), 6)
    rows = samplers.make_rows(sampler, levels)._replace(start=0.8)
    gains = 0.4 * rows.alpha / (0.4 * rows.alpha**2 + rows.sigma**2)
    drawn = many_samples(rows, gains)
    assert fixed_point.sampled_variance(rows, gains) == pytest.approx(float(jnp.var(drawn)), rel=0.03)


@pytest.mark.parametrize("noise", objectives.NOISES)
def test_a_network_that_is_trained_comes_to_it(noise):
    """A network of one weight a level, by the loss that training has, from the standard objective's best."""
    chosen, variance, count = settings(noise=noise, p=1.0, distance="l2", kind="eps"), 0.33, 1024
    schedule = noise_schedule.linear(20, 1e-3, 0.5)
    t = np.arange(1, 21)
    alpha, sigma = (jnp.asarray(part, jnp.float32) for part in schedule.at(t))

    def loss(gains, key):
        x0, eps, dropout = jax.random.split(key, 3)
        draw = objectives.Draw(
            variance**0.5 * jax.random.normal(x0, (20, count, 1, 1)),
            jax.random.normal(eps, (20, count, 1, 1)),
            *(jnp.asarray(t), alpha, sigma, schedule, None),
            keys=jax.random.split(dropout, 20),
        )
        draw = draw._replace(dropout=jnp.zeros((20, 2)))
        return objectives.losses(lambda x, _=None: gains[:, None, None, None] * x, draw, chosen, True).loss.sum()

    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 400))

    @jax.jit
    def train(gains):
        def step(carry, key):
            gains, state = carry
            updates, state = optimizer.update(jax.grad(loss)(gains, key), state)
            return (optax.apply_updates(gains, updates), state), None

        return jax.lax.scan(step, (gains, optimizer.init(gains)), jax.random.split(jax.random.key(0), 400))[0][0]

    gains = train(sigma / (alpha**2 * variance + sigma**2))
    rows = samplers.make_rows("ddpm", samplers.levels_of(schedule, 20))
    x0_gains = diffusion.to_x0("eps", np.asarray(gains, float)[::-1], np.ones(20), rows.alpha, rows.sigma)
    expected = fixed_point.variance_ratio(schedule, chosen, variance, "ddpm", 20)
    assert fixed_point.sampled_variance(rows, x0_gains) / variance == pytest.approx(expected, abs=0.03)


def test_the_command_and_its_mistakes(capsys):
    assert main(["fixed_point", "--config", "sr3_faces_16_128", "--variance", "0.33"]) == 0
    said = capsys.readouterr().out
    assert "0.993" in said and "0.703" in said
    assert main(["fixed_point", "--config", "quickstart", "--variance", "0"]) == 2
    with pytest.raises(UserError, match="estimate_every = 2"):
        fixed_point.x0_gains(PAPER, settings(estimate_every=2), [0.5], [0.5], 1.0)
    with pytest.raises(UserError, match="known for standard and dream"):
        fixed_point.x0_gains(PAPER, settings(name="input_perturbation"), [0.5], [0.5], 1.0)
