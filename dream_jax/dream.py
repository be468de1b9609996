"""DREAM: rectification weights, the rectified training pair, and the training objectives.

As a library, inside any JAX diffusion training loop:

    lam = dream.power_weight(sigma, p=1.0)
    x_t, target = dream.training_pair(predict_eps, x0, eps, alpha, sigma, lam)
    loss = abs(network(params, x_t, ...) - target).mean()
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp

from dream_jax import diffusion
from dream_jax.diffusion import expand
from dream_jax.errors import UserError


def power_weight(sigma, p: float | None):
    """`lam = sigma^p`, the DREAM paper's weight (arXiv 2312.00210, eq. 8 with section 3.3; the paper uses p = 1).

    Args:
      sigma: the noise level normalised to `sigma / sqrt(alpha^2 + sigma^2)`; any shape.
      p: finite and not negative. 0 rectifies fully at every level; None is off, and gives None.
    """
    if p is None:
        return None
    if not (math.isfinite(p) and p >= 0):
        raise UserError(f"p = {p}: it must be finite and not negative; to switch DREAM off use None (null)")
    return sigma**p


# Every family maps (normalised sigma, t / T) to a weight between 0 and 1; its option is its own keyword.
WEIGHTS = {
    "power": lambda sigma, time, p=1.0, **_: power_weight(sigma, p),
    "constant": lambda sigma, time, **_: jnp.ones_like(sigma),
    "linear": lambda sigma, time, **_: time,
    "exponential": lambda sigma, time, rate=5.0, **_: jnp.expm1(rate * time) / math.expm1(rate),
    "step": lambda sigma, time, threshold=0.5, **_: jnp.where(time >= threshold, 1.0, 0.0),
}


def weight(family: str, alpha, sigma, time, *, p=1.0, minimum=0.0, maximum=1.0, ramp=1.0, **options):
    """The rectification weight lam of a noise level; never a function of the data.

    `lam = minimum + ramp * (maximum - minimum) * family(...)`, and None, the standard objective, where p is None.

    Args:
      family: "power" (sigma^p; option p), "constant", "linear" (t/T), "exponential" ((e^{kt/T} - 1) / (e^k - 1); option
        rate = k) or "step" (1 where t/T >= c; option threshold = c).
      alpha, sigma: the level, [B]; time: t / T, [B].
      ramp: a factor in [0, 1] that may grow during training.
    """
    if family not in WEIGHTS:
        raise UserError(f"weight {family!r}: choose one of {', '.join(WEIGHTS)}")
    if p is None:
        return None
    value = WEIGHTS[family](sigma / jnp.sqrt(alpha**2 + sigma**2), time, p=p, **options)
    return minimum + ramp * (maximum - minimum) * value


def rectify_noise(eps, eps_hat, lam):
    """`eps + lam (eps - eps_hat)`, without a gradient through the estimate (arXiv 2312.00210, eq. 7)."""
    eps_hat = jax.lax.stop_gradient(eps_hat)
    return eps + expand(lam, eps) * (eps - eps_hat)


def training_pair(predict_eps, x0, eps, alpha, sigma, lam, kind: str = "eps"):
    """The network's input and target for one DREAM training step.

    The first pass estimates the noise in `x_t`; the step then trains on the forward process and the target of
    `eps_tilde = eps + lam (eps - eps_hat)`, the noise that the sampler will really meet (arXiv 2312.00210, algorithm 2,
    for every kind of prediction).

    Args:
      predict_eps: `x_t -> eps_hat`: the network's current estimate in eps form (`diffusion.to_eps`), live weights, no
        dropout. No gradient flows through it. Not called when lam is None.
      x0, eps: clean images and noise, [B, H, W, C].
      alpha, sigma: the level, [B] or [B, 1, 1, 1].
      lam: the weight, likewise; None for the standard objective.
      kind: what the network predicts: "eps", "x0", "v" or "flow".

    Returns:
      (x_t, target), both [B, H, W, C].
    """
    x_t, target, _ = _rectified(predict_eps, x0, eps, alpha, sigma, lam, kind)
    return x_t, target


def _rectified(predict_eps, x0, eps, alpha, sigma, lam, kind):
    eps_hat = None
    if lam is not None:
        x_t = diffusion.add_noise(x0, eps, alpha, sigma)
        eps_hat = jax.lax.stop_gradient(predict_eps(x_t))
        eps = rectify_noise(eps, eps_hat, lam)
    return diffusion.add_noise(x0, eps, alpha, sigma), diffusion.target(kind, x0, eps, alpha, sigma), eps_hat


def estimated_rows(lam, share: Fraction, heaviest: bool = False):
    """The rows of a batch that get the self-estimate: `share.numerator` of every `share.denominator` consecutive ones.

    A group's rows are chosen by the group alone, so a batch may be cut anywhere between groups. As levels, noise and
    pictures are drawn independently for each row, the first of each group are as good as any.

    Args:
      lam: the weights, [B]; B must divide by the denominator.
      heaviest: of each group those with the largest lam instead, to which the estimate matters most.

    Returns:
      int32 [B share].
    """
    groups = jnp.arange(lam.size, dtype=jnp.int32).reshape(-1, share.denominator)
    if not heaviest:
        return groups[:, : share.numerator].reshape(-1)
    _, places = jax.lax.top_k(lam.reshape(groups.shape), share.numerator)
    return jnp.take_along_axis(groups, places, axis=1).reshape(-1)


DISTANCES = {
    "l1": lambda a, b: jnp.mean(jnp.abs(a - b), axis=(1, 2, 3)),
    "l2": lambda a, b: jnp.mean(jnp.square(a - b), axis=(1, 2, 3)),
}


def min_snr_weight(kind: str, alpha, sigma, gamma: float):
    """The loss weight min(snr, gamma), on the error of x0, as a factor on a squared error of this kind's output.

    Hang et al. 2023 (arXiv 2303.09556), eq. 9; for eps it is min(snr, gamma) / snr. It goes on after rectification.
    """
    snr = alpha**2 / jnp.maximum(sigma**2, 1e-20)
    return jnp.minimum(snr, gamma) * diffusion.x0_error_scale(kind, alpha, sigma) ** 2


def dream(predict, estimate, x0, eps, alpha, sigma, lam, *, kind="eps", distance="l1", rows=None):
    """Per-example losses of DREAM, or of the standard objective where lam is None.

    Args:
      predict: `x_t -> output`, the network with dropout and gradient.
      estimate: `x_t -> output`, the same weights without dropout: the first pass, of `rows` only.
      x0, eps: [B, H, W, C]; alpha, sigma, lam: [B].
      rows: int [R], of `estimated_rows`: others train on the standard pair. None is all.

    Returns:
      (losses [B], |eps - eps_hat| [B]). The second is the first pass's mean error; what has no first pass reports its
      own prediction's.
    """

    def estimate_eps(x_t):
        if rows is None:
            return diffusion.to_eps(kind, estimate(x_t), x_t, alpha, sigma)
        eps_hat = diffusion.to_eps(kind, estimate(x_t[rows]), x_t[rows], alpha[rows], sigma[rows])
        # A perfect estimate, the noise itself, rectifies nothing: it stands for the one that is not made.
        return eps.astype(eps_hat.dtype).at[rows].set(eps_hat)

    x_t, target, eps_hat = _rectified(estimate_eps, x0, eps, alpha, sigma, lam, kind)
    output = predict(x_t)
    if eps_hat is None or rows is not None:
        own = jax.lax.stop_gradient(diffusion.to_eps(kind, output, x_t, alpha, sigma))
        eps_hat = own if eps_hat is None else own.at[rows].set(eps_hat[rows])
    return DISTANCES[distance](output, target), DISTANCES["l1"](eps, eps_hat)


def standard(predict, x0, eps, alpha, sigma, *, kind="eps", distance="l1"):
    """Per-example losses of the standard objective: `dream` with lam None."""
    return dream(predict, predict, x0, eps, alpha, sigma, None, kind=kind, distance=distance)


def conservative_dream(predict, predict_rectified, x0, eps, alpha, sigma, lam, *, mix=0.7, distance="l2"):
    """Per-example losses of the face-generation study's objective, for eps prediction.

    `mix |predict(x_t) - eps|^2 + (1 - mix) |predict(x_rect) - eps|^2`, where x_rect moves x0 towards the estimate,
    `x_rect = alpha (lam x0_hat + (1 - lam) x0) + sigma eps`, and keeps the noise and the target uncorrected. The
    estimate is the first prediction itself, clipped to [-1, 1]; no gradient flows through x_rect.

    Args:
      predict, predict_rectified: `x -> eps_hat`, the same weights with independent dropout.
      x0, eps: [B, H, W, C]; alpha, sigma, lam: [B].

    Returns:
      (losses [B], |eps - eps_hat| [B]).
    """
    x_t = diffusion.add_noise(x0, eps, alpha, sigma)
    eps_hat = predict(x_t)
    x0_hat = jnp.clip(diffusion.to_x0("eps", jax.lax.stop_gradient(eps_hat), x_t, alpha, sigma), -1, 1)
    lam = expand(lam, x0)
    x_rect = diffusion.add_noise(lam * x0_hat + (1 - lam) * x0, eps, alpha, sigma)
    between = DISTANCES[distance]
    losses = mix * between(eps_hat, eps) + (1 - mix) * between(predict_rectified(x_rect), eps)
    return losses, DISTANCES["l1"](eps, jax.lax.stop_gradient(eps_hat))
