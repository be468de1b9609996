"""Samplers as tables, whose rows a plain float64 loop runs here; test_sampling.py holds `sampling.run` to it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.exact import (
    DETERMINISTIC,
    GAUSSIAN,
    MIXTURE,
    ORDERS,
    POINTS,
    STOCHASTIC,
    VP,
    errors,
    even,
    levels_at,
    moments,
    run,
    slope,
)
from dream_jax import diffusion, noise_schedule, samplers, sampling
from dream_jax.errors import UserError

FLOW = noise_schedule.flow(200)
SCHEDULES = pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
SHAPE = (2, 4, 4, 3)


def rough_levels(rng, num, clean):
    """Half-logsnrs whose steps differ by factors of up to a million."""
    steps = 10.0 ** rng.uniform(-6, 0, num)
    levels = levels_at(np.concatenate([[-8], -8 + 18 * np.cumsum(steps) / steps.sum()]))
    return samplers.Levels(np.append(levels.alpha[:-1], 1.0), np.append(levels.sigma[:-1], 0.0)) if clean else levels


def test_the_compiled_loop_is_this_loop_for_all_samplers_in_one_trace():
    key, traces = jax.random.key(0, impl="threefry2x32"), []
    with jax.enable_x64(True):

        @jax.jit
        def compiled(rows):
            traces.append(rows)
            return sampling.run(key, lambda x, alpha, sigma: jnp.tanh(alpha * x) * (1 - 0.5 * sigma), SHAPE, rows)

        def drawn(number):
            keys = [jax.random.fold_in(jax.random.fold_in(key, i), number) for i in range(SHAPE[0])]
            return np.stack([jax.random.normal(key, SHAPE[1:], jnp.float32) for key in keys]).astype(np.float64)

        levels = samplers.levels_of(VP, 14)
        start, noise = drawn(2**31 - 1), [drawn(row).ravel() for row in range(14)]
        for sampler in samplers.SAMPLERS:
            rows = samplers.make_rows(sampler, levels, eta=0.5)
            here = run(rows, lambda x, alpha, sigma: np.tanh(alpha * x) * (1 - 0.5 * sigma), start.ravel(), noise)
            np.testing.assert_allclose(compiled(rows), here.reshape(SHAPE), rtol=1e-9, atol=1e-9)
    assert len(traces) == 1


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_errors_fall_with_the_published_order(sampler, data, kind):
    counts = (48, 96, 192, 384)
    assert slope(counts, errors(sampler, data, even, counts, kind)) > ORDERS[sampler] - 0.25


@pytest.mark.parametrize("sampler", [name for name in DETERMINISTIC if name not in ("plms", "pndm", "ghvb")])
def test_the_order_survives_uneven_steps(sampler):
    # Every third step is twice as long, so that blocks and multistep weights meet all the unevenness there is.
    def uneven(count):
        steps = np.tile([1.0, 1.0, 2.0], count // 3)
        return np.concatenate([[-5.0], -5 + 7 * np.cumsum(steps) / steps.sum()])

    counts = (48, 96, 192, 384)
    assert slope(counts, errors(sampler, MIXTURE, uneven, counts)) > ORDERS[sampler] - 0.25


@pytest.mark.parametrize(
    "sampler, order", [("dpmpp_3m", 2), ("deis_3", 2), ("dpm_solver_3", 3), ("unipc_2", 3), ("unipc_3", 4)]
)
def test_the_first_moves_show_where_the_first_level_is_not_noise(sampler, order):
    counts = (96, 192, 384, 768)
    measured = slope(counts, errors(sampler, MIXTURE, functools.partial(even, first=-1.0), counts))
    assert abs(measured - order) < 0.3


@pytest.mark.parametrize("order, momentum", [(1, 1.0), (1, 0.5), (2, 1.0), (2, 0.5), (3, 0.8), (4, 0.8)])
def test_ghvb_has_its_order_at_equal_steps_of_sigma_over_alpha(order, momentum):
    sampler = functools.partial(samplers.ghvb, order=order, momentum=momentum)
    counts = (768, 1536, 3072)

    def spaced(count):
        return -np.log(np.linspace(np.exp(3), np.exp(-1), count + 1))

    assert slope(counts, errors(sampler, GAUSSIAN, spaced, counts)) > order - 0.25


# The linear one ends at a signal-to-noise ratio that no longer matters.
LONG, LONG_FLOW = noise_schedule.linear(1600, 1e-5, 2e-2), noise_schedule.flow(1600)


@functools.lru_cache(maxsize=8)
def rows_of(schedule, sampler, num_steps):
    """For several kinds one after the other."""
    return samplers.make_rows(sampler, samplers.levels_of(schedule, num_steps))


@pytest.mark.parametrize("kind", diffusion.KINDS)
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_the_distribution_of_gaussian_data_is_approached_as_steps_grow(kind, sampler):
    schedule = LONG_FLOW if kind == "flow" else LONG
    denoise = GAUSSIAN.denoise(kind, schedule)
    results = []
    for num_steps in (25, 100, 400, 1600):
        results.append(abs(moments(rows_of(schedule, sampler, num_steps), denoise) - (0.3, 0.25)).max())
    # The move to sigma = 0 is of the first order for all: four times the steps, at most about a quarter of the error.
    assert results[-1] < 0.02 * 0.25
    assert results[-1] < 0.45**3 * results[0]


@pytest.mark.parametrize(
    "sampler, order", [("ddpm", 1), (functools.partial(samplers.ddim, eta=0.5), 1), ("dpmpp_2m_sde", 2)]
)
def test_moments_of_stochastic_samplers_converge_with_their_order(sampler, order):
    counts, results = (32, 64, 128, 256), []
    for count in counts:
        levels = levels_at(even(count, first=-7.0))
        mean, deviation = moments(samplers.make_rows(sampler, levels), GAUSSIAN.denoise())
        alpha, sigma = levels.alpha[-1], levels.sigma[-1]
        results.append(max(abs(mean - 0.3 * alpha), abs(deviation - np.hypot(0.25 * alpha, sigma))))
    assert slope(counts, results) > order - 0.25


def test_kinds_agree_on_one_schedule():
    for sampler in samplers.SAMPLERS:
        rows = samplers.make_rows(sampler, samplers.levels_of(VP, 14))
        results = [moments(rows, GAUSSIAN.denoise(kind)) for kind in ("eps", "x0", "v")]
        chex.assert_trees_all_close(*results, rtol=1e-9)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("clean", [True, False], ids=["to sigma 0", "to sigma > 0"])
def test_a_single_picture_is_reached_without_error(sampler, clean):
    # With x0_hat always the same, the ODE's solution is a straight line in (alpha, sigma), at any step sizes.
    truth, rng = 0.7, np.random.default_rng(0)
    for num in (1, 2, 3, 4, 5, 7, 13, 50):
        for levels in (levels_at(even(num)), rough_levels(rng, num, clean)):
            if clean:
                levels = samplers.Levels(np.append(levels.alpha[:-1], 1.0), np.append(levels.sigma[:-1], 0.0))
            elif sampler in STOCHASTIC:
                continue
            x = run(samplers.make_rows(sampler, levels), lambda x, alpha, sigma: np.full_like(x, truth), POINTS)
            eps = (POINTS - levels.alpha[0] * truth) / levels.sigma[0]
            np.testing.assert_allclose(x, levels.alpha[-1] * truth + levels.sigma[-1] * eps, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@SCHEDULES
@pytest.mark.parametrize("spacing", samplers.SPACINGS)
def test_rows_are_float64_tables(sampler, schedule, spacing):
    for num_steps in (1, 2, 3, 4, 5, 7, 13, 50, 200):
        check_rows(samplers.make_rows(sampler, samplers.levels_of(schedule, num_steps, spacing)), num_steps)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_rows_are_finite_at_wildly_uneven_levels(sampler):
    rng = np.random.default_rng(0)
    for num in (1, 2, 3, 4, 5, 7, 13, 50):
        for clean in (True, False):
            check_rows(samplers.make_rows(sampler, rough_levels(rng, num, clean)), num)


def check_rows(rows, num_steps):
    history = samplers.HISTORY
    chex.assert_shape(rows[:2], (num_steps,))
    chex.assert_shape(rows[2:5], [(num_steps, n) for n in (3, history + 2, history + 1)])
    assert rows.start == 1
    for table in rows[:5]:
        assert isinstance(table, np.ndarray) and table.dtype == np.float64 and np.isfinite(table).all()
    np.testing.assert_allclose(rows.alpha**2 + rows.sigma**2, 1, rtol=1e-12)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_the_last_move_to_clean_is_the_last_estimate(sampler):
    for num_steps in (1, 2, 3, 4, 5, 14):
        levels = samplers.levels_of(VP, num_steps)
        rows = samplers.make_rows(sampler, levels)
        assert rows.alpha[-1] == levels.alpha[-2]
        np.testing.assert_array_equal(rows.remember[-1], [0, 1, 0])
        of_base_and_history = rows.look[-1] @ np.vstack([rows.move[-1, :-1], np.eye(samplers.HISTORY + 1)[1:]])
        np.testing.assert_allclose(of_base_and_history, np.eye(samplers.HISTORY + 1)[1], atol=1e-15)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_one_evaluation_is_one_step_of_ddim(sampler):
    # Without noise: ddpm and its kin add theirs.
    first = {"resshift": "resshift"}.get(sampler, "ddpm" if sampler in STOCHASTIC else "ddim")
    for levels in (samplers.levels_of(VP, 1), levels_at([-4.0, -1.0])):
        x = run(samplers.make_rows(sampler, levels), MIXTURE.denoise(), POINTS)
        np.testing.assert_allclose(x, run(samplers.make_rows(first, levels), MIXTURE.denoise(), POINTS), rtol=1e-12)


def test_single_step_samplers_share_out_their_evaluations():
    levels = samplers.levels_of(VP, 11)
    alpha, lam = levels.alpha, levels.lam

    def inner(i, k, fraction):
        return levels_at(lam[i] + fraction * (lam[i + k] - lam[i])).alpha

    def asked(sampler):
        return samplers.make_rows(sampler, levels).alpha

    np.testing.assert_allclose(asked("heun"), alpha[[0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]])
    expected = [a for i in range(0, 10, 2) for a in (alpha[i], inner(i, 2, 1 / 2))]
    np.testing.assert_allclose(asked("dpm_solver_2"), [*expected, alpha[10]])
    expected = [a for i in (0, 3, 6) for a in (alpha[i], inner(i, 3, 1 / 3), inner(i, 3, 2 / 3))]
    np.testing.assert_allclose(asked("dpm_solver_3"), [*expected, alpha[9], alpha[10]])
    for sampler in ("dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "deis_2", "deis_3", "unipc_2", "unipc_3", "ghvb"):
        np.testing.assert_array_equal(asked(sampler), alpha[:-1])
    np.testing.assert_allclose(asked("plms"), alpha[[0, 2, *range(2, 11)]])
    np.testing.assert_allclose(asked("pndm"), asked("plms"))
    levels = samplers.levels_of(VP, 20)
    expected = [0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, *range(12, 20)]
    np.testing.assert_allclose(samplers.pndm(levels).alpha, levels.alpha[expected])


@pytest.mark.parametrize("sampler", DETERMINISTIC)
@SCHEDULES
def test_long_steps_out_of_pure_noise_do_no_harm(sampler, schedule):
    # From half-logsnr -10 a Runge-Kutta step would multiply errors by thousands: ddim's error here is 0.14.
    for num_steps in (5, 10, 20):
        levels = samplers.levels_of(schedule, num_steps)
        x = run(samplers.make_rows(sampler, levels), MIXTURE.denoise(), POINTS)
        assert abs(x - MIXTURE.solution(POINTS, levels)).max() < 0.6


def test_heun_is_the_published_loop():
    levels = levels_at(even(10))
    s, denoise = levels.sigma / levels.alpha, MIXTURE.denoise()

    def derivative(x, s):
        alpha = (1 + s**2) ** -0.5
        return (x - denoise(alpha * x, alpha, alpha * s)) / s

    x = POINTS / levels.alpha[0]
    for i in range(0, 10, 2):
        d = derivative(x, s[i])
        d_next = derivative(x + (s[i + 2] - s[i]) * d, s[i + 2])
        x = x + (s[i + 2] - s[i]) * (d + d_next) / 2
    expected = levels.alpha[-1] * x
    np.testing.assert_allclose(run(samplers.heun(levels), denoise, POINTS), expected, rtol=1e-12)


def test_dpm_solver_3_is_the_published_loop():
    lam = even(9)
    levels, denoise = levels_at(lam), MIXTURE.denoise()

    def eps_at(x, level):
        return (x - level.alpha * denoise(x, level.alpha, level.sigma)) / level.sigma

    x = POINTS
    for start, end in zip(lam[:-3:3], lam[3::3], strict=True):
        h, (r1, r2) = end - start, (1 / 3, 2 / 3)
        at, at1, at2, to = (levels_at(start + r * h) for r in (0, r1, r2, 1))
        eps = eps_at(x, at)
        u = at1.alpha / at.alpha * x - at1.sigma * np.expm1(r1 * h) * eps
        d1 = eps_at(u, at1) - eps
        u = at2.alpha / at.alpha * x - at2.sigma * np.expm1(r2 * h) * eps
        u = u - at2.sigma * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1) * d1
        d2 = eps_at(u, at2) - eps
        x = to.alpha / at.alpha * x - to.sigma * np.expm1(h) * eps - to.sigma / r2 * (np.expm1(h) / h - 1) * d2
    np.testing.assert_allclose(run(samplers.dpm_solver_3(levels), denoise, POINTS), x, rtol=1e-12)


def test_pndm_begins_with_the_published_loop():
    levels, denoise = levels_at(even(12)), MIXTURE.denoise()

    def eps_at(x, i):
        return (x - levels.alpha[i] * denoise(x, levels.alpha[i], levels.sigma[i])) / levels.sigma[i]

    def transfer(x, eps, i, j):
        return samplers.ddim_step(x, (x - levels.sigma[i] * eps) / levels.alpha[i], *levels.alpha[[i, j]], 0)

    x = POINTS
    for i in (0, 4, 8):
        e1 = eps_at(x, i)
        e2 = eps_at(transfer(x, e1, i, i + 2), i + 2)
        e3 = eps_at(transfer(x, e2, i, i + 2), i + 2)
        e4 = eps_at(transfer(x, e3, i, i + 4), i + 4)
        x = transfer(x, (e1 + 2 * e2 + 2 * e3 + e4) / 6, i, i + 4)
    np.testing.assert_allclose(run(samplers.pndm(levels), denoise, POINTS), x, rtol=1e-9)


@pytest.mark.parametrize(
    "sampler, asked", [("plms", [0, 2]), ("pndm", [0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12]), ("ghvb", [])]
)
def test_pseudo_multistep_moves_integrate_polynomials_of_the_level_s_number(sampler, asked):
    options = {"order": 4, "momentum": 1.0}
    rows = samplers.make_rows(sampler, levels_at(even(20)), **options)
    first, asked = len(asked), np.array([*asked, *range(len(asked), 20)], float)
    for i in range(first, 20):
        recent = asked[i::-1][:5]
        weights = np.resize(rows.move[i, 1:6], len(recent)) / rows.move[i, 1:6].sum()
        for power in range(min(4, len(set(recent)))):
            integral = ((i + 1.0) ** (power + 1) - float(i) ** (power + 1)) / (power + 1)
            np.testing.assert_allclose(weights @ recent**power, integral, rtol=1e-9)
        # Of two evaluations at one level the newer is the better.
        repeated = np.flatnonzero(np.diff(recent) == 0) + 1
        np.testing.assert_array_equal(weights[repeated], 0)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_dpmpp_2m_has_the_published_coefficients(sampler):
    lam = np.array([-3.0, -2.0, -1.7, 0.1])
    levels, rows = levels_at(lam), samplers.make_rows(sampler, levels_at(lam))
    for i in (1, 2):
        h = lam[i + 1] - lam[i]
        r = (lam[i] - lam[i - 1]) / h
        sigma, alpha = levels.sigma[i + 1], levels.alpha[i + 1]
        shrink = sigma / levels.sigma[i]
        if sampler == "dpmpp_2m":
            expected = [shrink, -alpha * np.expm1(-h) * (1 + 1 / (2 * r)), alpha * np.expm1(-h) / (2 * r), 0]
        else:
            gain = -alpha * np.expm1(-2 * h)
            noise = sigma * np.sqrt(-np.expm1(-2 * h))
            expected = [shrink * np.exp(-h), gain * (1 + 1 / (2 * r)), -gain / (2 * r), noise]
        np.testing.assert_allclose(rows.move[i, [0, 1, 2, -1]], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("growth, sampler", [(1, "dpmpp_3m"), (-1, "deis_3")])
def test_third_order_weights_integrate_parabolas(growth, sampler):
    # Out of x = 0, with x0_hat or eps_hat a parabola of lam: the closed form of the exponential's integral.
    lam = np.array([-2.0, -1.5, -1.4, -0.4])
    levels = levels_at(lam)
    row = samplers.make_rows(sampler, levels).move[2]
    scale = levels.sigma[3] if growth == 1 else -levels.alpha[3]
    for power, antiderivative in enumerate(
        [lambda s: growth, lambda s: growth * s - 1, lambda s: growth * s**2 - 2 * s + 2 * growth]
    ):
        integral = np.diff([np.exp(growth * s) * antiderivative(s) for s in lam[2:]])[0]
        np.testing.assert_allclose(row[1:4] @ lam[2::-1] ** power, scale * integral, rtol=1e-10, atol=1e-12)


def test_linear_multistep_has_the_published_weights():
    levels, b = levels_at(even(12)), 0.8
    weights = samplers.plms(levels).move[8, 1:6]
    np.testing.assert_allclose(24 * weights / weights.sum(), [55, -59, 37, -9, 0], rtol=1e-12, atol=1e-11)
    for order, published in (
        (1, [1]),
        (2, [(2 + b) / 2, -(2 - b) / 2]),
        (3, [(18 + 5 * b) / 12, -(24 - 8 * b) / 12, (6 - b) / 12]),
        (4, [(46 + 9 * b) / 24, -(78 - 19 * b) / 24, (42 - 5 * b) / 24, -(10 - b) / 24]),
    ):
        rows = samplers.ghvb(levels, order=order, momentum=b)
        weights = rows.move[8, 1:6] / rows.move[8, 1:6].sum()
        expected = np.pad(np.array(published) / (b if order > 1 else 1), (0, 5 - order))
        np.testing.assert_allclose(weights, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(rows.remember[8], [b / levels.sigma[8], -b * levels.alpha[8] / levels.sigma[8], 0.2])


def test_unipc_corrects_by_the_published_linear_system():
    lam = np.array([-3.0, -2.2, -1.9, -1.0, -0.4])
    levels = levels_at(lam)
    # UniC-3 of the move from level 2 to 3: sum_m r_m^(k-1) a_m = k! h phi_(k+1)(h) / B(h) for k = 1, 2, 3.
    h = -(lam[3] - lam[2])
    b = np.expm1(h)
    r = (lam[[1, 0, 3]] - lam[2]) / -h
    h_phi_2 = b / h - 1
    h_phi_3 = h_phi_2 / h - 1 / 2
    h_phi_4 = h_phi_3 / h - 1 / 6
    a = np.linalg.solve([r**0, r, r**2], np.array([h_phi_2, 2 * h_phi_3, 6 * h_phi_4]) / b)
    of_x0 = -levels.alpha[3] * b * np.array([a[2], 1 - a @ (1 / r), a[0] / r[0], a[1] / r[1]])
    np.testing.assert_allclose(samplers.unipc_3(levels).move[3, 1:5], of_x0, rtol=1e-9)


def test_undamped_ghvb_is_what_it_generalises():
    levels = samplers.levels_of(VP, 20)
    for data in (GAUSSIAN, MIXTURE):
        x = run(samplers.ghvb(levels, order=1, momentum=1.0), data.denoise(), POINTS)
        np.testing.assert_allclose(x, run(samplers.ddim(levels), data.denoise(), POINTS), rtol=1e-9)
    chex.assert_trees_all_close(samplers.ghvb(levels, order=4, momentum=1.0).move[6:], samplers.plms(levels).move[6:])


def test_options_go_to_the_samplers_that_take_them():
    levels = samplers.levels_of(VP, 8)
    for name, sampler in samplers.SAMPLERS.items():
        taken = {"ddim": {"eta": 0.5}, "ghvb": {"order": 3.0, "momentum": 0.5}}.get(name, {})
        rows = samplers.make_rows(name, levels, eta=0.5, order=3, momentum=0.5)
        chex.assert_trees_all_equal(rows, sampler(levels, **taken))
    chex.assert_trees_all_equal(
        samplers.make_rows(lambda levels: samplers.ddim(levels), levels, eta=1.0), samplers.ddim(levels)
    )
    with pytest.raises(UserError, match="etta: choose from eta, momentum, order"):
        samplers.make_rows("ddpm", levels, etta=0.5)


def test_unknown_names_and_impossible_options_are_refused():
    levels = samplers.levels_of(VP, 2)
    with pytest.raises(UserError, match="choose one of ddpm, ddim"):
        samplers.make_rows("dpm", levels)
    with pytest.raises(UserError, match="choose one of uniform_t"):
        samplers.levels_of(VP, 2, "even")
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="eta"):
            samplers.make_rows("ddim", levels, eta=eta)
    for options in (
        {"order": 0},
        {"order": 6},
        {"order": 1.5},
        {"momentum": 0.0},
        {"momentum": 1.1},
        {"momentum": float("nan")},
    ):
        with pytest.raises(UserError, match=next(iter(options))):
            samplers.make_rows("ghvb", levels, **options)


@SCHEDULES
@pytest.mark.parametrize("spacing", samplers.SPACINGS)
def test_levels_fall_from_the_end_to_clean(schedule, spacing):
    for num_steps in range(1, 201):
        levels = samplers.levels_of(schedule, num_steps, spacing)
        assert len(levels.alpha) == num_steps + 1 and levels.alpha[-1] == 1 and levels.sigma[-1] == 0
        assert (np.diff(levels.sigma) < 0).all() and (np.diff(levels.lam) > 0).all()
        np.testing.assert_allclose(levels.lam[0], schedule.logsnr[-1] / 2, rtol=1e-12)
        np.testing.assert_allclose(levels.finite().lam[0], max(schedule.logsnr[-1], -20) / 2, rtol=1e-12)
        np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1, rtol=1e-14)
    for num_steps in (0, -1, 201):
        with pytest.raises(UserError, match="choose 1 to 200"):
            samplers.levels_of(schedule, num_steps, spacing)


def test_spacings_at_the_longest_and_the_shortest_schedules():
    for schedule in (noise_schedule.linear(2000, 1e-6, 1e-2), noise_schedule.cosine(1000), noise_schedule.flow(1000)):
        for spacing in samplers.SPACINGS:
            levels = samplers.levels_of(schedule, schedule.num_steps, spacing)
            assert (np.diff(levels.lam) > 0).all() and np.isfinite(levels.finite().lam[:-1]).all()
    for schedule in (noise_schedule.linear(1, 0.5, 0.5), noise_schedule.flow(1)):
        for spacing in samplers.SPACINGS:
            levels = samplers.levels_of(schedule, 1, spacing)
            chex.assert_trees_all_close(levels, samplers.levels_of(schedule, 1), rtol=1e-12)


@SCHEDULES
def test_spacings_are_what_they_say(schedule):
    last = schedule.logsnr[1] / 2
    first = max(schedule.logsnr[-1] / 2, -10)
    lam = samplers.levels_of(schedule, 12, "uniform_logsnr").finite().lam[:-1]
    np.testing.assert_allclose(lam, np.linspace(first, last, 12), rtol=1e-9)
    i, ends = np.arange(12) / 11, np.exp([-first, -last])
    published = (ends[0] ** (1 / 7) + i * (ends[1] ** (1 / 7) - ends[0] ** (1 / 7))) ** 7
    lam = samplers.levels_of(schedule, 12, "karras").finite().lam[:-1]
    np.testing.assert_allclose(np.exp(-lam), published, rtol=1e-9)
    # 200 (i / 10)^2 is whole, and then the level is the table's.
    quadratic = samplers.levels_of(schedule, 10, "quadratic")
    np.testing.assert_allclose(quadratic.lam[1:-1], schedule.logsnr[2 * np.arange(9, 0, -1) ** 2] / 2, rtol=1e-9)


def test_between_whole_t_the_level_is_as_in_training():
    # 200 (1 / 20)^2 = 1/2: half way from alpha[0] to alpha[1].
    levels = samplers.levels_of(VP, 20, "quadratic")
    np.testing.assert_allclose(levels.alpha[-2], (1 + VP.alpha[1]) / 2, rtol=1e-15)
    d = -np.expm1(np.log1p(-(VP.sigma[1] ** 2)) / 2) / 2
    np.testing.assert_allclose(levels.sigma[-2], np.sqrt(d * (2 - d)), rtol=1e-14)
    np.testing.assert_allclose(noise_schedule.time_of(VP, jnp.float32(levels.alpha[-2])), 0.5, rtol=5e-3)


def coefficients(step, alpha_from, alpha_to, **options):
    """Of x_t, of x0_hat, of the noise."""
    return [step(*unit[:2], alpha_from, alpha_to, unit[2], **options) for unit in np.eye(3)]


@pytest.mark.parametrize("t, s", [(1, 0), (2, 1), (100, 99), (200, 199), (200, 100), (200, 1), (50, 0)])
def test_ddim_with_eta_one_is_ddpm(t, s):
    ancestral = coefficients(samplers.ddpm_step, VP.alpha[t], VP.alpha[s])
    np.testing.assert_allclose(
        coefficients(samplers.ddim_step, VP.alpha[t], VP.alpha[s], eta=1.0), ancestral, rtol=1e-9, atol=1e-12
    )


def test_ddim_with_eta_one_is_finite_and_ddpm_in_float32_at_all_pairs_of_levels():
    schedule = noise_schedule.linear(1000, 1e-6, 2e-2)
    t, s = np.tril_indices(1001, -1)
    levels = jnp.float32(schedule.alpha[t]), jnp.float32(schedule.alpha[s])
    np.testing.assert_allclose(
        coefficients(samplers.ddim_step, *levels, eta=1.0), coefficients(samplers.ddpm_step, *levels), atol=1e-3
    )


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t, s", [(2, 1), (200, 150), (100, 1), (100, 0)])
def test_ddim_keeps_the_forward_process(t, s, eta):
    # With the true x0, a move must land on q(x_s | x0), whatever eta.
    of_x_t, of_x0, of_noise = coefficients(samplers.ddim_step, VP.alpha[t], VP.alpha[s], eta=eta)
    np.testing.assert_allclose(of_x_t * VP.alpha[t] + of_x0, VP.alpha[s], rtol=1e-9)
    np.testing.assert_allclose(np.hypot(of_x_t * VP.sigma[t], of_noise), VP.sigma[s], rtol=1e-9, atol=1e-12)
    _, deviation = diffusion.posterior(0.0, 0.0, VP.alpha[t], VP.alpha[s])
    np.testing.assert_allclose(of_noise, eta * deviation, rtol=1e-12)


@pytest.mark.parametrize("step", [samplers.ddpm_step, samplers.ddim_step])
def test_steps_take_numpy_and_jax_with_scalar_or_batched_levels(step):
    x_t, x0_hat, noise = np.random.default_rng(0).standard_normal((3, *SHAPE))
    on_host = step(x_t, x0_hat, VP.alpha[100], VP.alpha[50], noise)
    assert on_host.dtype == np.float64
    batched = (np.full((2, 1, 1, 1), VP.alpha[t]) for t in (100, 50))
    np.testing.assert_array_equal(step(x_t, x0_hat, *batched, noise), on_host)
    on_device = step(*map(jnp.float32, (x_t, x0_hat, VP.alpha[100], VP.alpha[50], noise)))
    np.testing.assert_allclose(on_device, on_host, rtol=1e-4, atol=1e-5)


def test_uniform_t_falls_strictly_from_the_end_to_clean():
    for total in (1, 7, 50, 200):
        schedule = noise_schedule.flow(total)
        for num_steps in range(1, total + 1):
            chosen = samplers.uniform_t(schedule, num_steps)
            assert len(chosen) == num_steps + 1 and chosen[0] == total and chosen[-1] == 0
            gaps = -np.diff(chosen)
            assert gaps.min() >= 1 and np.ptp(gaps) <= 1


def test_levels_are_those_of_the_schedule():
    levels = samplers.levels_of(VP, 200)
    np.testing.assert_array_equal(levels.alpha, VP.alpha[::-1])
    np.testing.assert_allclose(2 * levels.lam, VP.logsnr[::-1], rtol=1e-12)


def test_flow_levels_keep_the_signal_to_noise_ratio_from_noise_alone():
    levels = samplers.levels_of(FLOW, 200)
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1, rtol=1e-14)
    assert (levels.alpha[0], levels.sigma[0], levels.start) == (0, 1, 1)
    np.testing.assert_allclose(2 * levels.lam[1:-1], FLOW.logsnr[1:-1][::-1], rtol=1e-10)
    np.testing.assert_allclose(levels.own_sigma, FLOW.sigma[::-1], rtol=1e-14)
    assert levels.alpha[-1] == 1 and levels.sigma[-1] == 0


def test_samplers_that_need_a_finite_logsnr_start_at_minus_twenty():
    levels = samplers.levels_of(FLOW, 200)
    np.testing.assert_allclose(2 * levels.finite().lam[0], -20, rtol=1e-12)
    np.testing.assert_array_equal(levels.finite().alpha[1:], levels.alpha[1:])
    asked = {name: samplers.make_rows(name, levels).alpha[0] for name in samplers.SAMPLERS}
    exact = {"ddpm", "ddim", "resshift", "resfusion", "dpmpp_2m", "dpmpp_2m_sde"}
    assert {name for name, alpha in asked.items() if alpha == 0} == exact
    assert all(alpha == levels.finite().alpha[0] for name, alpha in asked.items() if name not in exact)
    # Where the level after it is fainter than that, it is fainter still.
    faint = samplers.levels_of(noise_schedule.rddm(1000), 1000).finite()
    assert -28 > 2 * faint.lam[0] == pytest.approx(2 * faint.lam[1] - 2)
