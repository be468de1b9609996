import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dream_jax import diffusion, dream, noise_schedule
from dream_jax.errors import UserError

VP = noise_schedule.linear(100, 1e-3, 0.1)
FLOW = noise_schedule.flow(100)
T = np.array([1, 30, 60, 99])
POWERS = (0.0, 0.5, 1.0, 2.0)


def case(kind="eps"):
    """x0, eps [4, 3, 3, 2] and alpha, sigma [4], of the schedule that the kind is used with."""
    x0, eps = jax.random.normal(jax.random.key(0), (2, 4, 3, 3, 2))
    schedule = FLOW if kind == "flow" else VP
    return x0, eps, jnp.float32(schedule.alpha[T]), jnp.float32(schedule.sigma[T])


def network(params, x):
    return jnp.tanh(params["scale"] * x + params["shift"])


PARAMS = {"scale": jnp.float32(0.7), "shift": jnp.float32(-0.2)}


def refuse(_):
    raise AssertionError("the first pass must not run")


def test_signal_is_untouched_by_rectification():
    x0, eps, alpha, sigma = case()
    for p in POWERS:
        lam = dream.power_weight(sigma, p)
        x_t, target = dream.training_pair(lambda x: network(PARAMS, x), x0, eps, alpha, sigma, lam)
        signal = x_t - diffusion.expand(sigma, x0) * target
        np.testing.assert_allclose(signal, diffusion.expand(alpha, x0) * x0, atol=1e-6)


@pytest.mark.parametrize("kind", diffusion.KINDS)
@pytest.mark.parametrize("p", POWERS)
def test_a_perfect_estimate_changes_nothing(kind, p):
    x0, eps, alpha, sigma = case(kind)
    lam = dream.power_weight(sigma, p)
    pair = dream.training_pair(lambda x_t: eps, x0, eps, alpha, sigma, lam, kind)
    chex.assert_trees_all_close(pair, dream.training_pair(refuse, x0, eps, alpha, sigma, None, kind), atol=1e-6)


@pytest.mark.parametrize("kind", diffusion.KINDS)
@pytest.mark.parametrize("p", POWERS)
def test_fresh_noise_is_the_papers_equations_10_to_14(kind, p):
    """The picture that is estimated from x_t is blended into the true one, and noised anew."""
    x0, eps, alpha, sigma = case(kind)
    fresh = jax.random.normal(jax.random.key(1), eps.shape)
    lam = dream.weight("power", alpha, sigma, None, p=p)

    def estimate(x_t):
        return jnp.tanh(0.7 * x_t - 0.2)

    x_t, target = dream.training_pair(estimate, x0, eps, alpha, sigma, lam, kind, fresh)
    a, s, weight = (np.float64(level)[:, None, None, None] for level in (alpha, sigma, lam))
    first = a * np.float64(x0) + s * eps
    estimated = (first - s * np.tanh(0.7 * first - 0.2)) / a
    blended = weight * estimated + (1 - weight) * x0
    second = a * blended + s * fresh
    np.testing.assert_allclose(x_t, second, rtol=1e-5, atol=2e-6)
    # The target still leads to the true picture.
    x0_back = diffusion.to_x0(kind, np.float64(target), second, np.float64(alpha), np.float64(sigma))
    np.testing.assert_allclose(x0_back, x0, atol=1e-4)


@pytest.mark.parametrize("fresh", [False, True])
def test_without_a_weight_or_with_a_perfect_estimate_the_noise_does_not_matter(fresh):
    x0, eps, alpha, sigma = case()
    other = jax.random.normal(jax.random.key(1), eps.shape) if fresh else None
    standard = dream.training_pair(refuse, x0, other if fresh else eps, alpha, sigma, None)
    perfect = dream.training_pair(lambda _: eps, x0, eps, alpha, sigma, sigma, fresh=other)
    chex.assert_trees_all_close(perfect, standard, atol=1e-6)
    plain = dream.training_pair(refuse, x0, eps, alpha, sigma, None, fresh=other)
    chex.assert_trees_all_equal(plain, dream.training_pair(refuse, x0, eps, alpha, sigma, None))


