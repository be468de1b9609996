"""Diffusion from a picture x0 to a given picture y: its tables, its own chains beside their published recursions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dream_jax import diffusion, dream, noise_schedule, samplers, sampling
from dream_jax.config import keys
from dream_jax.errors import UserError
from dream_jax.noise_schedule import NoiseSchedule

RESSHIFT, RDDM = noise_schedule.resshift(15), noise_schedule.rddm(40, 0.5)
IR_SDE, RESFUSION = noise_schedule.ir_sde(20), noise_schedule.resfusion(12)
PROCESSES = {"resshift": RESSHIFT, "rddm": RDDM, "ir_sde": IR_SDE, "resfusion": RESFUSION}
KEY = jax.random.key(0, impl="threefry2x32")
SHAPE = (2, 4, 4, 3)
Y = np.random.default_rng(0).uniform(-1, 1, SHAPE)


def every_schedule(num_steps):
    """All that there are, of their default settings."""
    settings = keys.defaults().schedule
    settings.num_steps = num_steps
    return {name: make(settings) for name, make in noise_schedule.SCHEDULES.items()}


@pytest.mark.parametrize("kappa", [1.0, 2.0])
def test_resshift_is_a_random_walk_whose_root_grows_geometrically(kappa):
    schedule = noise_schedule.resshift(15, kappa)
    eta = 1 - schedule.alpha
    np.testing.assert_allclose(schedule.sigma, kappa * np.sqrt(eta), atol=1e-12)
    np.testing.assert_allclose(np.sqrt(eta[[1, -1]]), [0.02, 0.99], rtol=1e-12)
    growth = np.log(np.sqrt(eta[1:]) / 0.02) / np.log(0.99 / 0.02)
    np.testing.assert_allclose(growth, (np.arange(15) / 14) ** 0.3, atol=1e-10)
    assert schedule.start == pytest.approx(kappa * 0.99)


def test_rddm_has_linear_steps_and_ends_in_noise_alone():
    t = np.arange(1, 41)
    np.testing.assert_allclose(-np.diff(RDDM.alpha), 2 * (41 - t) / (40 * 41), rtol=1e-10)
    np.testing.assert_allclose(np.diff(RDDM.sigma**2), 0.5 * 2 * t / (40 * 41), rtol=1e-10)
    assert RDDM.alpha[-1] == 0 and RDDM.sigma[-1] ** 2 == pytest.approx(0.5)


def test_ir_sde_preserves_variance_but_for_its_size():
    size = 20 / 255
    np.testing.assert_allclose(IR_SDE.alpha**2 + (IR_SDE.sigma / size) ** 2, 1, rtol=1e-12)
    assert IR_SDE.alpha[-1] == pytest.approx(0.005) and IR_SDE.start == pytest.approx(size)
    # The rate is that of a cosine schedule's signal that is lost, from its second entry on, of 22.
    angle = (np.arange(2, 22) / 22 + 0.008) / 1.008 * np.pi / 2
    rate = 1 - (np.cos(angle) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    np.testing.assert_allclose(-np.diff(np.log(IR_SDE.alpha)), -np.log(0.005) * rate / rate.sum(), rtol=1e-10)


def test_resfusion_is_a_linear_schedule_up_to_where_its_signal_is_a_half():
    assert RESFUSION.num_steps == 5
    c = (1 + RESFUSION.alpha) / 2
    np.testing.assert_allclose(c**2 + RESFUSION.sigma**2, 1, rtol=1e-12)
    betas = 1 - c[1:] ** 2 / c[:-1] ** 2
    np.testing.assert_allclose(betas[:-1], np.linspace(0.1, 20, 12)[:4] / 12, rtol=1e-10)
    assert RESFUSION.alpha[-1] == 0 and c[-2] ** 2 * (1 - np.linspace(0.1, 20, 12)[4] / 12) < 1 / 4


@pytest.mark.parametrize("num_steps", [2, 3, 15, 1000])
def test_tables_of_any_length_are_schedules(num_steps):
    for name, schedule in every_schedule(num_steps).items():
        assert schedule.num_steps == num_steps or name == "resfusion"
        # The closed form of what lies between two entries, where there is one.
        alpha, sigma = schedule.at(np.linspace(0, schedule.num_steps, 777))
        if name in ("resshift", "ir_sde", "resfusion"):
            of = {"resshift": 4 * (1 - alpha), "ir_sde": (20 / 255) ** 2 * (1 - alpha**2)}
            np.testing.assert_allclose(sigma**2, of.get(name, 1 - ((1 + alpha) / 2) ** 2), atol=1e-12)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: noise_schedule.resshift(1), "at least 2"),
        (lambda: noise_schedule.resshift(9, sqrt_eta_start=0.5, sqrt_eta_end=0.4), "sqrt_eta_end"),
        (lambda: noise_schedule.resshift(9, sqrt_eta_end=1.1), "sqrt_eta_end"),
        (lambda: noise_schedule.ir_sde(9, alpha_end=1.0), "alpha_end"),
        (lambda: NoiseSchedule(RDDM.alpha, RDDM.sigma, start=0.0), "start"),
    ],
)
def test_impossible_settings_are_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_sampling_starts_from_the_noise_that_the_schedule_says():
    def stay(levels):
        rows = samplers.ddim(levels)
        rows.move[:] = np.eye(samplers.HISTORY + 2)[0]
        return rows

    noise = sampling.noise(KEY, jnp.arange(2), sampling.START, SHAPE)
    for schedule, start in ((IR_SDE, 20 / 255), (RESSHIFT, 1.98), (RDDM, 0.5**0.5)):
        x = sampling.sample(KEY, lambda x, alpha, sigma: x, SHAPE, schedule, stay, 5)
        np.testing.assert_allclose(x * np.hypot(schedule.alpha[-1], schedule.sigma[-1]), start * noise, rtol=1e-6)


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
def test_all_samplers_have_rows_for_all_schedules_or_are_refused_by_name(spacing):
    refused = set()
    for name, schedule in every_schedule(12).items():
        for sampler in samplers.SAMPLERS:
            for count in {1, 2, 3, 5, schedule.num_steps}:
                try:
                    check_rows(sampler, samplers.levels_of(schedule, count, spacing))
                except UserError as error:
                    assert f"sampler {sampler} needs" in str(error) and "choose ddim" in str(error)
                    refused.add((sampler, name))
    assert refused == {("resfusion", "resshift")}


def check_rows(sampler, levels):
    assert all(np.isfinite(part).all() for part in samplers.make_rows(sampler, levels))


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_levels_next_to_noise_alone_may_be_as_faint(sampler):
    schedule = noise_schedule.rddm(300)
    assert schedule.logsnr[-2] < -20
    check_rows(sampler, samplers.levels_of(schedule, 300))


def test_a_sigma_that_rises_towards_the_picture_is_refused():
    schedule = NoiseSchedule(np.array([1.0, 0.6, 0.3, 0.0]), np.array([0.0, 0.5, 0.8, 0.7]))
    for sampler in ("resshift", "resfusion"):
        with pytest.raises(UserError, match="whose sigma falls"):
            samplers.make_rows(sampler, samplers.levels_of(schedule, 3))


@pytest.mark.parametrize("sampler", ["resshift", "resfusion"])
@pytest.mark.parametrize("name", ["rddm", "ir_sde", "resfusion"])
def test_own_samplers_keep_the_forward_process(sampler, name):
    # With the true x0 a move must land on q(x_s | x0), and its noise is that of a process with the tables' sigma.
    schedule = PROCESSES[name]
    levels = samplers.levels_of(schedule, 5)
    of_x, of_x0, of_noise = samplers.make_rows(sampler, levels).move[:, [0, 1, -1]].T
    np.testing.assert_allclose(of_x * levels.alpha[:-1] + of_x0, levels.alpha[1:], atol=1e-12)
    np.testing.assert_allclose(np.hypot(of_x * levels.sigma[:-1], of_noise), levels.sigma[1:], atol=1e-12)


def test_where_variance_is_preserved_resfusion_is_ddpm():
    levels = samplers.levels_of(noise_schedule.cosine(100), 7)
    for ours, theirs in zip(samplers.resfusion(levels), samplers.ddpm(levels), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def network(xp, x, y, alpha):
    """x0 of a point x_t: any nonlinear function of its pixels and of y's."""
    return xp.tanh(0.6 * x * (1 - 0.4 * alpha) + 0.7 * xp.roll(y, 1, 2) + 0.3 * xp.cos(3 * x) * y + 0.1 * alpha)


