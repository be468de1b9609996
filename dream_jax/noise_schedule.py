"""Noise schedules: tables of (alpha, sigma) on the host in float64, and the drawing of training levels from them.

To add a noise schedule, write a function that makes its tables and name it in SCHEDULES.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """`x_t = alpha[t] * x0 + sigma[t] * eps` for t = 0 (clean) .. T (noisiest): any pair of tables.

    Between two entries alpha is linear in t, and sigma follows `sigma^2 = d (a + b d)` with d = 1 - alpha, whose a and
    b are those of the two entries. For variance-preserving tables that is sqrt(1 - alpha^2), for flow it is 1 - alpha.

    Attributes:
      alpha: float64 [T+1], always falling, from 1 to 0 or above.
      sigma: float64 [T+1], from 0; above 0 at all other entries.
      distance: float64 [T+1], 1 - alpha, from a formula that does not cancel near alpha = 1; None takes the difference.

    Raises UserError for other tables.
    """

    alpha: np.ndarray
    sigma: np.ndarray
    distance: np.ndarray | None = None

    def __post_init__(self):
        if self.distance is None:
            object.__setattr__(self, "distance", 1 - self.alpha)
        if not (
            len(self.alpha) == len(self.sigma) > 1
            and (self.alpha[0], self.sigma[0]) == (1, 0)
            and (np.diff(self.alpha) < 0).all()
            and self.alpha[-1] >= 0
            and (self.sigma[1:] > 0).all()
        ):
            raise UserError("a noise schedule needs an alpha that falls from 1, and a sigma that is 0 there only")

    @property
    def num_steps(self) -> int:
        return len(self.alpha) - 1

    @property
    def alphas_bar(self) -> np.ndarray:
        """float64 [T+1]: the cumulative product of 1 - beta, for variance-preserving schedules."""
        return self.alpha**2

    @property
    def logsnr(self) -> np.ndarray:
        """float64 [T+1]: log(alpha^2 / sigma^2), infinite at t = 0, and minus infinity where alpha is 0."""
        with np.errstate(divide="ignore"):
            return 2 * (np.log(self.alpha) - np.log(self.sigma))

    @functools.cached_property
    def length(self) -> np.ndarray:
        """float64 [T+1]: hypot(alpha, sigma), by which levels are divided for samplers and rectification weights."""
        # Rounded, so that levels that preserve variance stay what they are to the last bit.
        return np.round(np.hypot(self.alpha, self.sigma), 15)

    @property
    def normalised(self) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, sigma), float64 [T+1] each, of the same signal-to-noise ratios, with alpha^2 + sigma^2 = 1."""
        return self.alpha / self.length, self.sigma / self.length

    @functools.cached_property
    def _curve(self):
        """(a, b), float64 [T] each, of the intervals that end at t = 1 .. T."""
        ratio = self.sigma[1:] ** 2 / self.distance[1:]
        slope = np.diff(ratio) / np.diff(self.distance[1:])
        # The first interval begins at 0 / 0, and goes on with the second's curve, or with a constant ratio.
        slope = np.concatenate([slope[:1] if len(slope) else [0.0], slope])
        start = ratio - slope * self.distance[1:]
        if start[0] < 0:
            start[0], slope[0] = 0.0, ratio[0] / self.distance[1]
        return start, slope

    def at(self, t) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, sigma), float64, at times t between 0 and T, whole or not; any shape."""
        t = np.asarray(t, np.float64)
        last = np.clip(np.ceil(t).astype(int), 1, self.num_steps)
        d = np.interp(t, np.arange(self.num_steps + 1), self.distance)
        start, slope = (part[last - 1] for part in self._curve)
        between = 1 - d, np.sqrt(d * (start + slope * d))
        entry = np.round(t).astype(int)
        whole = t == entry
        return np.where(whole, self.alpha[entry], between[0]), np.where(whole, self.sigma[entry], between[1])

    def time_at(self, lam) -> np.ndarray:
        """The times, float64, whose half-logsnr log(alpha / sigma) is lam; any shape."""
        table = self.logsnr / 2
        last = np.clip(len(table) - np.searchsorted(table[::-1], lam), 1, self.num_steps)
        start, slope = (part[last - 1] for part in self._curve)
        # With k = (sigma / alpha)^2, d (start + slope d) = k (1 - d)^2: the root in the form that does not cancel.
        k = np.exp(-2 * np.asarray(lam, np.float64))
        d = k / (start / 2 + k + np.sqrt(start**2 / 4 + k * (start + slope)))
        return last - 1 + (d - self.distance[last - 1]) / (self.distance[last] - self.distance[last - 1])


def from_betas(betas) -> NoiseSchedule:
    """A variance-preserving schedule from the variances beta_1 .. beta_T of its steps (Ho et al. 2020, eq. 2-4)."""
    log_alphas_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-np.asarray(betas, np.float64)))])
    # expm1 keeps the first levels' sigma exact where 1 - alphas_bar would cancel, and log1p their distance from 1.
    sigma = np.sqrt(-np.expm1(log_alphas_bar))
    with np.errstate(divide="ignore"):
        distance = -np.expm1(np.log1p(-(sigma**2)) / 2)
    return NoiseSchedule(np.exp(log_alphas_bar / 2), sigma, distance)


def linear(num_steps: int, beta_start: float, beta_end: float) -> NoiseSchedule:
    """Betas in equal steps; SR3 and the DREAM paper use (2000, 1e-6, 1e-2)."""
    if not 0 < beta_start <= beta_end < 1:
        raise UserError(f"schedule.beta_end = {beta_end}: 0 < beta_start <= beta_end < 1")
    return from_betas(np.linspace(beta_start, beta_end, num_steps))


def cosine(num_steps: int, beta_min: float = 0.0, beta_max: float = 0.999) -> NoiseSchedule:
    """alphas_bar as a squared cosine (Nichol & Dhariwal 2021, eq. 17), its betas clipped to [beta_min, beta_max]."""
    if not 0 <= beta_min < beta_max < 1:
        raise UserError(f"schedule.beta_max = {beta_max}: 0 <= beta_min < beta_max < 1")
    angle = (np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2
    alphas_bar = np.cos(angle) ** 2
    return from_betas(np.clip(1 - alphas_bar[1:] / alphas_bar[:-1], beta_min, beta_max))


def flow(num_steps: int) -> NoiseSchedule:
    """Rectified flow: `x_t = (1 - s) x0 + s eps` with s = t / T (Liu et al. 2023, eq. 1, with noise at s = 1)."""
    sigma = np.arange(num_steps + 1) / num_steps
    return NoiseSchedule(1 - sigma, sigma, distance=sigma)


# By name in `schedule.name`: from the settings `config.schedule` to the schedule.
SCHEDULES = {
    "linear": lambda settings: linear(settings.num_steps, settings.beta_start, settings.beta_end),
    "cosine": lambda settings: cosine(settings.num_steps, settings.beta_min, settings.beta_max),
    "flow": lambda settings: flow(settings.num_steps),
}


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
    u = 1 - jax.random.uniform(u_key, (), jnp.float32)
    d = jnp.asarray(schedule.distance[:-1])[t - 1] + u * jnp.asarray(np.diff(schedule.distance))[t - 1]
    start, slope = (jnp.asarray(part)[t - 1] for part in schedule._curve)
    return t, 1 - d, jnp.sqrt(d * (start + slope * d))


def time_of(schedule: NoiseSchedule, alpha):
    """The (fractional) t in 0..T at which the schedule has this alpha; for networks that are told the time.

    Args:
      alpha: any shape, values between schedule.alpha[T] and 1.
    """
    return jnp.interp(1 - alpha, jnp.asarray(1 - schedule.alpha), jnp.arange(schedule.num_steps + 1.0))
