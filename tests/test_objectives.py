import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from dream_jax import diffusion, noise_schedule, objectives
from dream_jax.config import keys
from dream_jax.errors import UserError

SCHEDULE = noise_schedule.linear(100, 1e-3, 0.1)
T = np.array([1, 30, 60, 99])


def settings(**changes):
    return ConfigDict(keys.defaults().objective.to_dict() | {"distance": "l2"} | changes)


def draw(size=32):
    x0, eps = jax.random.normal(jax.random.key(0), (2, 4, size, size, 2))
    alpha, sigma = jnp.float32(SCHEDULE.alpha[T]), jnp.float32(SCHEDULE.sigma[T])
    drop, more = jnp.zeros((4, 2)), jax.random.split(jax.random.key(1), 4)
    return objectives.Draw(x0, eps, jnp.asarray(T), alpha, sigma, SCHEDULE, drop, more)


class Recorder:
    """A network that keeps what it is given, in order."""

    def __init__(self):
        self.inputs = []

    def __call__(self, x, dropout_keys=None, alpha=None, previous=None):
        self.inputs.append(x)
        return 0.5 * x


def test_inputs_are_perturbed_and_targets_are_not():
    drawn, network = draw(), Recorder()
    losses = objectives.losses(network, drawn, settings(name="input_perturbation", perturbation=0.3), False)
    (x_t,) = network.inputs
    added = x_t - diffusion.add_noise(drawn.x0, drawn.eps, drawn.alpha, drawn.sigma)
    deviation = np.std(added, axis=(1, 2, 3)) / drawn.sigma
    np.testing.assert_allclose(deviation, 0.3, rtol=0.05)
    np.testing.assert_allclose(losses.loss, np.mean((0.5 * x_t - drawn.eps) ** 2, (1, 2, 3)), rtol=1e-5)
    none = objectives.losses(Recorder(), drawn, settings(name="input_perturbation", perturbation=0.0), False)
    chex.assert_trees_all_close(none, objectives.losses(Recorder(), drawn, settings(name="standard"), False))


