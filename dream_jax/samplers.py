"""Samplers as tables of coefficients, and the noise levels that they visit; all on the host, in float64 numpy.

Every published sampler moves linearly in the current point, the denoiser's outputs so far and fresh noise, with
coefficients that depend on the noise levels alone. So a sampler is one short function that turns levels into rows, one
row per network evaluation:

    out  = denoise(y, alpha, sigma)
    h    = [remember . (y, out, h[0]), *h][:HISTORY]
    base = move . (base, h, noise)
    y    = look . (base, h)

with base = y = start * noise and h = 0 at first; the result is the last y. `sampling.run` runs any of them in the same
loop. To add a sampler, write its function and name it in SAMPLERS.

A deterministic move is DDIM's with x0_hat, or eps_hat, replaced by a weighted mean over the history; samplers differ in
where they evaluate and in the weights. All of them keep to this:

- N + 1 levels make N rows, and N is never too small: what does not fit falls back to lower orders.
- Multistep samplers evaluate at levels 0 .. N-1, and gain an order with each evaluation until they have theirs. The
  first move's error is of second order but as small as the signal at level 0: dpmpp_3m and deis_3 have order 3 from
  logsnr -10 on, and 2 from -2 on.
- Single-step samplers take blocks of k evaluations, each from level i to level i + k. Evaluations left over make a
  last, shorter block of lower order. A level where a block would be too long a step is left by DDIM's.
- A last move to sigma = 0, where the logsnr is infinite, is DDIM's, straight to x0_hat, and takes one evaluation.
  Where sigma[N] > 0 the order holds to the end.

The papers: Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM), Karras et al. 2022 (EDM), Lu et al. 2022 (DPM-Solver) and
2022b (DPM-Solver++), Zhang & Chen 2023 (DEIS), Liu et al. 2022 (PNDM), Zhao et al. 2023 (UniPC), Wizadwongsa et al.
2024 (GHVB). Orders are slopes of the error over N on smoothly spaced levels, as measured in tests/test_samplers.py.
"""

import inspect
from typing import NamedTuple

import numpy as np

from dream_jax import diffusion
from dream_jax.errors import UserError
from dream_jax.noise_schedule import NoiseSchedule

HISTORY = 5

# Half the logsnr at which samplers that need a finite one begin where the noise schedule ends in noise alone.
LOWEST = -10.0

# The longest Runge-Kutta step, in half the logsnr. Such a step weighs differences of eps_hat by sigma / alpha, and so
# multiplies errors by up to e^3 = 20; out of pure noise, where it would be thousands, DDIM's step is harmless.
_LONGEST = 3.0

_POINTS, _AREAS = np.polynomial.legendre.leggauss(32)


class Levels(NamedTuple):
    """Variance-preserving levels, noisiest first; sigma[N] may be 0, and then is not evaluated.

    Attributes:
      alpha, sigma: float64 [N+1], with alpha^2 + sigma^2 = 1; alpha[0] may be 0.
      length: float64 [N+1], by which the noise schedule's own levels are longer.
      start: what standard normal noise is multiplied by to begin with.
    """

    alpha: np.ndarray
    sigma: np.ndarray
    length: np.ndarray | float = 1.0
    start: float = 1.0

    @property
    def lam(self):
        """Half the log signal-to-noise ratio, log(alpha / sigma)."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    @property
    def own_sigma(self):
        """sigma of the noise schedule itself, float64 [N+1]."""
        return self.length * self.sigma

    def finite(self) -> "Levels":
        """With a logsnr of -20 or less in the place of noise alone, whose own is not finite; no picture is visible."""
        if self.alpha[0] > 0:
            return self
        alpha, sigma, following = self.alpha.copy(), self.sigma.copy(), self.lam[1]
        alpha[0], sigma[0] = _level(LOWEST if following > LOWEST else following - 1)
        return self._replace(alpha=alpha, sigma=sigma)


class Rows(NamedTuple):
    """One row per network evaluation, float64: see the module's text."""

    alpha: np.ndarray  # [N] the level at which the network is evaluated
    sigma: np.ndarray  # [N]
    remember: np.ndarray  # [N, 3] over (y, out, h[0])
    move: np.ndarray  # [N, HISTORY + 2] over (base, h..., noise)
    look: np.ndarray  # [N, HISTORY + 1] over (base, h...)
    start: np.ndarray | float = 1.0  # x_T over standard normal noise, see `make_rows`


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


