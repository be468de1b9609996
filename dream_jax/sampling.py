"""The one loop that runs every sampler.

A sampler is a table of coefficients, see `samplers`; `sample` runs any of them in the same `lax.scan`:

    out  = denoise(y, alpha, sigma)
    h    = [remember . (y, out, h[0]), *h][:HISTORY]
    base = move . (base, h, noise)
    y    = look . (base, h)

with base = y = start * noise and h = 0 at first; the result is the last y.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax import diffusion
from dream_jax.noise_schedule import NoiseSchedule

# Samplers are looked up here by those who run them.
from dream_jax.samplers import HISTORY, SAMPLERS, Levels, Rows, ddim_step, ddpm_step, levels_of, make_rows  # noqa: F401

# Folded into a picture's key for its starting noise; rows are numbered from 0 and never get this far.
START = 2**31 - 1

# Of a table that is interpolated linearly, enough for float32.
_ENTRIES = 2**13


def make_denoise(predict, kind: str, schedule: NoiseSchedule, constrain=lambda x0: x0, eps_scale=None, told=None):
    """`denoise(x, alpha, sigma, previous=None) -> x0_hat` for `sample`, from a network's prediction.

    Args:
      predict: `(x_t, alpha, sigma) -> output` in the training schedule's own coordinates; alpha and sigma are scalars,
        or [B] where `told` makes them so. A fourth argument is x0_hat of the step before, where `run` shows it.
      kind: what it predicts.
      schedule: the training schedule. `sample` works in variance-preserving coordinates, x / hypot(alpha, sigma).
      constrain: `x0_hat -> x0_hat`, a clip for example.
      eps_scale: `alpha -> factor` by which the predicted noise is divided, see `epsilon_scale`.
      told: `(x, alpha) -> alpha` that the network is told instead of the true one, see `time_shift`. What its output
        means is still reckoned at the true level.
    """

    length_of = _length_of(schedule)

    def denoise(x, alpha, sigma, *previous):
        level = alpha, sigma
        if told is not None:
            shifted = told(x, alpha)
            level = shifted, jnp.sqrt((1 - shifted) * (1 + shifted))
        length = length_of(alpha, sigma)
        output = predict(length * x, *(length_of(*level) * part for part in level), *previous)
        x0_hat = diffusion.to_x0(kind, output, length * x, length * alpha, length * sigma)
        if eps_scale is not None:
            eps_hat = diffusion.to_eps("x0", x0_hat, x, alpha, sigma) / eps_scale(alpha)
            x0_hat = diffusion.to_x0("eps", eps_hat, x, alpha, sigma)
        return constrain(x0_hat)

    return denoise


def _length_of(schedule):
    """`(alpha, sigma) -> hypot` of the training level with the same signal-to-noise ratio, for normalised levels."""

    def place(alpha, sigma):
        # It rises smoothly along every schedule, from 0 to at most 1.
        return sigma / (alpha + sigma)

    steps = schedule.num_steps
    alphas, sigmas = schedule.at(np.linspace(0, steps, 1 + steps * -(-_ENTRIES // steps)))
    # Rounded, so that it is 1 throughout for levels that preserve variance.
    places, lengths = place(alphas, sigmas), np.round(np.hypot(alphas, sigmas), 12)

    def length_of(alpha, sigma):
        # numpy stays numpy, in float64.
        interp = jnp.interp if isinstance(alpha, jax.Array) else np.interp
        return interp(place(alpha, sigma), places, lengths)

    return length_of


def dynamic_threshold(picture, percentile: float = 0.995):
    """Dynamic thresholding (Saharia et al. 2022, Imagen, section 2.3) of pictures [B, H, W, C] around 0.

    Clips to [-s, s] and divides by s, where s, at least 1, is the percentile of a picture's absolute values.
    """
    limit = jnp.quantile(jnp.abs(picture), percentile, axis=(1, 2, 3), keepdims=True)
    limit = jnp.maximum(limit, 1)
    return jnp.clip(picture, -limit, limit) / limit


# What is done with a predicted picture whose values leave [-1, 1]; the option is dynamic's.
LIMITS = {
    "range": lambda picture, percentile=None: jnp.clip(picture, -1, 1),
    "dynamic": dynamic_threshold,
    "none": lambda picture, percentile=None: picture,
}


def epsilon_scale(schedule: NoiseSchedule, base: float = 1.0, slope: float = 0.0):
    """`alpha -> factor` of epsilon scaling: the predicted noise is divided by `slope * t / T + base`.

    Ning et al. 2024 (arXiv 2308.15321), section 5.2, with time as a fraction of T; slope 0 is their uniform scaling.
    A base a little above 1 makes up for a network that, on inputs of its own making, predicts too much noise.
    """
    alphas = jnp.asarray(schedule.normalised[0])

    def factor(alpha):
        return base + slope * jnp.interp(1 - alpha, 1 - alphas, jnp.linspace(0, 1, len(alphas)))

    return factor


def time_shift(schedule: NoiseSchedule, window: float, cutoff: float = 0.0):
    """`(x, alpha) -> alpha [B]` of the time-shift sampler (Li et al. 2024, arXiv 2305.15583, algorithm 3).

    Above the time `cutoff` the network is told the time within `window` / 2 of the true one at which the forward
    process has the variance of x, taken over the pixels of a picture. Times are in steps of the schedule, 0..T; levels
    are continuous, so that the paper's search over whole steps becomes a clip.
    """
    alphas = jnp.asarray(schedule.normalised[0])
    times = jnp.arange(len(alphas), dtype=alphas.dtype)

    def told(x, alpha):
        time = jnp.interp(1 - alpha, 1 - alphas, times)
        noisier, cleaner = (jnp.interp(time + side * window / 2, times, alphas) for side in (1, -1))
        fitting = jnp.sqrt(jnp.maximum(1 - jnp.var(x, axis=(1, 2, 3), ddof=1), 0))
        return jnp.where(time > cutoff, jnp.clip(fitting, noisier, cleaner), alpha)

    return told


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


def run(key, denoise, shape, rows: Rows, example_index=None, start_key=None, observe=None, shows=False):
    """`sample` with the rows at hand; as an argument of a jitted function they share one trace among all samplers.

    Args:
      start_key: where x_T comes from, the same for every picture, instead of each picture's own key. A good one serves
        all pictures (Ma et al. 2023, arXiv 2305.15357).
      observe: `(x, x0_hat, alpha, sigma) -> facts`, called at every network evaluation.
      shows: denoise takes a fourth argument: its x0_hat of the network evaluation before, zeros at the first.

    Returns:
      x0; with observe, (x0, facts stacked along a new first axis).
    """
    dtype = jnp.zeros(()).dtype
    index = jnp.arange(shape[0]) if example_index is None else example_index

    def noise_of(row):
        return noise(key, index, row, shape).astype(dtype)

    def step(carry, row):
        base, y, history, *previous = carry
        number, row = row
        out = denoise(y, row.alpha, row.sigma, *previous)
        facts = None if observe is None else observe(y, out, row.alpha, row.sigma)
        # Drawing noise costs as much as a small layer; deterministic rows skip it.
        fresh = jax.lax.cond(row.move[-1] != 0, noise_of, lambda _: jnp.zeros(shape, dtype), number)
        return (*advance(row, base, y, history, out, fresh), *([out] if shows else [])), facts

    own = start_key is None
    x = noise_of(START) if own else noise(start_key, jnp.zeros_like(index), START, shape).astype(dtype)
    x = jnp.asarray(rows.start, dtype) * x
    table = jax.tree.map(lambda a: jnp.asarray(a, dtype), rows._replace(start=None))
    numbered = jnp.arange(len(rows.alpha)), table
    nothing = jnp.zeros(shape, dtype)
    first = x, x, [nothing] * HISTORY, *([nothing] if shows else [])
    (_, y, *_), facts = jax.lax.scan(step, first, numbered)
    return y if observe is None else (y, facts)


def advance(row: Rows, base, y, history, out, fresh):
    """(base, y, history) after one row of a table, from those before it, out = x0_hat at y and fresh noise."""
    history = [_combine(row.remember, [y, out, history[0]]), *history[:-1]]
    base = _combine(row.move, [base, *history, fresh])
    return base, _combine(row.look, [base, *history]), history


def noise(key, index, row, shape):
    """Standard normal float32 [B, H, W, C]: picture index[b]'s, for the move of this row, whatever the batch."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), row))(index)
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:], jnp.float32))(keys)


def _combine(coefficients, parts):
    return sum(c * part for c, part in zip(coefficients, parts, strict=True))
