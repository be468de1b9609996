import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dream_jax import diffusion, noise_schedule, samplers, sampling
from dream_jax.errors import UserError

VP = noise_schedule.linear(200, 1e-4, 0.08)
FLOW = noise_schedule.flow(200)
KEY = jax.random.key(0, impl="threefry2x32")
SHAPE = (2, 4, 4, 3)
STEPS = 6
LEVELS = sampling.levels_of(VP, STEPS)
ETA_ONE = functools.partial(samplers.ddim, eta=1.0)
ETA_HALF = functools.partial(samplers.ddim, eta=0.5)

# Compiling costs far more than running here, so that most tests share one program.
run = jax.jit(sampling.run, static_argnums=(1, 2))


def toy(x, alpha, sigma):
    return jnp.tanh(alpha * x) * (1 - 0.5 * sigma)


def draw(sampler, index=(0, 1), levels=LEVELS, denoise=None, shape=SHAPE):
    return run(KEY, denoise or toy, shape, sampling.make_rows(sampler, levels), jnp.array(index))


def stay(levels):
    """Rows that never move: what they return is the starting noise."""
    rows = samplers.ddim(levels)
    rows.move[:] = np.eye(samplers.HISTORY + 2)[0]
    return rows


@pytest.mark.parametrize("num_steps", [1, STEPS])
def test_a_perfect_denoiser_is_reproduced(num_steps):
    truth = np.linspace(-1, 1, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)

    def perfect(x, alpha, sigma):
        return jnp.asarray(truth)

    for sampler in (*sampling.SAMPLERS, ETA_HALF):
        x0 = draw(sampler, levels=sampling.levels_of(VP, num_steps), denoise=perfect)
        np.testing.assert_allclose(x0, truth, atol=1e-6)


MEAN, DEVIATION = 0.3, 0.25


def gaussian_network(kind):
    """What a perfect network outputs for pixels of N(MEAN, DEVIATION^2), in its own coordinates."""

    def predict(x_t, alpha, sigma):
        variance = (alpha * DEVIATION) ** 2 + sigma**2
        x0 = MEAN + alpha * DEVIATION**2 / variance * (x_t - alpha * MEAN)
        eps = sigma / variance * (x_t - alpha * MEAN)
        return diffusion.target(kind, x0, eps, alpha, sigma)

    return predict


def moments(rows, denoise):
    """Mean and standard deviation of a one-step sampler's result, for a denoiser that is affine in x; exact."""
    mean, deviation = 0.0, 1.0
    for alpha, sigma, move in zip(rows.alpha, rows.sigma, rows.move, strict=True):
        offset = denoise(0.0, alpha, sigma)
        slope = move[0] + move[1] * (denoise(1.0, alpha, sigma) - offset)
        mean, deviation = slope * mean + move[1] * offset, np.hypot(slope * deviation, move[-1])
    return np.array([mean, deviation])


@pytest.mark.parametrize("kind, schedule", [("eps", VP), ("flow", FLOW)])
def test_samples_of_gaussian_data_have_the_moments_of_their_table(kind, schedule):
    denoise = sampling.make_denoise(gaussian_network(kind), kind, schedule)
    levels, shape = sampling.levels_of(schedule, 10), (64, 8, 8, 3)
    for sampler in ("ddpm", "ddim"):
        x0 = np.asarray(draw(sampler, range(64), levels, denoise, shape), np.float64)
        expected = moments(sampling.make_rows(sampler, levels), denoise)
        # 12,288 pixels: standard errors of 0.9% and 0.6% of the deviation.
        np.testing.assert_allclose((x0.mean(), x0.std()), expected, atol=0.04 * DEVIATION)


def test_flow_networks_are_asked_in_their_own_coordinates():
    asked = []

    def predict(x, alpha, sigma):
        asked.append((x, alpha, sigma))
        return x

    denoise = sampling.make_denoise(predict, "x0", FLOW, lambda x0: jnp.clip(x0, -1, 1))
    x, alpha, sigma = 3 * jnp.ones(SHAPE), jnp.float32(0.6), jnp.float32(0.8)
    np.testing.assert_array_equal(denoise(x, alpha, sigma), 1)
    np.testing.assert_allclose(asked[0][1] + asked[0][2], 1, rtol=1e-6)
    np.testing.assert_allclose(asked[0][0] / asked[0][1], x / alpha, rtol=1e-6)
    np.testing.assert_allclose(asked[0][1] / asked[0][2], alpha / sigma, rtol=1e-6)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", ETA_ONE], ids=["ddpm", "ddim", "ddim eta 1"])
def test_samplers_are_loops_of_their_published_steps(sampler):
    step = sampling.ddpm_step if sampler == "ddpm" else sampling.ddim_step
    options = {"eta": 1.0} if sampler == ETA_ONE else {}
    x = np.asarray(draw(stay), np.float64)
    for row in range(STEPS):
        keys = [jax.random.fold_in(jax.random.fold_in(KEY, i), row) for i in range(SHAPE[0])]
        noise = np.stack([jax.random.normal(key, SHAPE[1:]) for key in keys])
        x0_hat = np.asarray(toy(x, LEVELS.alpha[row], LEVELS.sigma[row]))
        x = step(x, x0_hat, LEVELS.alpha[row], LEVELS.alpha[row + 1], noise, **options)
    np.testing.assert_allclose(draw(sampler), x, atol=1e-5)


