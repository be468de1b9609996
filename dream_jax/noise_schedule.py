"""Noise schedules: tables of (alpha, sigma) on the host in float64, and the drawing of training levels from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """`x_t = alpha[t] * x0 + sigma[t] * eps` for t = 0 (clean) .. T (noisiest).

    Attributes:
      alpha: float64 [T+1], falling from 1.
      sigma: float64 [T+1], rising from 0.
      flow: True where alpha + sigma = 1 (rectified flow), False where alpha^2 + sigma^2 = 1 (variance preserving).
    """

    alpha: np.ndarray
    sigma: np.ndarray
    flow: bool = False

    @property
    def num_steps(self) -> int:
        return len(self.alpha) - 1

    @property
    def alphas_bar(self) -> np.ndarray:
        """float64 [T+1]: the cumulative product of 1 - beta, for variance-preserving schedules."""
        return self.alpha**2

    @property
    def logsnr(self) -> np.ndarray:
        """float64 [T+1]: log(alpha^2 / sigma^2), infinite at t = 0."""
        with np.errstate(divide="ignore"):
            return 2 * (np.log(self.alpha) - np.log(self.sigma))


def from_betas(betas) -> NoiseSchedule:
    """A variance-preserving schedule from the variances beta_1 .. beta_T of its steps (Ho et al. 2020, eq. 2-4)."""
    log_alphas_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-np.asarray(betas, np.float64)))])
    # expm1 keeps the first levels' sigma exact where 1 - alphas_bar would cancel.
    return NoiseSchedule(alpha=np.exp(log_alphas_bar / 2), sigma=np.sqrt(-np.expm1(log_alphas_bar)))


def linear(num_steps: int, beta_start: float, beta_end: float) -> NoiseSchedule:
    """Betas in equal steps; SR3 and the DREAM paper use (2000, 1e-6, 1e-2)."""
    return from_betas(np.linspace(beta_start, beta_end, num_steps))


def cosine(num_steps: int, beta_min: float = 0.0, beta_max: float = 0.999) -> NoiseSchedule:
    """alphas_bar as a squared cosine (Nichol & Dhariwal 2021, eq. 17), its betas clipped to [beta_min, beta_max]."""
    angle = (np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2
    alphas_bar = np.cos(angle) ** 2
    return from_betas(np.clip(1 - alphas_bar[1:] / alphas_bar[:-1], beta_min, beta_max))


def flow(num_steps: int) -> NoiseSchedule:
    """Rectified flow: `x_t = (1 - s) x0 + s eps` with s = t / T (Liu et al. 2023, eq. 1, with noise at s = 1)."""
    sigma = np.arange(num_steps + 1) / num_steps
    return NoiseSchedule(alpha=1 - sigma, sigma=sigma, flow=True)


def draw(key, schedule: NoiseSchedule, continuous: bool = True, t_key=None):
    """Draws one example's training level; vmap it over the keys of a batch.

    The level is drawn through d = 1 - alpha, because a float32 alpha near 1 has no digits left for sigma: at the SR3
    schedule's t = 1 sigma would be 2.3% off and now and then exactly 0.

    Args:
      key: a PRNG key.
      schedule: the table to draw from.
      continuous: uniformly between levels t-1 and t (Chen et al. 2021, WaveGrad, algorithm 1), else exactly level t.
      t_key: where t itself comes from, if not from `key`; one key shared by a batch gives it one common t.

    Returns:
      (t, alpha, sigma), scalars: t int32 uniform in 1..T, sigma > 0.
    """
    own_t_key, u_key = jax.random.split(key)
    t = jax.random.randint(own_t_key if t_key is None else t_key, (), 1, schedule.num_steps + 1, jnp.int32)
    if not continuous:
        return t, jnp.asarray(schedule.alpha)[t], jnp.asarray(schedule.sigma)[t]
    table = schedule.sigma if schedule.flow else -np.expm1(np.log1p(-(schedule.sigma**2)) / 2)
    u = 1 - jax.random.uniform(u_key, (), jnp.float32)
    d = jnp.asarray(table[:-1])[t - 1] + u * jnp.asarray(np.diff(table))[t - 1]
    return t, 1 - d, d if schedule.flow else jnp.sqrt(d * (2 - d))


def time_of(schedule: NoiseSchedule, alpha):
    """The (fractional) t in 0..T at which the schedule has this alpha; for networks that are told the time.

    Args:
      alpha: any shape, values between schedule.alpha[T] and 1.
    """
    return jnp.interp(1 - alpha, jnp.asarray(1 - schedule.alpha), jnp.arange(schedule.num_steps + 1.0))