def test_a_rollout_of_no_length_is_the_standard_objective():
    none = objectives.losses(Recorder(), draw(), settings(name="scheduled_sampling", span=0.0), False)
    chex.assert_trees_all_close(
        none, objectives.losses(Recorder(), draw(), settings(name="standard"), False), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_rollouts_of_a_network_that_knows_the_picture_change_nothing(kind):
    drawn = draw()

    def oracle(x, dropout_keys=None, alpha=None):
        alpha = drawn.alpha if alpha is None else alpha
        sigma = jnp.sqrt(1 - alpha**2)
        eps = (x - diffusion.expand(alpha, x) * drawn.x0) / diffusion.expand(sigma, x)
        return diffusion.target(kind, drawn.x0, eps, alpha, sigma)

    chosen = settings(name="scheduled_sampling", span=0.3, rollout=3, kind=kind)
    x, *level = objectives._rolled_out(oracle, drawn, chosen)
    chex.assert_trees_all_close(level, [drawn.alpha, drawn.sigma])
    chex.assert_trees_all_close(x, diffusion.add_noise(drawn.x0, drawn.eps, *level), atol=1e-4)
    assert np.all(np.asarray(objectives.losses(oracle, drawn, chosen, False).loss) < 1e-6)


def test_a_rollout_is_the_samplers_way_from_a_noisier_level():
    """One step of a network that halves its input, by hand; the level nearest T begins at T."""
    drawn, network = draw(), Recorder()
    x, *_ = objectives._rolled_out(network, drawn, settings(name="scheduled_sampling", span=0.2, rollout=1))
    begin = np.minimum(T + 20, 100)
    far = diffusion.add_noise(
        drawn.x0, drawn.eps, jnp.float32(SCHEDULE.alpha[begin]), jnp.float32(SCHEDULE.sigma[begin])
    )
    np.testing.assert_allclose(network.inputs[0], far, rtol=1e-5)
    ratio = [1 / SCHEDULE.alpha[begin], SCHEDULE.sigma[begin] / SCHEDULE.alpha[begin]]
    keep = SCHEDULE.alpha[T] * (ratio[0] - 0.5 * ratio[1]) + 0.5 * SCHEDULE.sigma[T]
    np.testing.assert_allclose(x, far * keep[:, None, None, None], rtol=1e-4, atol=1e-4)


def test_half_of_the_examples_are_shown_the_estimate():
    drawn, shown = draw(8), []
    count = 64
    drawn = drawn._replace(
        **{name: jnp.repeat(getattr(drawn, name), 16, 0) for name in ("x0", "eps", "t", "alpha", "sigma", "dropout")},
        keys=jax.random.split(jax.random.key(3), count),
        constrain=lambda x0: jnp.clip(x0, -1, 1),
    )

    def network(x, dropout_keys=None, alpha=None, previous=None):
        shown.append(previous)
        return 0.5 * x

    losses = objectives.losses(network, drawn, settings(name="self_conditioning"), False)
    chex.assert_trees_all_close(losses, objectives.losses(Recorder(), drawn, settings(name="standard"), False))
    nothing, previous = shown
    x_t = diffusion.add_noise(drawn.x0, drawn.eps, drawn.alpha, drawn.sigma)
    x0_hat = np.clip(diffusion.to_x0("eps", 0.5 * x_t, x_t, drawn.alpha, drawn.sigma), -1, 1)
    whether = np.asarray([np.any(picture) for picture in previous])
    assert nothing is None and 0.25 < whether.mean() < 0.75
    np.testing.assert_allclose(previous, np.where(whether[:, None, None, None], x0_hat, 0), rtol=1e-5, atol=1e-6)


def test_the_second_pass_has_fresh_noise_where_it_is_asked_for():
    drawn = draw()
    same, fresh = Recorder(), Recorder()
    objectives.losses(same, drawn, settings(), True)
    objectives.losses(fresh, drawn, settings(noise="fresh"), True)
    np.testing.assert_array_equal(same.inputs[0], fresh.inputs[0])
    sigma = drawn.sigma[:, None, None, None]
    other = (fresh.inputs[1] - same.inputs[1]) / sigma + drawn.eps
    np.testing.assert_allclose(np.std(other, axis=(1, 2, 3)), 1, rtol=0.05)
    assert abs(np.corrcoef(np.ravel(other), np.ravel(drawn.eps))[0, 1]) < 0.05


def test_noise_is_added_to_the_estimate_in_proportion_to_the_weight():
    drawn = draw()
    plain, noisy = Recorder(), Recorder()
    errors = [
        objectives.losses(network, drawn, settings(estimate_noise=size), True).eps_error
        for network, size in ((plain, 0.0), (noisy, 0.5))
    ]
    # It is reported without.
    np.testing.assert_array_equal(*errors)
    added = np.std(noisy.inputs[1] - plain.inputs[1], axis=(1, 2, 3))
    np.testing.assert_allclose(added, 0.5 * drawn.sigma**2, rtol=0.05)


def test_further_noises_are_independent():
    drawn = draw()
    first, second, again = (objectives.further_noise(drawn, number) for number in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    for a, b in ((first, second), (first, drawn.eps), (first[0], first[1])):
        assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 0.05


def test_the_standard_objective_comes_back_at_the_stop():
    config = tiny.tiny_config("objective.start_step=2", "objective.stop_step=5").objective
    assert [step for step in range(9) if objectives.rectifies(config, step, 3)] == [2, 3, 4]


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_min_snr_is_for_squared_errors(name):
    changes = ["objective.min_snr_gamma=5.0", "objective.distance=l1", f"objective.name={name}", "objective.kind=eps"]
    with pytest.raises(UserError, match="defined for squared errors"):
        tiny.tiny_config(*changes)


def test_the_weight_over_levels_is_that_of_the_losses():
    t, lam = objectives.weight_over_levels(settings(p=2.0), SCHEDULE)
    np.testing.assert_allclose(lam, SCHEDULE.sigma[1:] ** 2, rtol=1e-5)
    np.testing.assert_allclose(lam[T - 1], objectives.losses(Recorder(), draw(), settings(p=2.0), True).lam, rtol=1e-5)
    assert t[-1] == 1 and objectives.weight_over_levels(settings(p=None), SCHEDULE) is None