def drawn(schedule, sampler, steps, c):
    """Pictures of `network`, with the residual as what is modelled; c: `alpha -> c`, of x_t = z + c y."""

    def predict(z, alpha, sigma):
        return network(jnp, z + c(alpha) * Y, Y, alpha) - Y

    denoise = sampling.make_denoise(predict, "x0", schedule)
    x = sampling.sample(KEY, denoise, SHAPE, schedule, sampler, steps)
    rows = sampling.START, *range(steps)
    return np.asarray(x + Y), [np.asarray(sampling.noise(KEY, jnp.arange(2), row, SHAPE), float) for row in rows]


def check(chain, schedule, sampler, steps, c=lambda alpha: 1.0):
    x, noises = drawn(schedule, sampler, steps, c)
    expected = chain(noises)
    assert abs(expected - Y).max() > 0.5
    np.testing.assert_allclose(x, expected, atol=1e-6)


@pytest.mark.parametrize("steps", [15, 4])
def test_resshift_is_its_published_chain(steps):
    """x' = (eta' x + (eta - eta') x0) / eta + kappa sqrt(eta' (eta - eta') / eta) noise, from y + kappa sqrt(eta)."""

    def chain(noises):
        eta = 1 - RESSHIFT.alpha[np.round(np.linspace(15, 0, steps + 1)).astype(int)]
        x = Y + 2 * np.sqrt(eta[0]) * noises[0]
        for now, following, noise in zip(eta[:-1], eta[1:], noises[1:], strict=True):
            x0 = network(np, x, Y, 1 - now)
            x = (following * x + (now - following) * x0) / now
            x = x + 2 * np.sqrt(following * (now - following) / now) * noise
        return x

    check(chain, RESSHIFT, "resshift", steps)