def resshift(levels: Levels) -> Rows:
    """ResShift's own sampling, Yue et al. 2023 (arXiv 2307.12348): noise that is a random walk.

    For any noise schedule whose sigma falls towards the picture; its noises at two levels correlate by their ratio.
    """
    sigma = levels.own_sigma
    return _correlated_rows(levels, sigma[1:] / sigma[:-1], "resshift needs a noise schedule whose sigma falls")


def resfusion(levels: Levels) -> Rows:
    """Resfusion's own sampling, Shi et al. 2023 (arXiv 2311.14900): the noise is that of DDPM at the same sigma.

    For any noise schedule whose sigma falls towards the picture and is at most 1; where variance is preserved it is
    `ddpm`.
    """
    sigma = levels.own_sigma
    with np.errstate(invalid="ignore"):
        shrink = np.sqrt((1 - sigma[:-1]) * (1 + sigma[:-1]) / ((1 - sigma[1:]) * (1 + sigma[1:])))
    needs = "resfusion needs a noise schedule whose sigma falls from 1 or less"
    return _correlated_rows(levels, shrink * sigma[1:] / sigma[:-1], needs)


def heun(levels: Levels) -> Rows:
    """Heun's method, Karras et al. 2022, algorithm 1, in their coordinates x / alpha and sigma / alpha. Order 2.

    There the derivative is eps_hat. The second evaluation is at the end of its block, level i + 2.
    """
    return _single_step(levels, 2, _heun_stages)


def dpm_solver_2(levels: Levels) -> Rows:
    """DPM-Solver-2, Lu et al. 2022, algorithm 1 with r1 = 1/2. Order 2."""
    return _single_step(levels, 2, _dpm_stages)


def dpm_solver_3(levels: Levels) -> Rows:
    """DPM-Solver-3, Lu et al. 2022, algorithm 2 with r1 = 1/3, r2 = 2/3. Order 3, where the blocks come out even.

    As in their DPM-Solver-fast, a remainder of two evaluations is a step of DPM-Solver-2, of one a step of DDIM.
    """
    return _single_step(levels, 3, _dpm_stages)


