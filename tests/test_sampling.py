import functools

import chex
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


def coefficients(step, alpha_from, alpha_to, **options):
    """Of x_t, of x0_hat, of the noise."""
    return [step(*unit[:2], alpha_from, alpha_to, unit[2], **options) for unit in np.eye(3)]


def draw(sampler, index=(0, 1), levels=LEVELS, denoise=None, shape=SHAPE):
    return run(KEY, denoise or toy, shape, sampling.make_rows(sampler, levels), jnp.array(index))


def stay(levels):
    """Rows that never move: what they return is the starting noise."""
    rows = samplers.ddim(levels)
    rows.move[:] = np.eye(samplers.HISTORY + 2)[0]
    return rows


@pytest.mark.parametrize("t, s", [(1, 0), (2, 1), (100, 99), (200, 199), (200, 100), (200, 1), (50, 0)])
def test_ddim_with_eta_one_is_ddpm(t, s):
    ancestral = coefficients(sampling.ddpm_step, VP.alpha[t], VP.alpha[s])
    np.testing.assert_allclose(
        coefficients(sampling.ddim_step, VP.alpha[t], VP.alpha[s], eta=1.0), ancestral, rtol=1e-9, atol=1e-12
    )


def test_ddim_with_eta_one_is_finite_and_ddpm_in_float32_at_all_pairs_of_levels():
    schedule = noise_schedule.linear(1000, 1e-6, 2e-2)
    t, s = np.tril_indices(1001, -1)
    levels = jnp.float32(schedule.alpha[t]), jnp.float32(schedule.alpha[s])
    np.testing.assert_allclose(
        coefficients(sampling.ddim_step, *levels, eta=1.0), coefficients(sampling.ddpm_step, *levels), atol=1e-3
    )


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t, s", [(2, 1), (200, 150), (100, 1), (100, 0)])
def test_ddim_keeps_the_forward_process(t, s, eta):
    # With the true x0, a move must land on q(x_s | x0), whatever eta.
    of_x_t, of_x0, of_noise = coefficients(sampling.ddim_step, VP.alpha[t], VP.alpha[s], eta=eta)
    np.testing.assert_allclose(of_x_t * VP.alpha[t] + of_x0, VP.alpha[s], rtol=1e-9)
    np.testing.assert_allclose(np.hypot(of_x_t * VP.sigma[t], of_noise), VP.sigma[s], rtol=1e-9, atol=1e-12)
    _, deviation = diffusion.posterior(0.0, 0.0, VP.alpha[t], VP.alpha[s])
    np.testing.assert_allclose(of_noise, eta * deviation, rtol=1e-12)


@pytest.mark.parametrize("step", [sampling.ddpm_step, sampling.ddim_step])
def test_steps_take_numpy_and_jax_with_scalar_or_batched_levels(step):
    x_t, x0_hat, noise = np.random.default_rng(0).standard_normal((3, *SHAPE))
    on_host = step(x_t, x0_hat, VP.alpha[100], VP.alpha[50], noise)
    assert on_host.dtype == np.float64
    batched = (np.full((2, 1, 1, 1), VP.alpha[t]) for t in (100, 50))
    np.testing.assert_array_equal(step(x_t, x0_hat, *batched, noise), on_host)
    on_device = step(*map(jnp.float32, (x_t, x0_hat, VP.alpha[100], VP.alpha[50], noise)))
    np.testing.assert_allclose(on_device, on_host, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, STEPS])
def test_a_perfect_denoiser_is_reproduced(num_steps):
    truth = np.linspace(-1, 1, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)

    def perfect(x, alpha, sigma):
        return jnp.asarray(truth)

    for sampler in ("ddpm", "ddim", ETA_HALF):
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