@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_no_gradient_flows_through_the_first_pass(kind):
    x0, eps, alpha, sigma = case(kind)

    def both(params, x0):
        pair = dream.training_pair(lambda x: network(params, x), x0, eps, alpha, sigma, sigma, kind)
        return sum(jnp.sum(part**2) for part in pair)

    chex.assert_trees_all_equal(jax.grad(both)(PARAMS, x0), jax.tree.map(jnp.zeros_like, PARAMS))
    # What does depend on x0 (a learned encoder's, say) is differentiated as if the estimate were a constant.
    eps_hat = network(PARAMS, diffusion.add_noise(x0, eps, alpha, sigma))

    def with_constant_estimate(x0):
        pair = dream.training_pair(lambda _: eps_hat, x0, eps, alpha, sigma, sigma, kind)
        return sum(jnp.sum(part**2) for part in pair)

    np.testing.assert_allclose(jax.grad(both, 1)(PARAMS, x0), jax.grad(with_constant_estimate)(x0), rtol=1e-5)


def test_rectified_noise_is_constant_in_the_estimate():
    x0, eps, _, sigma = case()
    np.testing.assert_array_equal(jax.grad(lambda e: jnp.sum(dream.rectify_noise(eps, e, sigma)))(x0), 0)
    slope = jax.grad(lambda e: jnp.sum(dream.rectify_noise(e, x0, sigma)))(eps)
    np.testing.assert_allclose(slope, jnp.broadcast_to(1 + diffusion.expand(sigma, x0), x0.shape), rtol=1e-6)


@pytest.mark.parametrize("lam", [None, 0.5])
def test_the_reported_error_is_no_part_of_the_gradient(lam):
    x0, eps, alpha, sigma = case()

    def error(params):
        return dream.dream(*[lambda x: network(params, x)] * 2, x0, eps, alpha, sigma, lam)[1].sum()

    chex.assert_trees_all_equal(jax.grad(error)(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS))


@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_the_training_gradient_is_that_of_a_frozen_estimate(kind):
    x0, eps, alpha, sigma = case(kind)

    def loss(params, estimate_params):
        losses, _ = dream.dream(
            lambda x: network(params, x),
            lambda x: network(estimate_params, x),
            *(x0, eps, alpha, sigma, sigma),
            kind=kind,
            distance="l2",
        )
        return jnp.mean(losses)

    chex.assert_trees_all_equal(jax.grad(loss, 1)(PARAMS, PARAMS), jax.tree.map(jnp.zeros_like, PARAMS))
    chex.assert_trees_all_close(jax.grad(lambda p: loss(p, p))(PARAMS), jax.grad(loss)(PARAMS, PARAMS), rtol=1e-5)


@pytest.mark.parametrize("kind", diffusion.KINDS)
@pytest.mark.parametrize("p", POWERS)
def test_a_clean_level_is_finite(kind, p):
    x0, eps, _, _ = case()
    alpha, sigma = jnp.ones(4), jnp.zeros(4)

    def estimate(x_t):
        return diffusion.to_eps(kind, network(PARAMS, x_t), x_t, alpha, sigma)

    pair = dream.training_pair(estimate, x0, eps, alpha, sigma, dream.power_weight(sigma, p), kind)
    chex.assert_tree_all_finite(pair)
    np.testing.assert_allclose(pair[0], x0, rtol=1e-6)


@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_none_is_the_standard_objective_bit_for_bit(kind):
    x0, eps, alpha, sigma = case(kind)
    lam = dream.power_weight(sigma, None)
    assert lam is None
    assert dream.weight("power", alpha, sigma, sigma, p=None) is None
    x_t, target = dream.training_pair(refuse, x0, eps, alpha, sigma, lam, kind)
    np.testing.assert_array_equal(x_t, diffusion.add_noise(x0, eps, alpha, sigma))
    np.testing.assert_array_equal(target, diffusion.target(kind, x0, eps, alpha, sigma))

    def direct(params):
        return jnp.mean(jnp.abs(network(params, x_t) - target), axis=(1, 2, 3)).sum()

    def objective(params):
        losses, _ = dream.dream(lambda x: network(params, x), refuse, x0, eps, alpha, sigma, lam, kind=kind)
        return losses.sum()

    def standard(params):
        return dream.standard(lambda x: network(params, x), x0, eps, alpha, sigma, kind=kind)[0].sum()

    expected = jax.value_and_grad(direct)(PARAMS)
    chex.assert_trees_all_equal(jax.value_and_grad(objective)(PARAMS), expected)
    chex.assert_trees_all_equal(jax.value_and_grad(standard)(PARAMS), expected)


@pytest.mark.parametrize("p", [np.inf, np.nan, -1.0, -np.inf])
def test_impossible_powers_are_refused(p):
    with pytest.raises(UserError, match="None"):
        dream.power_weight(jnp.float32([0.5]), p)