def dpmpp_2m(levels: Levels) -> Rows:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2. Order 2."""
    return _dpmpp(ddim(levels), levels, 2)


def dpmpp_2m_sde(levels: Levels) -> Rows:
    """SDE-DPM-Solver++(2M), Lu et al. 2022b, section 5: `dpmpp_2m`'s weights in the moves of `ddpm`.

    The moments of Gaussian data converge with order 2, those of `ddpm` with order 1.
    """
    return _dpmpp(ddpm(levels), levels, 2)


def dpmpp_3m(levels: Levels) -> Rows:
    """DPM-Solver++(3M), Lu et al. 2022b: the exact integral of a parabola in lam. Order 3.

    Implementations that give the second difference the factor phi_3, without 2 for the second derivative, have order 2.
    """
    levels = levels.finite()
    return _dpmpp(ddim(levels), levels, 3)


def deis_2(levels: Levels) -> Rows:
    """DEIS, Zhang & Chen 2023, eq. 14 and 15, with two points and polynomials in log(sigma / alpha). Order 2."""
    return _deis(levels, 2)


def deis_3(levels: Levels) -> Rows:
    """`deis_2` with three points. Order 3."""
    return _deis(levels, 3)


def plms(levels: Levels) -> Rows:
    """Pseudo linear multistep, Liu et al. 2022 (PNDM), eq. 12, after one step of pseudo Heun. Order 2.

    Eq. 12 takes levels for equally far apart; where they are far from that, the order is 1.
    """
    levels = levels.finite()
    rows, fits = _eps_rows(levels), _fits(levels, 0, 2)
    if fits:
        _block(rows, 0, levels.lam[0], _heun_stages(levels.lam[:3]))
    return _pseudo_adams(rows, levels, [0, 2] if fits else [0])


def pndm(levels: Levels) -> Rows:
    """`plms` after three steps of pseudo Runge-Kutta, Liu et al. 2022, algorithm 2 and eq. 13. Order 2.

    Those steps take four evaluations and four levels each. Where they do not fit, as with fewer than 13 evaluations to
    sigma = 0, this is `plms`. Eq. 12 then begins with what the history still holds: the last step's own evaluations.
    """
    levels = levels.finite()
    if not all(_fits(levels, i, 4) for i in (0, 4, 8)):
        return plms(levels)
    rows, lam = _eps_rows(levels), levels.lam
    for i in (0, 4, 8):
        middle, end = lam[i + 2], lam[i + 4]
        weights = [1 / 6, 1 / 3, 1 / 3, 1 / 6]
        _block(rows, i, lam[i], [(middle, [1]), (middle, [1, 0]), (end, [1, 0, 0]), (end, weights)])
    return _pseudo_adams(rows, levels, [0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12])


def unipc_2(levels: Levels) -> Rows:
    """UniPC-2, Zhao et al. 2023, section 3, multistep, predicting x0, with B2(h) = e^h - 1. Order 3, for UniP-2 has 2.

    The corrector costs nothing: the next evaluation, at the predicted point, also corrects the move that led there.
    B(h) matters only where they fix a coefficient to 1/2, in UniP-2 and UniC-1; the other systems are solved exactly.
    """
    return _unipc(levels, 2)


def unipc_3(levels: Levels) -> Rows:
    """UniPC-3, see `unipc_2`. Order 4, for UniP-3 has 3."""
    return _unipc(levels, 3)


def ghvb(levels: Levels, order: int = 2, momentum: float = 0.8) -> Rows:
    """Generalised heavy ball, Wizadwongsa et al. 2024 (arXiv 2307.11118).

    The velocity v = (1 - beta) v + beta eps_hat stands in for eps_hat in Adams-Bashforth (AB), whose weights become
    AM + (AB - AM) / beta, with those of Adams-Moulton (AM). Levels count as equally far apart, as in `plms`: the order
    is min(order, 2), or `order` for equal steps of sigma / alpha; order 1 is Polyak's heavy ball.

    Args:
      order: 1 to 5.
      momentum: the paper's beta, above 0 and up to 1: 1 is Adams-Bashforth, and below 1 moves are damped. The paper's
        GHVB1.8 is order 2, momentum 0.8.
    """
    if order not in range(1, HISTORY + 1):
        raise UserError(f"order = {order}: ghvb has the orders 1 to {HISTORY}")
    if not 0 < momentum <= 1:
        raise UserError(f"momentum = {momentum}: it must lie between 0 (excluded) and 1 (undamped)")
    levels = levels.finite()
    rows, lam, full = _eps_rows(levels), levels.lam, _num_full(levels)
    # The first velocity is the first eps_hat.
    rows.remember[1:full] *= momentum
    rows.remember[1:full, 2] = 1 - momentum
    for i in range(full):
        nodes = np.arange(i, max(i - order, -1), -1)
        ahead, behind = _mean(nodes, i, i + 1), _mean(nodes, i - 1, i)
        _write_move(rows.move[i], lam[i], lam[i + 1], behind + (ahead - behind) / momentum)
    return rows


SAMPLERS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "resshift": resshift,
    "resfusion": resfusion,
    "heun": heun,
    "dpm_solver_2": dpm_solver_2,
    "dpm_solver_3": dpm_solver_3,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "deis_2": deis_2,
    "deis_3": deis_3,
    "plms": plms,
    "pndm": pndm,
    "unipc_2": unipc_2,
    "unipc_3": unipc_3,
    "ghvb": ghvb,
}


def make_rows(sampler, levels: Levels, **options) -> Rows:
    """The rows of a sampler given by name in SAMPLERS or as a function `levels -> Rows`.

    options: passed on where the sampler takes them, so that a caller can hold one set for all; UserError for one that
    no sampler takes.
    """
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise UserError(f"sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}")
        sampler = SAMPLERS[sampler]
    taken = inspect.signature(sampler).parameters
    known = set(taken).union(*(inspect.signature(other).parameters for other in SAMPLERS.values())) - {"levels"}
    unknown = set(options) - known
    if unknown:
        raise UserError(f"sampler option {', '.join(sorted(unknown))}: choose from {', '.join(sorted(known))}")
    rows = sampler(levels, **{name: value for name, value in options.items() if name in taken})
    return rows._replace(start=levels.start)


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
    return Rows(levels.alpha[:-1].copy(), levels.sigma[:-1].copy(), remember, move, look)


def _correlated_rows(levels: Levels, keep, needs) -> Rows:
    """DDIM that keeps this share of the predicted noise at each move, [N], and fills up with fresh noise.

    keep is the correlation, given x0, of a process's noises at the two levels; UserError with `needs` for another one.
    """
    # Levels of the same sigma may differ in their last bit.
    if not (keep <= 1 + 1e-12).all():
        raise UserError(f"sampler {needs}; choose ddim or ddpm")
    keep = np.minimum(keep, 1)
    rows, slope = _one_step_rows(ddim_step, levels), keep * levels.sigma[1:] / levels.sigma[:-1]
    rows.move[:, 0], rows.move[:, 1] = slope, levels.alpha[1:] - slope * levels.alpha[:-1]
    rows.move[:, -1] = levels.sigma[1:] * np.sqrt((1 - keep) * (1 + keep))
    return rows


def _dpmpp(rows: Rows, levels: Levels, order: int) -> Rows:
    for i in range(1, _num_full(levels)):
        weights = _predictor(levels.lam, i, order)
        rows.move[i, 1 : 1 + len(weights)] = rows.move[i, 1] * weights
    return rows


def _deis(levels: Levels, order: int) -> Rows:
    levels = levels.finite()
    rows, lam = _eps_rows(levels), levels.lam
    for i in range(_num_full(levels)):
        _write_move(rows.move[i], lam[i], lam[i + 1], _mean(lam[i::-1][:order], lam[i], lam[i + 1], -1))
    return rows


def _unipc(levels: Levels, order: int) -> Rows:
    levels = levels.finite()
    rows, lam, full = ddim(levels), levels.lam, _num_full(levels)
    of_x, of_x0 = rows.move[:, :2].T.copy()
    rows.move[:] = rows.look[:] = 0
    rows.move[0, 0] = 1
    for i in range(len(of_x)):
        if i > 0:
            # base goes to level i, where y was its prediction.
            weights = _mean(lam[i::-1][: order + 1], lam[i - 1], lam[i], 1) if i > 1 else np.array([1 / 2, 1 / 2])
            rows.move[i, : 1 + len(weights)] = of_x[i - 1], *of_x0[i - 1] * weights
        weights = _predictor(lam, i, order if i < full else 1)
        rows.look[i, : 1 + len(weights)] = of_x[i], *of_x0[i] * weights
    return rows


def _predictor(lam, i, order):
    """The weights of x0_hat at level i and before in DPM-Solver++'s and UniP's move from level i to i + 1."""
    if order == 1 or i == 0:
        return np.ones(1)
    if order == 2 or i == 1:
        lean = (lam[i + 1] - lam[i]) / (2 * (lam[i] - lam[i - 1]))
        return np.array([1 + lean, -lean])
    return _mean(lam[i::-1][:order], lam[i], lam[i + 1], 1)


def _heun_stages(lam):
    return [(lam[-1], [1]), (lam[-1], [1 / 2, 1 / 2])][: len(lam) - 1]


def _dpm_stages(lam):
    start, end, h = lam[0], lam[-1], lam[-1] - lam[0]
    if len(lam) == 2:
        return [(end, [1])]
    if len(lam) == 3:
        return [(start + h / 2, [1]), (end, [1, 0])]
    second = 3 / h - 2 / np.expm1(2 * h / 3)
    third = 3 / 2 * (1 / h - 1 / np.expm1(h))
    return [(start + h / 3, [1]), (start + 2 * h / 3, [second, 1 - second]), (end, [third, 0, 1 - third])]


def _single_step(levels: Levels, order: int, stages) -> Rows:
    """stages: the half-logsnrs of a block's levels, first to last -> its stages as `_block` takes them."""
    levels = levels.finite()
    rows, full = _eps_rows(levels), _num_full(levels)
    i = 0
    while i < full:
        size = min(order, full - i)
        size = size if _fits(levels, i, size) else 1
        _block(rows, i, levels.lam[i], stages(levels.lam[i : i + size + 1]))
        i += size
    return rows


