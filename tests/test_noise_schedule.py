import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dream_jax import noise_schedule
from dream_jax.errors import UserError

SR3 = noise_schedule.linear(2000, 1e-6, 1e-2)
VARIANCE_PRESERVING = {
    "sr3": SR3,
    "ddpm": noise_schedule.linear(1000, 1e-4, 2e-2),
    "cosine": noise_schedule.cosine(1000),
    "clipped cosine": noise_schedule.cosine(1000, 1e-4, 0.9999),
}
SCHEDULES = VARIANCE_PRESERVING | {"flow": noise_schedule.flow(1000)}


def draw_many(schedule, count, seed=0, **options):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(jax.vmap(lambda key: noise_schedule.draw(key, schedule, **options)))(keys)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_signal_and_noise_variances_sum_to_one(name):
    schedule = VARIANCE_PRESERVING[name]
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1, rtol=0, atol=1e-15)


def test_flow_levels_sum_to_one():
    schedule = SCHEDULES["flow"]
    np.testing.assert_allclose(schedule.alpha + schedule.sigma, 1, rtol=0, atol=1e-15)
    assert schedule.alpha[-1] == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_run_from_clean_to_noise(name):
    schedule = SCHEDULES[name]
    assert schedule.alpha.dtype == schedule.sigma.dtype == np.float64
    assert len(schedule.alpha) == len(schedule.sigma) == schedule.num_steps + 1
    assert schedule.alpha[0] == 1 and schedule.sigma[0] == 0
    assert (np.diff(schedule.alpha) < 0).all() and (np.diff(schedule.sigma) > 0).all()
    assert schedule.sigma[-1] > 0.99
    with np.errstate(divide="ignore"):
        snr = (schedule.alpha / schedule.sigma) ** 2
    assert schedule.logsnr[0] == np.inf
    np.testing.assert_allclose(np.exp(schedule.logsnr), snr, rtol=1e-12)


def test_linear_equals_the_cumulative_product_of_its_betas():
    betas = np.linspace(1e-6, 1e-2, 2000)
    np.testing.assert_allclose(SR3.alphas_bar[1:], np.cumprod(1 - betas), rtol=1e-12)
    np.testing.assert_allclose(SR3.sigma[1] ** 2, 1e-6, rtol=1e-14)


def test_from_betas_gives_the_betas_back():
    betas = np.random.default_rng(0).uniform(1e-4, 0.5, 20)
    schedule = noise_schedule.from_betas(betas)
    np.testing.assert_allclose(1 - schedule.alphas_bar[1:] / schedule.alphas_bar[:-1], betas, rtol=1e-10)


def test_cosine_clips_its_betas():
    plain, clipped = noise_schedule.cosine(100), noise_schedule.cosine(100, 1e-3, 0.5)
    angle = (np.arange(100) / 100 + 0.008) / 1.008 * np.pi / 2
    np.testing.assert_allclose(plain.alpha[:100], np.cos(angle) / np.cos(angle[0]), rtol=1e-10)
    plain, clipped = (1 - s.alphas_bar[1:] / s.alphas_bar[:-1] for s in (plain, clipped))
    np.testing.assert_allclose(clipped, np.clip(plain, 1e-3, 0.5), rtol=1e-9)
    assert plain.max() > 0.9 and plain.min() < 1e-3


def test_drawn_t_is_uniform():
    t, _, _ = draw_many(noise_schedule.linear(20, 1e-4, 0.1), 20_000)
    assert t.dtype == jnp.int32
    counts = np.bincount(np.asarray(t), minlength=21)
    assert counts[0] == 0 and len(counts) == 21
    # Each count is binomial: mean 1000, standard deviation 31.
    assert abs(counts[1:] - 1000).max() < 5 * 31


@pytest.mark.parametrize("name", ["sr3", "clipped cosine", "flow"])
def test_drawn_levels_lie_between_their_neighbours(name):
    schedule = SCHEDULES[name]
    t, alpha, sigma = (np.asarray(value) for value in draw_many(schedule, 20_000))
    assert (alpha <= schedule.alpha[t - 1] + 1e-7).all() and (alpha >= schedule.alpha[t] - 1e-7).all()
    assert (sigma >= schedule.sigma[t - 1] * (1 - 1e-5)).all() and (sigma <= schedule.sigma[t] * (1 + 1e-5)).all()
    assert (sigma > 0).all()
    length = alpha + sigma if name == "flow" else alpha**2 + sigma**2
    np.testing.assert_allclose(length, 1, atol=1e-6)
    place = (alpha - schedule.alpha[t]) / (schedule.alpha[t - 1] - schedule.alpha[t])
    wide = schedule.alpha[t - 1] - schedule.alpha[t] > 1e-4
    assert abs(place[wide].mean() - 0.5) < 0.02


