import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dream_jax import diffusion, noise_schedule

VP = noise_schedule.linear(50, 1e-3, 0.2)
FLOW = noise_schedule.flow(50)
SCHEDULES = {"vp": VP, "flow": FLOW}


def images(seed=0, batch=3):
    x0, eps = np.random.default_rng(seed).standard_normal((2, batch, 4, 5, 3))
    return x0, eps


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_conversions_invert_targets(kind, schedule):
    x0, eps = images()
    t = np.array([1, 20, 49])
    alpha, sigma = SCHEDULES[schedule].alpha[t], SCHEDULES[schedule].sigma[t]
    x_t = diffusion.add_noise(x0, eps, alpha, sigma)
    output = diffusion.target(kind, x0, eps, alpha, sigma)
    np.testing.assert_allclose(diffusion.to_eps(kind, output, x_t, alpha, sigma), eps, atol=1e-10)
    np.testing.assert_allclose(diffusion.to_x0(kind, output, x_t, alpha, sigma), x0, atol=1e-10)


@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_any_output_gives_an_eps_and_an_x0_that_make_up_x_t(kind):
    x_t, output = images(1)
    for schedule in SCHEDULES.values():
        alpha, sigma = schedule.alpha[[5, 20, 45]], schedule.sigma[[5, 20, 45]]
        x0, eps = (f(kind, output, x_t, alpha, sigma) for f in (diffusion.to_x0, diffusion.to_eps))
        np.testing.assert_allclose(diffusion.add_noise(x0, eps, alpha, sigma), x_t, atol=1e-10)
        np.testing.assert_allclose(diffusion.target(kind, x0, eps, alpha, sigma), output, atol=1e-10)


@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_x0_error_scale_is_the_derivative_of_to_x0(kind):
    for schedule in SCHEDULES.values():
        alpha, sigma = schedule.alpha[10], schedule.sigma[10]
        slope = diffusion.to_x0(kind, 1.0, 0.3, alpha, sigma) - diffusion.to_x0(kind, 0.0, 0.3, alpha, sigma)
        np.testing.assert_allclose(abs(slope), diffusion.x0_error_scale(kind, alpha, sigma), rtol=1e-12)


@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_conversions_are_finite_at_both_ends(kind):
    x_t, output = images(2, batch=2)
    for alpha, sigma in ((1.0, 0.0), (0.0, 1.0)):
        for convert in (diffusion.to_eps, diffusion.to_x0):
            assert np.isfinite(convert(kind, output, x_t, np.float64(alpha), np.float64(sigma))).all()


@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_numpy_stays_numpy_and_jax_stays_jax(kind):
    x0, eps = images()
    alpha, sigma = VP.alpha[[1, 2, 3]], VP.sigma[[1, 2, 3]]
    for function in (diffusion.target, diffusion.to_eps, diffusion.to_x0):
        on_host = function(kind, x0, eps, alpha, sigma)
        assert isinstance(on_host, np.ndarray) and on_host.dtype == np.float64
        on_device = jax.jit(function, static_argnums=0)(kind, *map(jnp.float32, (x0, eps, alpha, sigma)))
        assert isinstance(on_device, jax.Array) and on_device.dtype == jnp.float32
        np.testing.assert_allclose(on_device, on_host, rtol=2e-5, atol=1e-4)


def test_unknown_kind_is_refused():
    x0, eps = images()
    for function in (diffusion.target, diffusion.to_eps, diffusion.to_x0):
        with pytest.raises(ValueError, match="choose one of eps, x0, v, flow"):
            function("noise", x0, eps, 0.6, 0.8)


def test_expand():
    x0, _ = images()
    level = np.array([1.0, 2.0, 3.0])
    assert diffusion.expand(level, x0).shape == (3, 1, 1, 1)
    np.testing.assert_array_equal(diffusion.expand(level, x0) * x0, level[:, None, None, None] * x0)
    kept = level.reshape(3, 1, 1, 1)
    assert diffusion.expand(kept, x0) is kept
    assert diffusion.expand(0.5, x0) == 0.5
    assert diffusion.expand(jnp.float32(0.5), x0).shape == ()


def test_levels_of_any_shape_agree():
    x0, eps = images()
    alpha, sigma = VP.alpha[[7, 7, 7]], VP.sigma[[7, 7, 7]]
    flat = diffusion.add_noise(x0, eps, alpha, sigma)
    full = (3, 1, 1, 1)
    np.testing.assert_array_equal(flat, diffusion.add_noise(x0, eps, alpha.reshape(full), sigma.reshape(full)))
    np.testing.assert_array_equal(flat, diffusion.add_noise(x0, eps, alpha[0], sigma[0]))


def posterior_coefficients(alpha_from, alpha_to):
    """(coefficient of x_t, of x0, standard deviation)."""
    of_x_t, deviation = diffusion.posterior(1.0, 0.0, alpha_from, alpha_to)
    of_x0, _ = diffusion.posterior(0.0, 1.0, alpha_from, alpha_to)
    return of_x_t, of_x0, deviation


def test_posterior_of_neighbours_is_the_textbook_formula():
    betas = np.linspace(1e-3, 0.2, 50)
    bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    now, before = bar[1:], bar[:-1]
    of_x_t, of_x0, deviation = posterior_coefficients(VP.alpha[1:], VP.alpha[:-1])
    np.testing.assert_allclose(of_x0, np.sqrt(before) * betas / (1 - now), rtol=1e-10)
    np.testing.assert_allclose(of_x_t, np.sqrt(1 - betas) * (1 - before) / (1 - now), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(deviation**2, (1 - before) / (1 - now) * betas, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("t, s, r", [(50, 30, 10), (3, 2, 1), (50, 1, 0), (20, 19, 5)])
def test_two_moves_have_the_distribution_of_one(t, s, r):
    alpha = VP.alpha
    direct = posterior_coefficients(alpha[t], alpha[r])
    first, second = posterior_coefficients(alpha[t], alpha[s]), posterior_coefficients(alpha[s], alpha[r])
    of_x_t = second[0] * first[0]
    of_x0 = second[0] * first[1] + second[1]
    deviation = np.hypot(second[0] * first[2], second[2])
    np.testing.assert_allclose((of_x_t, of_x0, deviation), direct, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("t, s", [(50, 10), (2, 1), (1, 0), (50, 0)])
def test_posterior_keeps_the_forward_process(t, s):
    # Averaged over q(x_t | x0), a move must land on q(x_s | x0).
    of_x_t, of_x0, deviation = posterior_coefficients(VP.alpha[t], VP.alpha[s])
    np.testing.assert_allclose(of_x_t * VP.alpha[t] + of_x0, VP.alpha[s], rtol=1e-10)
    np.testing.assert_allclose(np.hypot(of_x_t * VP.sigma[t], deviation), VP.sigma[s], rtol=1e-10, atol=1e-12)