@pytest.mark.parametrize("kind", diffusion.KINDS)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_distribution_of_gaussian_data_is_approached_as_steps_grow(kind, sampler):
    # The linear schedule ends at a signal-to-noise ratio that no longer matters.
    schedule = noise_schedule.flow(1600) if kind == "flow" else noise_schedule.linear(1600, 1e-5, 2e-2)
    denoise = sampling.make_denoise(gaussian_network(kind), kind, schedule.flow)
    errors = []
    for num_steps in (25, 100, 400, 1600):
        rows = sampling.make_rows(sampler, sampling.levels_of(schedule, num_steps))
        errors.append(abs(moments(rows, denoise) - (MEAN, DEVIATION)).max())
    # Both are methods of the first order: four times the steps, about a quarter of the error.
    assert errors[-1] < 0.02 * DEVIATION
    assert (np.divide(errors[1:], errors[:-1]) < 0.45).all()


def test_kinds_agree_on_one_schedule():
    rows = sampling.make_rows("ddpm", sampling.levels_of(VP, 10))
    results = [moments(rows, sampling.make_denoise(gaussian_network(kind), kind, False)) for kind in ("eps", "x0", "v")]
    chex.assert_trees_all_close(*results, rtol=1e-10)


@pytest.mark.parametrize("kind, schedule", [("eps", VP), ("flow", FLOW)])
def test_samples_of_gaussian_data_have_the_moments_of_their_table(kind, schedule):
    denoise = sampling.make_denoise(gaussian_network(kind), kind, schedule.flow)
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

    denoise = sampling.make_denoise(predict, "x0", True, lambda x0: jnp.clip(x0, -1, 1))
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


def test_unknown_names_and_etas_are_refused():
    with pytest.raises(UserError, match="choose one of ddpm, ddim"):
        sampling.sample(KEY, toy, SHAPE, VP, "dpm", 2)
    with pytest.raises(UserError, match="choose one of uniform_t"):
        sampling.sample(KEY, toy, SHAPE, VP, "ddim", 2, spacing="even")
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="eta"):
            sampling.make_rows("ddim", sampling.levels_of(VP, 2), eta=eta)


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("num_steps", [1, 2, 13, 200])
def test_rows_are_float64_tables(sampler, schedule, num_steps):
    rows = sampling.make_rows(sampler, sampling.levels_of(schedule, num_steps))
    history = samplers.HISTORY
    chex.assert_shape(rows[:2], (num_steps,))
    chex.assert_shape(rows[2:], [(num_steps, n) for n in (3, history + 2, history + 1)])
    for table in rows:
        assert isinstance(table, np.ndarray) and table.dtype == np.float64 and np.isfinite(table).all()
    np.testing.assert_allclose(rows.alpha**2 + rows.sigma**2, 1, rtol=1e-12)


def test_uniform_t_falls_strictly_from_the_end_to_clean():
    for total in (1, 7, 50, 200):
        schedule = noise_schedule.flow(total)
        for num_steps in range(1, total + 1):
            chosen = samplers.uniform_t(schedule, num_steps)
            assert len(chosen) == num_steps + 1 and chosen[0] == total and chosen[-1] == 0
            gaps = -np.diff(chosen)
            assert gaps.min() >= 1 and np.ptp(gaps) <= 1


def test_levels_are_those_of_the_schedule():
    levels = sampling.levels_of(VP, 200)
    np.testing.assert_array_equal(levels.alpha, VP.alpha[::-1])
    np.testing.assert_allclose(2 * levels.lam, VP.logsnr[::-1], rtol=1e-12)


def test_flow_levels_keep_the_signal_to_noise_ratio_and_start_at_minus_twenty():
    levels = sampling.levels_of(FLOW, 200)
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1, rtol=1e-14)
    np.testing.assert_allclose(2 * levels.lam[0], -20, rtol=1e-12)
    np.testing.assert_allclose(2 * levels.lam[1:-1], FLOW.logsnr[1:-1][::-1], rtol=1e-10)
    assert levels.alpha[-1] == 1 and levels.sigma[-1] == 0


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

    for sampler in ("ddpm", "ddim", ETA_HALF):
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
