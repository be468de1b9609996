"""Denoising: pictures from noisy ones."""

import jax
import numpy as np

from dream_jax.tasks import draws, host, noise
from dream_jax.tasks.task import Task, degraded

# Of the deviation that is estimated, of white: also where a line of pixels has no diagonal.
_LEAST = 1e-4


def denoising(
    deviation: tuple[float, ...] = (25.0,), residual: bool = False, gain: float = 1.0, channels: int = 3
) -> Task:
    """Gaussian noise of a known deviation, or of one drawn for each picture, which is not told.

    Args:
      deviation: of the noise, in levels of 255: one number, or LOW, HIGH.
      residual, gain: see `restoration`; x0 is then the noise, negative.
      channels: of pictures.
    """

    @draws.each
    def noisy(key, picture):
        level_key, key = jax.random.split(key)
        return noise.add(picture, noise.normal(key, picture), draws.within(level_key, deviation))

    known = deviation[0] if draws.is_fixed(deviation) else None
    return degraded(
        noisy,
        "noisy",
        residual=residual,
        gain=gain,
        classical=("non-local means", lambda observed: non_local_means(observed, known)),
        channels=channels,
    )


def non_local_means(observed, deviation: float | None = None):
    """Buades et al. 2005, by scikit-image; levels [H, W, C] on the host.

    deviation, in levels of 255, is estimated where it is not known: from the median of the finest diagonal Haar
    coefficients (Donoho and Johnstone 1994).
    """
    from skimage import restoration as classical

    picture = host.to_unit(observed)
    sigma = _estimated(picture) if deviation is None else deviation / 255
    found = classical.denoise_nl_means(
        picture, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    )
    return host.to_levels(found.reshape(observed.shape), observed.dtype)


def _estimated(picture):
    if min(picture.shape[:2]) < 2:
        return _LEAST
    finest = picture[:-1:2, :-1:2] - picture[1::2, :-1:2] - picture[:-1:2, 1::2] + picture[1::2, 1::2]
    return max(float(np.median(np.abs(finest))) / 2 / 0.6745, _LEAST)
