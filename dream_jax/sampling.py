"""The one loop that runs every sampler.

A sampler is a table of coefficients, see `samplers`; `sample` runs any of them in the same `lax.scan`:

    out  = denoise(y, alpha, sigma)
    h    = [remember . (y, out, h[0]), *h][:HISTORY]
    base = move . (base, h, noise)
    y    = look . (base, h)

with base = y = x_T and h = 0 at first; the result is the last y.
"""

import jax
import jax.numpy as jnp

from dream_jax import diffusion
from dream_jax.noise_schedule import NoiseSchedule

# Samplers are looked up here by those who run them.
from dream_jax.samplers import HISTORY, SAMPLERS, Levels, Rows, ddim_step, ddpm_step, levels_of, make_rows  # noqa: F401

# Folded into a picture's key for its starting noise; rows are numbered from 0 and never get this far.
_START = 2**31 - 1


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