def test_power_zero_rectifies_fully_at_every_level():
    np.testing.assert_array_equal(dream.power_weight(jnp.float32([0, 1e-6, 0.5, 1]), 0.0), 1)


def test_power_weight_is_a_function_of_the_signal_to_noise_ratio():
    snr = np.float32([1e-3, 0.5, 1.0, 30.0])
    vp = 1 / np.sqrt(1 + 1 / snr**2), 1 / np.sqrt(1 + snr**2)
    flow = snr / (1 + snr), 1 / (1 + snr)
    for p in POWERS:
        lam = dream.weight("power", *vp, vp[1], p=p)
        np.testing.assert_allclose(lam, dream.power_weight(vp[1], p), rtol=1e-5)
        np.testing.assert_allclose(lam, dream.weight("power", *flow, flow[1], p=p), rtol=1e-5)


@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_every_kind_trains_on_the_forward_process_of_the_swapped_noise(kind):
    x0, eps, alpha, sigma = case(kind)
    lam = sigma**0.7
    eps_hat = network(PARAMS, diffusion.add_noise(x0, eps, alpha, sigma))
    swapped = eps + diffusion.expand(lam, x0) * (eps - eps_hat)
    x_t, target = dream.training_pair(lambda x: network(PARAMS, x), x0, eps, alpha, sigma, lam, kind)
    np.testing.assert_allclose(x_t, diffusion.add_noise(x0, swapped, alpha, sigma), atol=1e-6)
    np.testing.assert_allclose(diffusion.to_eps(kind, target, x_t, alpha, sigma), swapped, atol=1e-3)
    np.testing.assert_allclose(diffusion.to_x0(kind, target, x_t, alpha, sigma), x0, atol=1e-3)
    if kind == "x0":
        np.testing.assert_array_equal(target, x0)


def test_equals_the_arithmetic_on_x_t():
    # The same thing written as a correction of x_t: x' = x_t + sigma lam (eps - eps_hat).
    x0, eps, alpha, sigma = case()
    x_t = diffusion.add_noise(x0, eps, alpha, sigma)
    error = eps - network(PARAMS, x_t)
    lam = diffusion.expand(sigma, x0)
    expected = x_t + lam * lam * error, eps + lam * error
    pair = dream.training_pair(lambda x: network(PARAMS, x), x0, eps, alpha, sigma, sigma)
    chex.assert_trees_all_close(pair, expected, atol=1e-6)


def test_levels_and_weights_of_any_shape_agree():
    x0, eps, alpha, sigma = case()
    flat = dream.training_pair(lambda x: network(PARAMS, x), x0, eps, alpha, sigma, sigma)
    full = (level.reshape(-1, 1, 1, 1) for level in (alpha, sigma, sigma))
    chex.assert_trees_all_equal(dream.training_pair(lambda x: network(PARAMS, x), x0, eps, *full), flat)
    np.testing.assert_array_equal(dream.rectify_noise(eps, x0, 0.5), dream.rectify_noise(eps, x0, jnp.full(4, 0.5)))


def test_losses_are_per_example_and_report_the_first_pass():
    x0, eps, alpha, sigma = case("x0")

    def estimate(x):
        return network(PARAMS, x)

    for distance, measure in (("l1", jnp.abs), ("l2", jnp.square)):
        losses, error = dream.dream(
            lambda x: 0.5 * x, estimate, x0, eps, alpha, sigma, sigma, kind="x0", distance=distance
        )
        chex.assert_shape((losses, error), (4,))
        first = diffusion.add_noise(x0, eps, alpha, sigma)
        eps_hat = diffusion.to_eps("x0", estimate(first), first, alpha, sigma)
        np.testing.assert_allclose(error, jnp.abs(eps - eps_hat).mean((1, 2, 3)), rtol=1e-5)
        x_t = diffusion.add_noise(x0, dream.rectify_noise(eps, eps_hat, sigma), alpha, sigma)
        np.testing.assert_allclose(losses, measure(0.5 * x_t - x0).mean((1, 2, 3)), rtol=1e-5)


FORMULAS = {
    "power": lambda sigma, time: sigma**1.5,
    "constant": lambda sigma, time: np.ones_like(sigma),
    "linear": lambda sigma, time: time,
    "exponential": lambda sigma, time: (np.exp(3 * time) - 1) / (np.exp(3) - 1),
    "step": lambda sigma, time: (time >= 0.4) * 1.0,
}


