"""The forward process, what networks may predict, and conversions between those predictions.

Levels (alpha, sigma, lam) may be scalars, [B], or already broadcastable to the images; images are [B, H, W, C].
"""

from collections.abc import Callable
from typing import NamedTuple

# Below any level that is drawn; it only keeps 0/0 at a clean or an all-noise level from being a NaN.
_TINY = 1e-12


def expand(level, like):
    """[B] -> [B, 1, 1, 1] for images [B, H, W, C]; anything else as it is."""
    if getattr(level, "ndim", 0) == 1:
        return level.reshape(level.shape + (1,) * (like.ndim - 1))
    return level


def add_noise(x0, eps, alpha, sigma):
    """`x_t = alpha x0 + sigma eps`."""
    return expand(alpha, x0) * x0 + expand(sigma, x0) * eps


class Kind(NamedTuple):
    """What a network may predict. All functions take levels that broadcast to the images.

    Attributes:
      target: `(x0, eps, alpha, sigma) -> output` of a perfect network.
      to_eps, to_x0: `(output, x_t, alpha, sigma) -> eps or x0` that an output implies.
      x0_error_scale: `(alpha, sigma) -> |d x0 / d output|` at the same x_t.
      straight: whether it is for noise schedules with alpha + sigma = 1, and for no others.
    """

    target: Callable
    to_eps: Callable
    to_x0: Callable
    x0_error_scale: Callable
    straight: bool = False


# eps: the noise (Ho et al. 2020). x0: the clean image. v: `alpha eps - sigma x0` (Salimans & Ho 2022, appendix D).
# flow: `eps - x0` (Liu et al. 2023).
KINDS = {
    "eps": Kind(
        target=lambda x0, eps, alpha, sigma: eps,
        to_eps=lambda output, x_t, alpha, sigma: output,
        to_x0=lambda output, x_t, alpha, sigma: (x_t - sigma * output) / _at_least(alpha),
        x0_error_scale=lambda alpha, sigma: sigma / _at_least(alpha),
    ),
    "x0": Kind(
        target=lambda x0, eps, alpha, sigma: x0,
        to_eps=lambda output, x_t, alpha, sigma: (x_t - alpha * output) / _at_least(sigma),
        to_x0=lambda output, x_t, alpha, sigma: output,
        x0_error_scale=lambda alpha, sigma: 1 + 0 * sigma,
    ),
    "v": Kind(
        target=lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
        to_eps=lambda output, x_t, alpha, sigma: (sigma * x_t + alpha * output) / (alpha**2 + sigma**2),
        to_x0=lambda output, x_t, alpha, sigma: (alpha * x_t - sigma * output) / (alpha**2 + sigma**2),
        x0_error_scale=lambda alpha, sigma: sigma / (alpha**2 + sigma**2),
    ),
    "flow": Kind(
        target=lambda x0, eps, alpha, sigma: eps - x0,
        to_eps=lambda output, x_t, alpha, sigma: (x_t + alpha * output) / (alpha + sigma),
        to_x0=lambda output, x_t, alpha, sigma: (x_t - sigma * output) / (alpha + sigma),
        x0_error_scale=lambda alpha, sigma: sigma / (alpha + sigma),
        straight=True,
    ),
}


def target(kind: str, x0, eps, alpha, sigma):
    """What a network of this kind should output."""
    return _kind(kind).target(x0, eps, expand(alpha, x0), expand(sigma, x0))


def to_eps(kind: str, output, x_t, alpha, sigma):
    """The noise that an output of this kind implies, given x_t."""
    return _kind(kind).to_eps(output, x_t, expand(alpha, x_t), expand(sigma, x_t))


def to_x0(kind: str, output, x_t, alpha, sigma):
    """The clean image that an output of this kind implies, given x_t."""
    return _kind(kind).to_x0(output, x_t, expand(alpha, x_t), expand(sigma, x_t))


def x0_error_scale(kind: str, alpha, sigma):
    """|d x0 / d output|: how an error of the output becomes one of x0, at the same x_t."""
    return _kind(kind).x0_error_scale(alpha, sigma)


def _kind(name):
    if name not in KINDS:
        raise ValueError(f"kind {name!r}: choose one of {', '.join(KINDS)}")
    return KINDS[name]


def posterior(x_t, x0, alpha_from, alpha_to):
    """Mean and standard deviation of q(x_s | x_t, x0) for a variance-preserving move from t to s < t.

    Ho et al. 2020, eq. 7, with the two levels any distance apart. Linear in x_t and x0.

    Args:
      alpha_from, alpha_to: alpha at t and at s: scalars, or broadcastable to the images; numpy or jax.
    """
    variance_from, variance_to = (1 - alpha_from) * (1 + alpha_from), (1 - alpha_to) * (1 + alpha_to)
    ratio = alpha_from / alpha_to
    beta = (1 - ratio) * (1 + ratio)
    mean = (alpha_to * beta * x0 + ratio * variance_to * x_t) / variance_from
    return mean, (beta * variance_to / variance_from) ** 0.5


def _at_least(level):
    # Arithmetic instead of a maximum, so that numpy stays numpy and jax stays jax.
    return level + _TINY * (level < _TINY)