def _fits(levels: Levels, i: int, size: int) -> bool:
    """Whether a block of this many evaluations can begin at level i: it ends in time, and is not too long a step."""
    return i + size <= _num_full(levels) and levels.lam[i + size] - levels.lam[i] <= _LONGEST


def _block(rows: Rows, i: int, start: float, stages):
    """One Runge-Kutta step from half-logsnr `start`, written into rows i and on.

    stages: for each row (lam, weights): it leads from the start to lam along the mean of the step's eps_hat so far,
    newest first. The last stage moves; those before only look where the network is evaluated next.
    """
    for row, (lam, weights) in enumerate(stages, i):
        if row == i + len(stages) - 1:
            _write_move(rows.move[row], start, lam, weights)
        else:
            rows.move[row] = np.eye(HISTORY + 2)[0]
            _write_move(rows.look[row], start, lam, weights)
            _evaluate_at(rows, row + 1, *_level(lam))


def _pseudo_adams(rows: Rows, levels: Levels, warm_up) -> Rows:
    """Adams-Bashforth over the last four levels within reach, as if levels were equally far apart in time.

    For four in a row its weights are (55, -59, 37, -9) / 24. warm_up: the level of each evaluation before.
    """
    full = _num_full(levels)
    evaluated = [*warm_up, *range(len(warm_up), full)]
    for i in range(len(warm_up), full):
        columns = {}
        for column, level in enumerate(evaluated[i::-1][:HISTORY]):
            columns.setdefault(level, column)
        nodes, weights = list(columns)[:4], np.zeros(HISTORY)
        weights[[columns[level] for level in nodes]] = _mean(nodes, i, i + 1)
        _write_move(rows.move[i], levels.lam[i], levels.lam[i + 1], weights)
    return rows