def test_starting_noise_is_standard_normal():
    noise = np.concatenate([draw(stay, (i, i + 1)) for i in range(0, 200, 2)])
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.04
    assert abs(np.corrcoef(noise[:100].ravel(), noise[100:].ravel())[0, 1]) < 0.06


def test_a_picture_does_not_depend_on_its_batch():
    all_six = draw("ddpm", range(6), shape=(6, 4, 4, 3))
    for index in ((0, 1), (5, 3)):
        np.testing.assert_allclose(draw("ddpm", index), all_six[jnp.array(index)], atol=1e-6)
    assert abs(all_six[0] - all_six[1]).max() > 0.1


@pytest.mark.parametrize("num_steps", [0, -1, 201])
def test_impossible_step_counts_are_refused(num_steps):
    with pytest.raises(UserError, match="200"):
        sampling.sample(KEY, toy, SHAPE, VP, "ddim", num_steps)


def test_sample_runs_the_rows_of_the_respaced_schedule():
    np.testing.assert_allclose(sampling.sample(KEY, toy, SHAPE, VP, "ddpm", STEPS), draw("ddpm"), atol=1e-5)
    given = sampling.sample(KEY, toy, SHAPE, None, ETA_ONE, None, levels=LEVELS, example_index=jnp.array([5, 3]))
    np.testing.assert_allclose(given, draw(ETA_ONE, (5, 3)), atol=1e-5)


def test_all_samplers_share_one_trace_at_equal_steps():
    traces = []

    @jax.jit
    def counted(key, rows):
        traces.append(rows)
        return sampling.run(key, toy, SHAPE, rows)

    for sampler in (*sampling.SAMPLERS, ETA_HALF):
        np.testing.assert_allclose(counted(KEY, sampling.make_rows(sampler, LEVELS)), draw(sampler), atol=1e-5)
    assert len(traces) == 1


def test_history_and_look_reach_the_next_evaluation():
    # A table that no built-in sampler has: evaluated at points extrapolated from two outputs.
    def extrapolating(levels):
        rows = samplers.ddim(levels)
        rows.look[:-1, 1:3] = 0.2, -0.1
        rows.remember[:] = 0.1, 0.7, 0.3
        return rows

    rows = extrapolating(LEVELS)
    base = y = np.asarray(draw(stay), np.float64)
    newest = older = np.zeros(SHAPE)
    for row in range(STEPS):
        out = np.asarray(toy(y, rows.alpha[row], rows.sigma[row]))
        newest, older = 0.1 * y + 0.7 * out + 0.3 * newest, newest
        base = rows.move[row, 0] * base + rows.move[row, 1] * newest
        y = base + (0.2 * newest - 0.1 * older if row < STEPS - 1 else 0)
    np.testing.assert_allclose(draw(extrapolating), y, atol=1e-5)


def test_double_precision_draws_the_same_noise():
    with jax.enable_x64(True):
        x0 = draw("ddpm")
        assert x0.dtype == np.float64
    np.testing.assert_allclose(draw("ddpm"), x0, atol=1e-5)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_tables_of_any_kind_sample_a_gaussian_with_its_moments(sampler):
    # Noise of a third of the usual size, and a last level that is noise alone.
    sigma = np.linspace(0, 1, 101)
    schedule = noise_schedule.NoiseSchedule(1 - sigma, 0.3 * sigma**0.8)
    denoise = sampling.make_denoise(gaussian_network("x0"), "x0", schedule)
    x0 = sampling.sample(jax.random.key(0), denoise, (64, 8, 8, 1), schedule, sampler, 50)
    assert np.isfinite(x0).all()
    assert abs(x0.mean() - MEAN) < 0.02 and abs(x0.std() - DEVIATION) < 0.05


def test_the_network_is_shown_what_it_predicted_before():
    """Zeros at first; and a network that ignores it draws the same."""
    rows = sampling.make_rows("ddim", sampling.levels_of(VP, 4))

    def denoise(x, alpha, sigma, previous=0.0):
        return 0.25 * x + previous

    def observe(x, x0_hat, alpha, sigma):
        return x, x0_hat

    _, (x, out) = sampling.run(KEY, denoise, SHAPE, rows, observe=observe, shows=True)
    before = np.concatenate([np.zeros((1, *SHAPE)), out[:-1]])
    np.testing.assert_allclose(out, 0.25 * x + before, rtol=1e-5, atol=1e-6)
    ignoring = sampling.run(KEY, lambda x, alpha, sigma, previous: 0.25 * x, SHAPE, rows, shows=True)
    np.testing.assert_array_equal(ignoring, sampling.run(KEY, lambda x, alpha, sigma: 0.25 * x, SHAPE, rows))
