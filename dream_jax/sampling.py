"""Samplers as tables of coefficients, and the one loop that runs them all.

Every published sampler moves linearly in the current point, the denoiser's outputs so far and fresh noise, with
coefficients that depend on the noise levels alone. So a sampler is one short function in float64 numpy that turns
levels into rows, one row per network evaluation, and `sample` runs any of them in the same `lax.scan`:

    out  = denoise(y, alpha, sigma)
    h    = [remember . (y, out, h[0]), *h][:HISTORY]
    base = move . (base, h, noise)
    y    = look . (base, h)

with base = y = x_T and h = 0 at first; the result is the last y. To add a sampler, write its function and name it in
SAMPLERS.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax import diffusion
from dream_jax.errors import UserError
from dream_jax.noise_schedule import NoiseSchedule

HISTORY = 5

# Folded into a picture's key for its starting noise; rows are numbered from 0 and never get this far.
_START = 2**31 - 1


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


def make_denoise(predict, kind: str, flow: bool, constrain=lambda x0: x0):
    """`denoise(x, alpha, sigma) -> x0_hat` for `sample`, from a network's prediction.

    Args:
      predict: `(x_t, alpha, sigma) -> output` in the training schedule's own coordinates; alpha and sigma are scalars.
      kind: what it predicts.
      flow: whether those are a flow schedule's (alpha + sigma = 1); `sample` works in variance-preserving ones.
      constrain: `x0_hat -> x0_hat`, a clip for example.
    """

    def denoise(x, alpha, sigma):
        if flow:
            length = alpha + sigma
            x, alpha, sigma = x / length, alpha / length, sigma / length
        return constrain(diffusion.to_x0(kind, predict(x, alpha, sigma), x, alpha, sigma))

    return denoise


def sample(
    key,
    denoise,
    shape,
    schedule: NoiseSchedule,
    sampler,
    num_steps: int,
    spacing: str = "uniform_t",
    levels: Levels | None = None,
    example_index=None,
):
    """Draws images.

    Args:
      key: a PRNG key. Picture i's noise depends on (key, i) alone, never on the batch that it is drawn in.
      denoise: `(x, alpha, sigma) -> x0_hat` in variance-preserving coordinates, see `make_denoise`.
      shape: (B, H, W, C).
      schedule: the training schedule, re-spaced to num_steps network evaluations.
      sampler: a name in SAMPLERS, or a function `levels -> Rows`.
      levels: overrides schedule, num_steps and spacing.
      example_index: int [B], the i of each picture; 0..B-1 by default.

    Returns:
      x0, float32 [B, H, W, C] (float64 where jax_enable_x64 is on).
    """
    levels = levels_of(schedule, num_steps, spacing) if levels is None else levels
    return run(key, denoise, shape, make_rows(sampler, levels), example_index)


def make_rows(sampler, levels: Levels, **options) -> Rows:
    """The rows of a sampler given by name in SAMPLERS or as a function `levels -> Rows`."""
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise UserError(f"sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}")
        sampler = SAMPLERS[sampler]
    return sampler(levels, **options)


def run(key, denoise, shape, rows: Rows, example_index=None):
    """`sample` with the rows at hand; as an argument of a jitted function they share one trace among all samplers."""
    dtype = jnp.zeros(()).dtype
    index = jnp.arange(shape[0]) if example_index is None else example_index
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)

    def noise_of(row):
        draw = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, row), shape[1:], jnp.float32))
        return draw(keys).astype(dtype)

    def step(carry, row):
        base, y, history = carry
        number, row = row
        out = denoise(y, row.alpha, row.sigma)
        newest = _combine(row.remember, [y, out, history[0]])
        history = [newest, *history[:-1]]
        # Drawing noise costs as much as a small layer; deterministic rows skip it.
        noise = jax.lax.cond(row.move[-1] != 0, noise_of, lambda _: jnp.zeros(shape, dtype), number)
        base = _combine(row.move, [base, *history, noise])
        return (base, _combine(row.look, [base, *history]), history), None

    x = noise_of(_START)
    table = jax.tree.map(lambda a: jnp.asarray(a, dtype), rows)
    numbered = jnp.arange(len(rows.alpha)), table
    (_, y, _), _ = jax.lax.scan(step, (x, x, [jnp.zeros(shape, dtype)] * HISTORY), numbered)
    return y


def _combine(coefficients, parts):
    return sum(c * part for c, part in zip(coefficients, parts, strict=True))


def _sigma(alpha):
    return ((1 - alpha) * (1 + alpha)) ** 0.5
