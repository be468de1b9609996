"""DREAM: rectification weights, the rectified training pair, and the losses.

As a library, inside any JAX diffusion training loop:

    lam = dream.power_weight(sigma, p=1.0)
    x_t, target = dream.training_pair(predict_eps, x0, eps, alpha, sigma, lam)
    loss = abs(network(params, x_t, ...) - target).mean()
"""

import math

import jax
import jax.numpy as jnp

from dream_jax import diffusion
from dream_jax.diffusion import expand
from dream_jax.errors import UserError


def power_weight(sigma, p: float | None):
    """`lam = sigma^p`, the DREAM paper's weight (arXiv 2312.00210, eq. 12; the paper uses p = 1).

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

    `lam = ramp * (minimum + (maximum - minimum) * family(...))`, and None, the standard objective, where p is None.

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
    return ramp * (minimum + (maximum - minimum) * value)


def rectify_noise(eps, eps_hat, lam, fresh=None):
    """`eps' + lam (eps - eps_hat)`, without a gradient through the estimate (arXiv 2312.00210, eq. 13).

    fresh: eps', the noise of the second pass. None takes eps again (eq. 15), which the paper found to work better.
    """
    eps_hat = jax.lax.stop_gradient(eps_hat)
    return (eps if fresh is None else fresh) + expand(lam, eps) * (eps - eps_hat)


def training_pair(predict_eps, x0, eps, alpha, sigma, lam, kind: str = "eps", fresh=None):
    """The network's input and target for one DREAM training step.

    The first pass estimates the noise in `x_t`; the step then trains on the forward process and the target of
    `eps_tilde`, see `rectify_noise` (arXiv 2312.00210, algorithm 3, for every kind of prediction). Both passes have the
    same x0, so that the picture estimated from `x_t` is blended into it: `alpha x0 + sigma eps_tilde` is
    `alpha (lam x0_hat + (1 - lam) x0) + sigma eps'` (eq. 12).

    Args:
      predict_eps: `x_t -> eps_hat`: the network's current estimate in eps form (`diffusion.to_eps`), live weights, no
        dropout. No gradient flows through it. Not called when lam is None.
      x0, eps: clean images and noise, [B, H, W, C].
      alpha, sigma: the level, [B] or [B, 1, 1, 1].
      lam: the weight, likewise; None for the standard objective.
      kind: what the network predicts: "eps", "x0", "v" or "flow".
      fresh: other noise for the second pass, like eps; None for the same.

    Returns:
      (x_t, target), both [B, H, W, C].
    """
    if lam is not None:
        eps = rectify_noise(eps, predict_eps(diffusion.add_noise(x0, eps, alpha, sigma)), lam, fresh)
    return diffusion.add_noise(x0, eps, alpha, sigma), diffusion.target(kind, x0, eps, alpha, sigma)


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


def standard(predict, x0, eps, alpha, sigma, *, kind="eps", distance="l1"):
    """Per-example losses of the standard objective, `|predict(x_t) - target|`.

    Args:
      predict: `x_t -> output`, the network with dropout and gradient.
      x0, eps: [B, H, W, C]; alpha, sigma: [B].

    Returns:
      (losses [B], errors [B]): the second is the mean |eps - eps_hat| of the network's estimate from x_t.
    """
    x_t = diffusion.add_noise(x0, eps, alpha, sigma)
    output = predict(x_t)
    eps_hat = jax.lax.stop_gradient(diffusion.to_eps(kind, output, x_t, alpha, sigma))
    losses = DISTANCES[distance](output, diffusion.target(kind, x0, eps, alpha, sigma))
    return losses, DISTANCES["l1"](eps, eps_hat)


def dream(predict, estimate, x0, eps, alpha, sigma, lam, *, kind="eps", distance="l1", fresh=None, extra=None):
    """Per-example losses of DREAM (arXiv 2312.00210, algorithm 3), or of `standard` where lam is None.

    Args:
      predict: `x_t -> output`, the network with dropout and gradient.
      estimate: `x_t -> output`, the same weights without dropout: the first pass.
      x0, eps: [B, H, W, C]; alpha, sigma, lam: [B].
      fresh: the noise of the second pass, like eps; None for the same.
      extra: what is added to the estimate eps_hat, like eps: how much of an error does DREAM bear?

    Returns:
      (losses [B], errors [B]): the second is the mean |eps - eps_hat| of the first pass.
    """
    if lam is None:
        return standard(predict, x0, eps, alpha, sigma, kind=kind, distance=distance)
    x_t = diffusion.add_noise(x0, eps, alpha, sigma)
    eps_hat = jax.lax.stop_gradient(diffusion.to_eps(kind, estimate(x_t), x_t, alpha, sigma))
    estimated = eps_hat if extra is None else eps_hat + extra
    x_t, target = training_pair(lambda _: estimated, x0, eps, alpha, sigma, lam, kind, fresh)
    return DISTANCES[distance](predict(x_t), target), DISTANCES["l1"](eps, eps_hat)


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