@pytest.mark.parametrize("sampler", ["ddim", "resshift"])
def test_rddm_is_its_published_chains(sampler):
    """From the residual y - x0 and the noise that it leaves: without noise; and ancestral, as of a random walk."""

    def chain(noises):
        t = np.arange(40, -1, -4)
        share, variance = t * (81 - t) / (40 * 41), 0.5 * t * (t + 1) / (40 * 41)
        x = Y + np.sqrt(variance[0]) * noises[0]
        for i, noise in enumerate(noises[1:]):
            residual = Y - network(np, x, Y, 1 - share[i])
            eps = (x - Y + (1 - share[i]) * residual) / np.sqrt(variance[i])
            fresh = variance[i + 1] * (1 - variance[i + 1] / variance[i]) if sampler == "resshift" else 0
            x = x - (share[i] - share[i + 1]) * residual
            x = x - (np.sqrt(variance[i]) - np.sqrt(variance[i + 1] - fresh)) * eps + np.sqrt(fresh) * noise
        return x

    check(chain, RDDM, sampler, 10)


def test_ir_sde_is_its_published_posterior():
    """The posterior of an Ornstein-Uhlenbeck process that reverts to y, from y with its stationary noise."""

    def chain(noises):
        theta, size = -np.log(IR_SDE.alpha[::-1]), 20 / 255
        x = Y + size * noises[0]
        for now, following, noise in zip(theta[:-1], theta[1:], noises[1:], strict=True):
            step, left, whole = (np.exp(-t) for t in (now - following, following, now))
            x0 = network(np, x, Y, whole)
            of_x, of_x0 = step * (1 - left**2) / (1 - whole**2), left * (1 - step**2) / (1 - whole**2)
            deviation = size * np.sqrt((1 - step**2) * (1 - left**2) / (1 - whole**2))
            x = Y + of_x * (x - Y) + of_x0 * (x0 - Y) + deviation * noise
        return x

    check(chain, IR_SDE, "ddpm", 20)


