"""Are two sets of pictures drawn from one distribution?"""

import jax.numpy as jnp
import numpy as np


def directions(size: int, count: int) -> jnp.ndarray:
    """Random directions [size, count] of length 1, the same at every call; the axes where that is no more."""
    if size <= count:
        return jnp.eye(size, dtype=jnp.float32)
    drawn = np.random.default_rng(0).standard_normal((size, count)).astype(np.float32)
    return jnp.asarray(drawn / np.linalg.norm(drawn, axis=0))


def energy_test(a: np.ndarray, b: np.ndarray, exchanges: int = 200) -> tuple[float, float]:
    """(distance, p) of two sets [N, D], N at least 2, whose points i are of the same picture.

    The distance is the energy distance (Szekely & Rizzo 2013, eq. 5), estimated without bias from different pictures: 0
    on average where both sets have one distribution, and positive where not. p is the share of random exchanges of
    points between the sets, each with its partner, that leave them as far apart; this one is counted.
    """
    points, count = np.concatenate([a, b]).astype(float), len(a)
    squares = (points**2).sum(1)
    between = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * points @ points.T, 0))
    # Neither a point with itself nor with its partner.
    number = np.arange(2 * count)
    between[number[:, None] % count == number % count] = 0

    def distance(exchanged):
        sign = np.where(number < count, 1.0, -1.0) * np.where(np.tile(exchanged, 2), -1, 1)
        return -float(sign @ between @ sign) / (count * (count - 1))

    found, rng = distance(np.zeros(count, bool)), np.random.default_rng(0)
    others = [distance(rng.random(count) < 0.5) for _ in range(exchanges)]
    return found, (1 + sum(other >= found for other in others)) / (1 + exchanges)


def spectrum(x) -> jnp.ndarray:
    """Shares [B, octaves] of the variance of pictures [B, H, W, C] over their pixels, by octaves of frequency.

    An octave is 1 to 2 cycles a picture, 2 to 4, ... along the longer of both axes' numbers; the last one has what is
    left. They sum to the variance.
    """
    height, width = x.shape[1:3]
    power = (jnp.abs(jnp.fft.fft2(x, axes=(1, 2))) ** 2).mean(-1) / (height * width) ** 2
    rows, columns = (np.abs(np.fft.fftfreq(side) * side) for side in (height, width))
    cycles = np.maximum(rows[:, None], columns[None])
    octave = np.where(cycles > 0, np.floor(np.log2(np.maximum(cycles, 1))), -1).astype(int)
    members = octave[None] == np.arange(octave.max() + 1)[:, None, None]
    return jnp.einsum("bhw,ohw->bo", power, members.astype(power.dtype))
