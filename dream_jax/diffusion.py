"""The forward process, what networks may predict, and conversions between those predictions.

Levels (alpha, sigma, lam) may be scalars, [B], or already broadcastable to the images; images are [B, H, W, C].
"""

KINDS = ("eps", "x0", "v", "flow")

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


def target(kind: str, x0, eps, alpha, sigma):
    """What a network of this kind should output.

    eps: the noise (Ho et al. 2020). x0: the clean image. v: `alpha eps - sigma x0` (Salimans & Ho 2022, appendix D).
    flow: `eps - x0` (Liu et al. 2023).
    """
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return expand(alpha, x0) * eps - expand(sigma, x0) * x0
    if kind == "flow":
        return eps - x0
    raise ValueError(f"kind {kind!r}: choose one of {', '.join(KINDS)}")


def to_eps(kind: str, output, x_t, alpha, sigma):
    """The noise that an output of this kind implies, given x_t."""
    alpha, sigma = expand(alpha, x_t), expand(sigma, x_t)
    if kind == "eps":
        return output
    if kind == "x0":
        return (x_t - alpha * output) / _at_least(sigma)
    if kind == "v":
        return (sigma * x_t + alpha * output) / (alpha**2 + sigma**2)
    if kind == "flow":
        return (x_t + alpha * output) / (alpha + sigma)
    raise ValueError(f"kind {kind!r}: choose one of {', '.join(KINDS)}")


def to_x0(kind: str, output, x_t, alpha, sigma):
    """The clean image that an output of this kind implies, given x_t."""
    alpha, sigma = expand(alpha, x_t), expand(sigma, x_t)
    if kind == "eps":
        return (x_t - sigma * output) / _at_least(alpha)
    if kind == "x0":
        return output
    if kind == "v":
        return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
    if kind == "flow":
        return (x_t - sigma * output) / (alpha + sigma)
    raise ValueError(f"kind {kind!r}: choose one of {', '.join(KINDS)}")


def x0_error_scale(kind: str, alpha, sigma):
    """|d x0 / d output|: how an error of the output becomes one of x0, at the same x_t."""
    if kind == "eps":
        return sigma / _at_least(alpha)
    if kind == "x0":
        return 1 + 0 * sigma
    if kind == "v":
        return sigma / (alpha**2 + sigma**2)
    if kind == "flow":
        return sigma / (alpha + sigma)
    raise ValueError(f"kind {kind!r}: choose one of {', '.join(KINDS)}")


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
