"""What training converges to: the fixed point of an objective on Gaussian data, and the variance of what is sampled.

The data are N(0, variance) in every pixel, like a picture's values around the mean that the condition tells. Then the
best network of DREAM, as of the standard objective, is linear in x_t at every level, even with infinite capacity, and
training stops where it is the best for inputs and targets that it rectified itself. docs/theory.md has the derivation.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax import diffusion, dream, objectives, sampling
from dream_jax.errors import UserError
from dream_jax.noise_schedule import NoiseSchedule, time_of
from dream_jax.samplers import HISTORY, Rows

# Halfway to the best network each, until that changes no more; at p = 0 the noisiest levels take this many.
_ITERATIONS, _CHANGE = 20_000, 1e-13


def x0_gains(schedule: NoiseSchedule, settings, alpha, sigma, variance: float) -> np.ndarray:
    """`x0_hat / x_t` of the trained network at levels of a schedule, float64 [L].

    Args:
      settings: `config.objective`, of the standard objective or DREAM.
      alpha, sigma: float64 [L], in the schedule's own coordinates.
      variance: of the data.

    Raises UserError for another objective, whose best network is not linear, and for a mixture of both on turns.
    """
    chosen = objectives.chosen(settings)
    if chosen not in (objectives.OBJECTIVES["standard"], objectives.OBJECTIVES["dream"]):
        raise UserError(f"objective.name = {settings.name!r}: the fixed point is known for standard and dream")
    if chosen.rectifies and settings.estimate_every != 1:
        raise UserError(
            f"objective.estimate_every = {settings.estimate_every}: the fixed point is known where all steps rectify; "
            "set it to 1"
        )
    with jax.enable_x64(True):
        alpha, sigma = jnp.asarray(alpha, float), jnp.asarray(sigma, float)
        lam = None
        # Where DREAM stops, training ends with the standard objective.
        if chosen.rectifies and settings.stop_step is None:
            options = {"rate": settings.rate, "threshold": settings.threshold, "p": settings.p}
            time = time_of(schedule, alpha) / schedule.num_steps
            bounds = settings.minimum, settings.maximum
            lam = dream.weight(settings.weight, alpha, sigma, time, minimum=bounds[0], maximum=bounds[1], **options)
        return np.asarray(_solve(settings.kind, settings.noise, alpha, sigma, lam, variance))


def _solve(kind, noise, alpha, sigma, lam, variance):
    # A picture of three pixels holds the coefficients of three independent variables of variance 1: those of the data,
    # the noise and the second pass's noise. All that training does is linear in them, so it is done to coefficients.
    data, eps, fresh = (jnp.broadcast_to(jnp.eye(3)[i], (len(alpha), 1, 1, 3)) for i in range(3))
    x0 = variance**0.5 * data

    def pair(gain):
        def predict_eps(x_t):
            return diffusion.to_eps(kind, diffusion.expand(gain, x_t) * x_t, x_t, alpha, sigma)

        return dream.training_pair(predict_eps, x0, eps, alpha, sigma, lam, kind, fresh if noise == "fresh" else None)

    def best(gain):
        return _regression(*pair(gain))

    @jax.jit
    def iterate(gain):
        def step(state):
            count, gain, _ = state
            new = (gain + best(gain)) / 2
            return count + 1, new, jnp.max(jnp.abs(new - gain) * sigma)

        def going(state):
            return (state[0] < _ITERATIONS) & (state[2] > _CHANGE)

        return jax.lax.while_loop(going, step, (0, gain, jnp.inf))[1]

    # From the standard objective's: at p = 0 there is a second fixed point, to say nothing of the picture.
    gain = iterate(_regression(*dream.training_pair(None, x0, eps, alpha, sigma, None, kind)))
    return diffusion.to_x0(kind, gain, jnp.ones_like(gain), alpha, sigma)


def _regression(x_t, target):
    """The best gain, of targets on inputs."""
    return jnp.sum(x_t * target, (1, 2, 3)) / jnp.sum(x_t * x_t, (1, 2, 3))


def sampled_variance(rows: Rows, gains) -> float:
    """The variance of what a sampler draws with a linear network, exactly.

    Args:
      rows: of `samplers.make_rows`.
      gains: `x0_hat / x` at the rows' levels, in their variance-preserving coordinates, [N].
    """
    # The state is (base, y, h...); the loop is that of `sampling.run`.
    covariance = np.zeros((HISTORY + 2, HISTORY + 2))
    covariance[:2, :2] = rows.start**2
    for row, gain in zip(range(len(gains)), gains, strict=True):
        newest = np.zeros(HISTORY + 2)
        newest[1] = rows.remember[row, 0] + rows.remember[row, 1] * gain
        newest[2] += rows.remember[row, 2]
        history = np.vstack([newest, np.eye(HISTORY + 2)[2:-1]])
        base = rows.move[row, :-1] @ np.vstack([np.eye(HISTORY + 2)[:1], history])
        y = rows.look[row] @ np.vstack([base[None], history])
        matrix, noise = np.vstack([base, y, history]), np.zeros(HISTORY + 2)
        noise[0], noise[1] = rows.move[row, -1], rows.look[row, 0] * rows.move[row, -1]
        covariance = matrix @ covariance @ matrix.T + np.outer(noise, noise)
    return float(covariance[1, 1])


def variance_ratio(schedule: NoiseSchedule, settings, variance: float, sampler: str, steps: int, **options) -> float:
    """The variance of samples of the trained network over that of the data: 1 for a perfect sampler.

    Args:
      settings: `config.objective`.
      sampler, steps: which sampler, at how many network evaluations; options are its own, and `spacing`.
    """
    levels = sampling.levels_of(schedule, steps, options.pop("spacing", "uniform_t"))
    rows = sampling.make_rows(sampler, levels, **options)
    # The training schedule's level of the same signal-to-noise ratio, whose inputs are `length` times as long.
    time = schedule.time_at(sampling.Levels(rows.alpha, rows.sigma).lam)
    alpha, sigma = schedule.at(time)
    length = np.hypot(alpha, sigma)
    return sampled_variance(rows, length * x0_gains(schedule, settings, alpha, sigma, variance)) / variance