def _eps_rows(levels: Levels) -> Rows:
    """DDIM's rows with eps_hat in the history in place of x0_hat, but for a last move to sigma = 0."""
    rows, lam = ddim(levels), levels.lam
    for i in range(_num_full(levels)):
        _evaluate_at(rows, i, levels.alpha[i], levels.sigma[i])
        _write_move(rows.move[i], lam[i], lam[i + 1], [1])
    return rows


def _evaluate_at(rows: Rows, i: int, alpha: float, sigma: float):
    rows.alpha[i], rows.sigma[i] = alpha, sigma
    rows.remember[i] = 1 / sigma, -alpha / sigma, 0


def _write_move(row, start, end, weights):
    """DDIM's move between two half-logsnrs, along a mean of the eps_hat in the history (Lu et al. 2022, eq. 3.7)."""
    (alpha_from, _), (alpha_to, sigma_to) = _level(start), _level(end)
    row[:] = 0
    row[0] = alpha_to / alpha_from
    row[1 : 1 + len(weights)] = -sigma_to * np.expm1(end - start) * np.asarray(weights)


def _mean(nodes, start, end, growth=0):
    """Weights of values at nodes in the mean of their polynomial from start to end, with density e^(growth s).

    growth 1 makes the integral over x0_hat exact, -1 that over eps_hat, in s = lam (Lu et al. 2022, eq. 3.4; 2022b, eq.
    8). Gaussian quadrature is as exact as float64 and free of the usual formulas' cancellation at small steps.
    """
    s = start + (end - start) * (_POINTS + 1) / 2
    density = _AREAS * np.exp(growth * (s - end))
    weights = []
    for node in nodes:
        lagrange = np.prod([(s - other) / (node - other) for other in nodes if other != node], axis=0)
        weights.append(np.sum(density * lagrange))
    return np.array(weights) / density.sum()


