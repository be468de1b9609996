"""Samplers as tables of coefficients, and the noise levels that they visit; all on the host, in float64 numpy.

Every published sampler moves linearly in the current point, the denoiser's outputs so far and fresh noise, with
coefficients that depend on the noise levels alone. So a sampler is one short function that turns levels into rows, one
row per network evaluation:

    out  = denoise(y, alpha, sigma)
    h    = [remember . (y, out, h[0]), *h][:HISTORY]
    base = move . (base, h, noise)
    y    = look . (base, h)

with base = y = x_T and h = 0 at first; the result is the last y. `sampling.run` runs any of them in the same loop. To
add a sampler, write its function and name it in SAMPLERS.
"""

import inspect
from typing import NamedTuple

import numpy as np

from dream_jax import diffusion
from dream_jax.errors import UserError
from dream_jax.noise_schedule import NoiseSchedule

HISTORY = 5


class Levels(NamedTuple):
    """Variance-preserving levels, noisiest first, float64 [N+1]; sigma[N] may be 0 and is never evaluated."""

    alpha: np.ndarray
    sigma: np.ndarray

    @property
    def lam(self):
        """Half the log signal-to-noise ratio, log(alpha / sigma)."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)


class Rows(NamedTuple):
    """One row per network evaluation, float64: see the module's text."""

    alpha: np.ndarray  # [N] the level at which the network is evaluated
    sigma: np.ndarray  # [N]
    remember: np.ndarray  # [N, 3] over (y, out, h[0])
    move: np.ndarray  # [N, HISTORY + 2] over (base, h..., noise)
    look: np.ndarray  # [N, HISTORY + 1] over (base, h...)


def ddpm_step(x_t, x0_hat, alpha_from, alpha_to, noise):
    """One ancestral move, a sample of q(x_s | x_t, x0_hat) (Ho et al. 2020, algorithm 2 with variance eq. 7).

    Args:
      x_t, x0_hat, noise: images, or numbers.
      alpha_from, alpha_to: scalars, or broadcastable over the batch.
    """
    mean, deviation = diffusion.posterior(x_t, x0_hat, alpha_from, alpha_to)
    return mean + deviation * noise


def ddim_step(x_t, x0_hat, alpha_from, alpha_to, noise, eta=0.0):
    """One move of DDIM (Song et al. 2021, eq. 12 and 16): eta = 0 is deterministic, eta = 1 has DDPM's variance."""
    sigma_from, sigma_to = _sigma(alpha_from), _sigma(alpha_to)
    _, deviation = diffusion.posterior(x_t, x0_hat, alpha_from, alpha_to)
    eps_hat = (x_t - alpha_from * x0_hat) / sigma_from
    # sqrt(sigma_to^2 - eta^2 deviation^2) without the difference, which can round below zero at eta = 1.
    ancestral = alpha_from / alpha_to * sigma_to**2 / sigma_from
    direction = ((1 - eta**2) * sigma_to**2 + eta**2 * ancestral**2) ** 0.5
    return alpha_to * x0_hat + direction * eps_hat + eta * deviation * noise


def ddpm(levels: Levels) -> Rows:
    """Ancestral sampling, Ho et al. 2020, algorithm 2."""
    return _one_step_rows(ddpm_step, levels)


def ddim(levels: Levels, eta: float = 0.0) -> Rows:
    """DDIM, Song et al. 2021, eq. 12; eta in [0, 1] scales the noise added at each move."""
    if not 0 <= eta <= 1:
        raise UserError(f"eta = {eta}: it must lie between 0 (deterministic) and 1 (ancestral)")
    return _one_step_rows(lambda *args: ddim_step(*args, eta=eta), levels)


SAMPLERS = {"ddpm": ddpm, "ddim": ddim}


def _one_step_rows(step, levels: Levels) -> Rows:
    # A step is linear, so its coefficients are its values on unit inputs.
    num = len(levels.alpha) - 1
    ends = levels.alpha[:-1], levels.alpha[1:]
    move = np.zeros((num, HISTORY + 2))
    for column, unit in ((0, (1.0, 0.0, 0.0)), (1, (0.0, 1.0, 0.0)), (HISTORY + 1, (0.0, 0.0, 1.0))):
        x_t, x0_hat, noise = unit
        move[:, column] = step(x_t, x0_hat, *ends, noise)
    remember, look = np.zeros((num, 3)), np.zeros((num, HISTORY + 1))
    remember[:, 1] = 1
    look[:, 0] = 1
    return Rows(levels.alpha[:-1], levels.sigma[:-1], remember, move, look)


def uniform_t(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """num_steps + 1 table entries from T down to 0, in steps as equal as whole numbers allow."""
    return np.round(np.linspace(schedule.num_steps, 0, num_steps + 1)).astype(int)


SPACINGS = {"uniform_t": uniform_t}


def levels_of(schedule: NoiseSchedule, num_steps: int, spacing: str = "uniform_t") -> Levels:
    """The variance-preserving sampling levels for this number of network evaluations."""
    if spacing not in SPACINGS:
        raise UserError(f"spacing {spacing!r}: choose one of {', '.join(SPACINGS)}")
    if not 1 <= num_steps <= schedule.num_steps:
        raise UserError(
            f"{num_steps} sampling steps: the noise schedule has {schedule.num_steps} steps, so choose 1 to "
            f"{schedule.num_steps}"
        )
    chosen = SPACINGS[spacing](schedule, num_steps)
    alpha, sigma = schedule.alpha[chosen], schedule.sigma[chosen]
    if schedule.flow:
        # Pure noise has no finite logsnr, which multistep samplers need; at -20 the picture is still invisible.
        alpha = np.where(sigma > 0, np.maximum(alpha, 1 / (1 + np.exp(10.0))), alpha)
        sigma = 1 - alpha
        length = np.hypot(alpha, sigma)
        alpha, sigma = alpha / length, sigma / length
    return Levels(alpha, sigma)


def make_rows(sampler, levels: Levels, **options) -> Rows:
    """The rows of a sampler given by name in SAMPLERS or as a function `levels -> Rows`."""
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise UserError(f"sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}")
        sampler = SAMPLERS[sampler]
    taken = inspect.signature(sampler).parameters
    return sampler(levels, **{name: value for name, value in options.items() if name in taken})


def _sigma(alpha):
    return ((1 - alpha) * (1 + alpha)) ** 0.5