def test_the_cleanest_levels_keep_their_digits():
    # Drawn as a float32 alpha, sigma would take some nine values here, and now and then be 0.
    first = noise_schedule.NoiseSchedule(SR3.alpha[:2], SR3.sigma[:2])
    t, _, sigma = draw_many(first, 100_000)
    assert (t == 1).all() and (sigma > 0).all()
    # 1 - alpha is uniform in (0, 1 - alpha_1], and so, nearly, is sigma^2 = (1 - alpha)(1 + alpha).
    place = np.sort(np.asarray(sigma, np.float64) ** 2) / 1e-6
    assert abs(place - np.linspace(0, 1, len(place))).max() < 0.01
    assert len(np.unique(place)) > 90_000


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-23])
def test_the_rarest_draws_are_no_clean_level(uniform, monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, uniform, dtype))
    for schedule in (SR3, SCHEDULES["flow"]):
        first = noise_schedule.NoiseSchedule(schedule.alpha[:2], schedule.sigma[:2])
        _, _, sigma = noise_schedule.draw(jax.random.key(0), first)
        assert 0 < sigma <= schedule.sigma[1] * (1 + 1e-6)


def test_drawn_sigma_agrees_with_float64():
    low = draw_many(SR3, 10_000)
    with jax.enable_x64(True):
        high = draw_many(SR3, 10_000)
        assert high[1].dtype == np.float64
    np.testing.assert_array_equal(low[0], high[0])
    np.testing.assert_allclose(low[1], high[1], rtol=1e-5)
    np.testing.assert_allclose(low[2], high[2], rtol=1e-5)
    assert np.asarray(low[0]).min() == 1


@pytest.mark.parametrize("name", ["sr3", "flow"])
def test_discrete_draws_are_table_entries(name):
    schedule = SCHEDULES[name]
    t, alpha, sigma = draw_many(schedule, 1000, continuous=False)
    np.testing.assert_allclose(alpha, schedule.alpha[t], rtol=1e-6)
    np.testing.assert_allclose(sigma, schedule.sigma[t], rtol=1e-6)


def test_a_shared_key_gives_a_batch_one_t_and_many_levels():
    t, alpha, _ = draw_many(SR3, 64, t_key=jax.random.key(7))
    assert len(np.unique(t)) == 1
    assert len(np.unique(alpha)) > 1


def test_draws_do_not_depend_on_the_batch_size():
    keys = jax.random.split(jax.random.key(0), 8)
    draw = jax.jit(jax.vmap(lambda key: noise_schedule.draw(key, SR3)))
    for all_eight, first_three in zip(draw(keys), draw(keys[:3]), strict=True):
        np.testing.assert_array_equal(all_eight[:3], first_three)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_of_inverts_the_table(name):
    schedule = SCHEDULES[name]
    with jax.enable_x64(True):
        t = np.asarray(noise_schedule.time_of(schedule, schedule.alpha))
        between = np.asarray(noise_schedule.time_of(schedule, (schedule.alpha[:-1] + schedule.alpha[1:]) / 2))
    np.testing.assert_allclose(t, np.arange(schedule.num_steps + 1), atol=1e-6)
    np.testing.assert_allclose(between, np.arange(schedule.num_steps) + 0.5, atol=1e-6)


def test_time_of_in_float32_is_within_a_tenth_of_a_step_beyond_the_cleanest_levels():
    schedule = SCHEDULES["clipped cosine"]
    t = noise_schedule.time_of(schedule, jnp.asarray(schedule.alpha, jnp.float32))
    np.testing.assert_allclose(t, np.arange(1001), atol=0.1)


# Tables of the general kind: ResShift's (Yue et al. 2023), and one of scaled noise that ends in noise alone.
GENERAL = {
    "resshift": noise_schedule.NoiseSchedule(1 - np.linspace(0, 0.99, 16) ** 2, 2 * np.linspace(0, 0.99, 16)),
    "scaled noise": noise_schedule.NoiseSchedule(1 - np.linspace(0, 1, 21), 0.3 * np.linspace(0, 1, 21) ** 0.7),
}


@pytest.mark.parametrize("name", GENERAL)
def test_levels_of_any_tables_lie_between_their_entries(name):
    schedule = GENERAL[name]
    t, alpha, sigma = (np.asarray(value, np.float64) for value in draw_many(schedule, 5000))
    t = t.astype(int)
    assert (alpha <= schedule.alpha[t - 1] + 1e-6).all() and (alpha >= schedule.alpha[t] - 1e-6).all()
    assert (sigma <= schedule.sigma[t] * (1 + 1e-5)).all() and (sigma > 0).all()
    assert (sigma[t > 1] >= schedule.sigma[t[t > 1] - 1] * (1 - 1e-5)).all()
    times = t - (alpha - schedule.alpha[t]) / (schedule.alpha[t - 1] - schedule.alpha[t])
    for drawn, between in zip((alpha, sigma), schedule.at(times), strict=True):
        # A float32 alpha near 1 tells the time to a few digits only.
        np.testing.assert_allclose(drawn, between, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", SCHEDULES | GENERAL)
def test_time_at_inverts_at(name):
    schedule = (SCHEDULES | GENERAL)[name]
    times = np.concatenate([np.arange(1, schedule.num_steps), np.linspace(0.2, schedule.num_steps - 0.2, 77)])
    alpha, sigma = schedule.at(times)
    np.testing.assert_allclose(schedule.time_at(np.log(alpha / sigma)), times, rtol=1e-6)


@pytest.mark.parametrize("alpha, sigma", [([1, 0.5, 0.6], [0, 0.5, 0.9]), ([0.9, 0.5], [0, 1]), ([1, 0.5], [0, 0])])
def test_tables_that_do_not_fall_from_clean_are_refused(alpha, sigma):
    with pytest.raises(UserError, match="falls from 1"):
        noise_schedule.NoiseSchedule(np.array(alpha), np.array(sigma))
