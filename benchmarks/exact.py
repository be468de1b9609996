"""Distributions whose sampling is known exactly, in float64, and samplers' errors on them."""

import functools
from math import erf

import numpy as np

from dream_jax import diffusion, noise_schedule, samplers, sampling

VP = noise_schedule.linear(200, 1e-4, 0.08)
STOCHASTIC = ("ddpm", "dpmpp_2m_sde", "resshift", "resfusion")
DETERMINISTIC = [name for name in samplers.SAMPLERS if name not in STOCHASTIC]


def run(rows, denoise, x, noise=None):
    """The loop of samplers.py's text, from the starting noise x. noise: one array for each row, or none."""
    # base, what is remembered from new to old, and noise.
    known = np.zeros((samplers.HISTORY + 2, *np.shape(x)))
    known[0] = y = rows.start * x
    for i, (alpha, sigma, remember, move, look) in enumerate(zip(*rows[:5], strict=True)):
        out = denoise(y, alpha, sigma)
        new = remember[0] * y + remember[1] * out + remember[2] * known[1]
        known[2:-1], known[1] = known[1:-2].copy(), new
        known[-1] = 0 if noise is None else noise[i]
        known[0] = move @ known
        y = look @ known[:-1]
    return y


def levels_at(lam):
    lam = np.asarray(lam)
    return samplers.Levels((1 + np.exp(-2 * lam)) ** -0.5, (1 + np.exp(2 * lam)) ** -0.5)


class Mixture:
    """Scalar data from a mixture of Gaussians, of which everything is known."""

    def __init__(self, weights, means, deviations):
        self.weights, self.means, self.deviations = map(np.array, (weights, means, deviations))

    def x0(self, x, alpha, sigma):
        """E[x0 | x_t = x]."""
        x, variance = x[..., None], (alpha * self.deviations) ** 2 + sigma**2
        log = np.log(self.weights) - np.log(variance) / 2 - (x - alpha * self.means) ** 2 / (2 * variance)
        share = np.exp(log - log.max(-1, keepdims=True))
        each = self.means + alpha * self.deviations**2 / variance * (x - alpha * self.means)
        return (share * each).sum(-1) / share.sum(-1)

    def network(self, kind):
        def predict(x, alpha, sigma):
            x0 = self.x0(x, alpha, sigma)
            return diffusion.target(kind, x0, (x - alpha * x0) / sigma, alpha, sigma)

        return predict

    def denoise(self, kind="x0", schedule=None):
        return sampling.make_denoise(self.network(kind), kind, schedule or VP)

    def quantile_of(self, x, alpha, sigma):
        z = (x[..., None] - alpha * self.means) / np.sqrt((alpha * self.deviations) ** 2 + sigma**2)
        return (self.weights * np.vectorize(erf)(z / np.sqrt(2))).sum(-1)

    def solution(self, x, levels):
        """Where the probability-flow ODE leads from x: in one dimension it keeps the quantile."""
        quantile = self.quantile_of(x, levels.alpha[0], levels.sigma[0])
        low, high = np.full_like(x, -10.0), np.full_like(x, 10.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.quantile_of(middle, levels.alpha[-1], levels.sigma[-1]) < quantile
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return low


GAUSSIAN = Mixture([1.0], [0.3], [0.25])
MIXTURE = Mixture([0.3, 0.5, 0.2], [-0.6, 0.1, 0.8], [0.12, 0.2, 0.1])
POINTS = np.linspace(-1.5, 1.5, 7)


def errors(sampler, data, spaced, counts, kind="x0"):
    """The largest error from POINTS on, for each count; spaced(count): half-logsnrs of count + 1 levels."""
    results = []
    for count in counts:
        levels = levels_at(spaced(count))
        x = run(_rows(sampler, tuple(levels.alpha), tuple(levels.sigma)), data.denoise(kind), POINTS)
        results.append(abs(x - solution(data, levels.lam[0], levels.lam[-1])).max())
    return np.array(results)


@functools.lru_cache(maxsize=8)
def _rows(sampler, alpha, sigma):
    """For several kinds and data one after the other."""
    return samplers.make_rows(sampler, samplers.Levels(np.array(alpha), np.array(sigma)))


@functools.cache
def solution(data, first, last):
    return data.solution(POINTS, levels_at([first, last]))


def slope(counts, results):
    return -np.polyfit(np.log(counts), np.log(results), 1)[0]


def even(count, first=-5.0, last=2.0):
    return np.linspace(first, last, count + 1)


# Observed orders. Those of UniPC are one above its predictor's.
ORDERS = {
    "ddim": 1,
    "heun": 2,
    "dpm_solver_2": 2,
    "dpm_solver_3": 3,
    "dpmpp_2m": 2,
    "dpmpp_3m": 3,
    "deis_2": 2,
    "deis_3": 3,
    "plms": 2,
    "pndm": 2,
    "unipc_2": 3,
    "unipc_3": 4,
    "ghvb": 2,
}


def moments(rows, denoise):
    """Mean and standard deviation of the result from x_T ~ N(0, 1), exactly, for a denoiser that is affine in x."""
    # The result is affine in x_T and in each row's noise: one run for each of them, and one with all at 0.
    num = len(rows.alpha) if rows.move[:, -1].any() else 0
    units = np.eye(num + 2)[1:]
    offset, *rest = run(rows, denoise, units[0], units[1:] if num else None)
    return np.array([offset, np.linalg.norm(np.array(rest) - offset)])