def _num_full(levels: Levels) -> int:
    """How many rows there are but for a last one that moves to sigma = 0."""
    return len(levels.sigma) - 1 - int(levels.sigma[-1] == 0)


def _level(lam):
    return (1 + np.exp(-2 * lam)) ** -0.5, (1 + np.exp(2 * lam)) ** -0.5


def _sigma(alpha):
    return ((1 - alpha) * (1 + alpha)) ** 0.5


def uniform_t(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """num_steps + 1 table entries from T down to 0, in steps as equal as whole numbers allow."""
    return np.round(np.linspace(schedule.num_steps, 0, num_steps + 1)).astype(int)


def quadratic(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """t proportional to the square of the number of steps that are left (Song et al. 2021, appendix D.2)."""
    return schedule.num_steps * np.linspace(1, 0, num_steps + 1) ** 2


def uniform_logsnr(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """logsnr in equal steps from t = T to t = 1 (Lu et al. 2022), then t = 0."""
    return _times(schedule, np.linspace(*_ends(schedule), num_steps))


def karras(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Equal steps of (sigma / alpha)^(1/7) from t = T to t = 1, then t = 0 (Karras et al. 2022, eq. 5)."""
    first, last = np.exp(-_ends(schedule) / 7)
    return _times(schedule, -7 * np.log(np.linspace(first, last, num_steps)))


SPACINGS = {"uniform_t": uniform_t, "uniform_logsnr": uniform_logsnr, "quadratic": quadratic, "karras": karras}


def levels_of(schedule: NoiseSchedule, num_steps: int, spacing: str = "uniform_t") -> Levels:
    """The variance-preserving sampling levels for this number of network evaluations.

    A spacing gives t, falling from T to 0; levels between whole t are those of `NoiseSchedule.at`, as in training.
    """
    if spacing not in SPACINGS:
        raise UserError(f"spacing {spacing!r}: choose one of {', '.join(SPACINGS)}")
    if not 1 <= num_steps <= schedule.num_steps:
        raise UserError(
            f"{num_steps} sampling steps: the noise schedule has {schedule.num_steps} steps, so choose 1 to "
            f"{schedule.num_steps}"
        )
    alpha, sigma = schedule.at(SPACINGS[spacing](schedule, num_steps))
    # Rounded, so that levels that preserve variance stay what they are to the last bit.
    length = np.round(np.hypot(alpha, sigma), 15)
    start = 1.0 if schedule.start is None else schedule.start / length[0]
    return Levels(alpha / length, sigma / length, length, start)


def _ends(schedule: NoiseSchedule):
    """Half the logsnr at t = T and at t = 1."""
    ends = schedule.logsnr[[-1, 1]] / 2
    return np.maximum(ends, LOWEST) if schedule.alpha[-1] == 0 else ends


def _times(schedule: NoiseSchedule, lam):
    """The t at which the schedule has these half-logsnrs, of which the first is T's; then 0."""
    return np.array([schedule.num_steps, *schedule.time_at(lam[1:]), 0.0])
