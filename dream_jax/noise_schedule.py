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
      start: the deviation of the noise that sampling begins with; None is hypot(alpha[T], sigma[T]).

    Raises UserError for other tables.
    """

    alpha: np.ndarray
    sigma: np.ndarray
    distance: np.ndarray | None = None
    start: float | None = None

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
        if self.start is not None and not 0 < self.start < np.inf:
            raise UserError(f"start = {self.start}: sampling begins with noise of a deviation above 0")

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
        # With k = (sigma / alpha)^2, d (start + slope d) = k (1 - d)^2: the root in the form that does not cancel. The
        # bound is noise alone, lam = -inf, for which d is 1.
        k = np.exp(np.minimum(-2 * np.asarray(lam, np.float64), 600))
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


# The processes below lead from a picture x0 to a picture y that is given: x_t = c y + alpha (x0 - y) + sigma eps. Their
# tables are those of z = x_t - c y, which is what is modelled with `task.residual`.


def resshift(
    num_steps: int, kappa: float = 2.0, sqrt_eta_start: float = 0.02, sqrt_eta_end: float = 0.99, power: float = 0.3
) -> NoiseSchedule:
    """ResShift (Yue et al. 2023, arXiv 2307.12348), c = 1: alpha = 1 - eta, sigma = kappa sqrt(eta).

    sqrt(eta) grows geometrically in (t - 1)^power from its start, at t = 1, to its end. Sampling begins at y with noise
    of sigma.
    """
    if num_steps < 2:
        raise UserError(f"schedule.num_steps = {num_steps}: resshift has at least 2")
    if not 0 < sqrt_eta_start < sqrt_eta_end <= 1:
        raise UserError(f"schedule.sqrt_eta_end = {sqrt_eta_end}: 0 < sqrt_eta_start < sqrt_eta_end <= 1")
    growth = np.linspace(0, 1, num_steps) ** power
    root = np.concatenate([[0.0], sqrt_eta_start * (sqrt_eta_end / sqrt_eta_start) ** growth])
    return NoiseSchedule(1 - root**2, kappa * root, distance=root**2, start=kappa * sqrt_eta_end)


def rddm(num_steps: int, sum_scale: float = 1.0) -> NoiseSchedule:
    """Residual denoising (RDDM, Liu et al. 2024, arXiv 2308.13712), c = 1, with its steps for restoration.

    The residual's steps fall linearly in t to 0, the noise's variances grow linearly, up to sum_scale in all. At T no
    residual is left: alpha = 0.
    """
    t, total = np.arange(num_steps + 1.0), num_steps * (num_steps + 1)
    left = num_steps - t
    sigma = np.sqrt(sum_scale * t * (t + 1) / total)
    return NoiseSchedule(left * (left + 1) / total, sigma, distance=t * (num_steps + 1 + left) / total)


def ir_sde(num_steps: int, max_sigma: float = 10.0, alpha_end: float = 0.005) -> NoiseSchedule:
    """The mean-reverting SDE of Luo et al. 2023 (arXiv 2301.11699), c = 1, with its cosine schedule.

    Its x0 goes to y as alpha goes to alpha_end, and its variance to that of max_sigma, in grey levels of 255. Sampling
    begins at y with this noise. It preserves variance but for the noise's size, so `ddpm` samples its posterior.
    """
    if not 0 < alpha_end < 1:
        raise UserError(f"schedule.alpha_end = {alpha_end}: it must lie between 0 and 1")
    angle = (np.arange(num_steps + 3) / (num_steps + 2) + 0.008) / 1.008 * np.pi / 2
    rates = 1 - (np.cos(angle) / np.cos(angle[0])) ** 2
    passed = np.concatenate([[0.0], np.cumsum(rates[2:-1])])
    log_alpha = np.log(alpha_end) * passed / passed[-1]
    # Pictures are numbers in [-1, 1].
    deviation = 2 * max_sigma / 255
    sigma = deviation * np.sqrt(-np.expm1(2 * log_alpha))
    return NoiseSchedule(np.exp(log_alpha), sigma, distance=-np.expm1(log_alpha), start=deviation)


def resfusion(num_steps: int) -> NoiseSchedule:
    """Resfusion (Shi et al. 2023, arXiv 2311.14900): alpha = 2 c - 1, sigma^2 = 1 - c^2, c from a linear schedule.

    Its num_steps betas go in equal steps from 0.1 / num_steps to 20 / num_steps. The table ends where c falls to 1/2,
    which takes the place of the entry below; 12 steps become 5. There x_t knows y alone: alpha = 0.
    """
    betas = np.linspace(0.1 / num_steps, 20 / num_steps, num_steps)
    left = np.cumprod(np.maximum(1 - betas, 0))
    left[-1] = 0
    whole = np.argmax(left <= 1 / 4)
    log_c = np.concatenate([[0.0], np.cumsum(np.log1p(-betas[:whole])), [np.log(1 / 4)]]) / 2
    distance = -2 * np.expm1(log_c)
    distance[-1] = 1
    return NoiseSchedule(1 - distance, np.sqrt(-np.expm1(2 * log_c)), distance)


# By name in `schedule.name`: from the settings `config.schedule` to the schedule.
SCHEDULES = {
    "linear": lambda settings: linear(settings.num_steps, settings.beta_start, settings.beta_end),
    "cosine": lambda settings: cosine(settings.num_steps, settings.beta_min, settings.beta_max),
    "flow": lambda settings: flow(settings.num_steps),
    "resshift": lambda settings: resshift(
        settings.num_steps, settings.kappa, settings.sqrt_eta_start, settings.sqrt_eta_end, settings.power
    ),
    "rddm": lambda settings: rddm(settings.num_steps, settings.sum_scale),
    "ir_sde": lambda settings: ir_sde(settings.num_steps, settings.max_sigma, settings.alpha_end),
    "resfusion": lambda settings: resfusion(settings.num_steps),
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