def test_resfusion_is_its_published_chain():
    """DDPM's posterior of x_t - (y - x0), from c y and the noise of c."""

    def chain(noises):
        c = ((1 + RESFUSION.alpha) / 2)[::-1]
        x = c[0] * Y + np.sqrt(1 - c[0] ** 2) * noises[0]
        for now, following, noise in zip(c[:-1], c[1:], noises[1:], strict=True):
            x0, kept = network(np, x, Y, 2 * now - 1), (now / following) ** 2
            residual = Y - x0
            mean = np.sqrt(kept) * (1 - following**2) * (x - residual) + following * (1 - kept) * (x0 - residual)
            beta = (1 - following**2) / (1 - now**2) * (1 - kept)
            x = mean / (1 - now**2) + residual + np.sqrt(beta) * noise
        return x

    check(chain, RESFUSION, "resfusion", 5, lambda alpha: (1 + alpha) / 2)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("name", PROCESSES)
def test_any_sampler_reaches_what_a_perfect_network_knows(name, sampler):
    schedule, truth = PROCESSES[name], np.linspace(-1, 1, np.prod(SHAPE)).reshape(SHAPE)
    if (name, sampler) == ("resshift", "resfusion"):
        return
    denoise = sampling.make_denoise(lambda z, alpha, sigma: jnp.asarray(truth - Y, jnp.float32), "x0", schedule)
    x = sampling.sample(KEY, denoise, SHAPE, schedule, sampler, 5)
    np.testing.assert_allclose(x + Y, truth, atol=2e-6)


@pytest.mark.parametrize("kind", ["x0", "v"])
def test_dream_s_pair_is_finite_to_the_last_level(kind):
    # There the estimate of the noise is the input, and where no picture is visible rectification shows the estimate's.
    x0, eps = np.random.default_rng(1).standard_normal((2, 3, 4, 4, 3)).astype(np.float32)
    for schedule in every_schedule(12).values():
        alpha, sigma = (jnp.asarray(table[[1, -2, -1]], jnp.float32) for table in (schedule.alpha, schedule.sigma))
        lam = dream.weight("power", alpha, sigma, jnp.ones(3))

        def predict_eps(x_t, alpha=alpha, sigma=sigma):
            output = jnp.tanh(x_t)
            return diffusion.to_eps(kind, output, x_t, alpha, sigma)

        x_t, target = dream.training_pair(predict_eps, x0, eps, alpha, sigma, lam, kind)
        assert np.isfinite(x_t).all() and np.isfinite(target).all()
        if kind == "x0":
            # x_t has the x0 that is blended, and the noise that was drawn.
            blended = diffusion.add_noise(x0, eps, alpha, sigma)
            seen = diffusion.to_x0(kind, jnp.tanh(blended), blended, alpha, sigma)
            share = diffusion.expand(lam, blended)
            np.testing.assert_allclose(
                x_t, diffusion.add_noise((1 - share) * x0 + share * seen, eps, alpha, sigma), atol=2e-5
            )


@pytest.mark.parametrize("name", ["rddm", "resfusion"])
def test_eps_is_refused_where_the_last_level_is_noise_alone(name):
    changes = f"schedule.name={name}", "schedule.num_steps=12", "evaluation.steps=1,"
    with pytest.raises(UserError, match=rf"objective\.kind = 'eps': .*{name} ends in noise alone.*use x0 or v"):
        tiny.tiny_config(*changes, "objective.kind=eps")
    for kind in ("x0", "v"):
        tiny.tiny_config(*changes, f"objective.kind={kind}")


def test_samplers_are_held_against_the_schedule_before_training():
    changes = "schedule.name=resshift", "schedule.num_steps=15"
    with pytest.raises(UserError, match=r"evaluation\.samplers = .*sampler resfusion needs.*choose ddim"):
        tiny.tiny_config(*changes, "evaluation.samplers=resshift,resfusion")
    with pytest.raises(UserError, match=r"samples\.sampler = 'resfusion'"):
        tiny.tiny_config(*changes, "samples.sampler=resfusion")
    with pytest.raises(UserError, match="from 1 to the steps of the schedule resfusion = 5"):
        tiny.tiny_config("schedule.name=resfusion", "schedule.num_steps=12", "evaluation.steps=6,")