@pytest.mark.parametrize("family", dream.WEIGHTS)
def test_weight_families(family):
    time = np.arange(101) / 100
    options = {"p": 1.5, "rate": 3.0, "threshold": 0.4}
    expected = FORMULAS[family](VP.sigma, time)
    lam = dream.weight(family, *map(jnp.float32, (VP.alpha, VP.sigma, time)), **options)
    np.testing.assert_allclose(lam, expected, rtol=1e-5, atol=1e-7)
    bounded = dream.weight(
        family, *map(jnp.float32, (VP.alpha, VP.sigma, time)), minimum=0.2, maximum=0.7, ramp=0.5, **options
    )
    np.testing.assert_allclose(bounded, 0.5 * (0.2 + 0.5 * expected), rtol=1e-5)
    for values in (lam, bounded):
        assert (np.diff(values) >= 0).all()
    assert bounded.min() >= 0.1 and bounded.max() <= 0.36


def test_unknown_weight_is_refused():
    with pytest.raises(UserError, match="choose one of power, constant"):
        dream.weight("cubic", jnp.ones(1), jnp.ones(1), jnp.ones(1))


def test_min_snr_weights_are_the_published_ones():
    alpha, sigma = jnp.float32(VP.alpha[1:]), jnp.float32(VP.sigma[1:])
    snr = np.exp(VP.logsnr[1:])
    gamma = 5.0
    capped = np.minimum(snr, gamma)
    for kind, expected in (("x0", capped), ("eps", capped / snr), ("v", capped / (snr + 1))):
        np.testing.assert_allclose(dream.min_snr_weight(kind, alpha, sigma, gamma), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_min_snr_weights_every_kind_by_its_error_of_x0(kind):
    x0, eps, alpha, sigma = case(kind)
    x_t = diffusion.add_noise(x0, eps, alpha, sigma)
    output = diffusion.target(kind, x0, eps, alpha, sigma) + 0.01
    weighted = dream.min_snr_weight(kind, alpha, sigma, 5.0) * 1e-4
    error = jnp.mean((diffusion.to_x0(kind, output, x_t, alpha, sigma) - x0) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(weighted, jnp.minimum((alpha / sigma) ** 2, 5.0) * error, rtol=2e-3)
    assert np.isfinite(dream.min_snr_weight(kind, jnp.ones(1), jnp.zeros(1), 5.0)).all()


def test_conservative_dream_against_numpy():
    x0, eps, alpha, sigma = case()
    lam = np.float32([0.0, 0.1, 0.3, 0.5])
    losses, error = dream.conservative_dream(
        lambda x: network(PARAMS, x), lambda x: 0.3 * x, x0, eps, alpha, sigma, lam, mix=0.7
    )
    a, s, l = (np.asarray(level, np.float64).reshape(-1, 1, 1, 1) for level in (alpha, sigma, lam))
    x0, eps = np.asarray(x0, np.float64), np.asarray(eps, np.float64)
    x_t = a * x0 + s * eps
    eps_hat = np.tanh(0.7 * x_t - 0.2)
    x0_hat = np.clip((x_t - s * eps_hat) / a, -1, 1)
    assert (abs(x0_hat) == 1).any() and (abs(x0_hat) < 1).any()
    x_rect = a * (l * x0_hat + (1 - l) * x0) + s * eps
    expected = 0.7 * (eps_hat - eps) ** 2 + 0.3 * (0.3 * x_rect - eps) ** 2
    np.testing.assert_allclose(losses, expected.mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(error, abs(eps - eps_hat).mean((1, 2, 3)), rtol=1e-5)


def test_conservative_dream_has_no_gradient_through_the_rectified_input():
    x0, eps, alpha, sigma = case()

    def loss(params, rectified_branch_only):
        losses, _ = dream.conservative_dream(
            lambda x: network(params, x), lambda x: 0.3 * x, x0, eps, alpha, sigma, sigma, mix=rectified_branch_only
        )
        return jnp.sum(losses)

    # With no share of the standard branch, its parameters enter through x_rect alone.
    chex.assert_trees_all_equal(jax.grad(loss)(PARAMS, 0.0), jax.tree.map(jnp.zeros_like, PARAMS))
    assert abs(jax.grad(loss)(PARAMS, 0.7)["scale"]) > 0


def test_conservative_dream_without_weight_is_standard_for_a_network_without_dropout():
    x0, eps, alpha, sigma = case()

    def predict(x):
        return network(PARAMS, x)

    losses, _ = dream.conservative_dream(predict, predict, x0, eps, alpha, sigma, jnp.zeros(4))
    expected, _ = dream.standard(predict, x0, eps, alpha, sigma, distance="l2")
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
