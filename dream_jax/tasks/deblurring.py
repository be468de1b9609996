"""Deblurring: sharp pictures from blurred ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.errors import UserError
from dream_jax.tasks import blur, draws, host
from dream_jax.tasks.task import Task, degraded, observed_again

# Of Richardson-Lucy's kernel of motion: how many directions its mean is taken over.
_ANGLES = 16
# Reaches of the kernel that a picture is continued by, against less than a third of a grey level of darkness.
_PAD = 4


def deblurring(
    blurs: tuple[str, ...] = blur.BLURS,
    width: tuple[float, ...] = (0.5, 3.0),
    length: tuple[float, ...] = (3.0, 15.0),
    residual: bool = False,
    gain: float = 1.0,
    channels: int = 3,
) -> Task:
    """Blur of a kind that is drawn for each picture, and of a strength that is; neither is told.

    Args:
      blurs: which kinds there are, of `blur.BLURS`.
      width: the Gaussian's standard deviation in pixels, one number or LOW, HIGH.
      length: of motion, pixels, in any direction.
      residual, gain: see `restoration`.
      channels: of pictures.
    """
    if not blurs:
        raise UserError(f"task.blurs = (): it must name at least one of {', '.join(blur.BLURS)}")

    def kinds(key, picture):
        kind_key, strength_key, angle_key = jax.random.split(key, 3)
        angle = jax.random.uniform(angle_key, (), jnp.float32, 0, np.pi)
        made = {
            "gaussian": lambda: blur.gaussian(picture, draws.within(strength_key, width), blur.radius(width[-1])),
            "motion": lambda: blur.motion(picture, draws.within(strength_key, length), angle, length[-1]),
        }
        kind = jax.random.randint(kind_key, (), 0, len(blurs))
        return jax.lax.select_n(kind, *(made[name]() for name in blurs))

    observe = draws.each(kinds)

    # Of one width there is one blur.
    known = tuple(blurs) == ("gaussian",) and draws.is_fixed(width)

    def classical(observed):
        return richardson_lucy(observed, mean_kernel(tuple(blurs), tuple(width), tuple(length)))

    name = f"Richardson-Lucy, {'the' if known else 'mean'} kernel"
    return degraded(
        observe,
        "blurred",
        residual=residual,
        gain=gain,
        classical=(name, classical),
        consistency=observed_again(observe) if known else None,
        channels=channels,
    )


@functools.cache
def mean_kernel(blurs, width, length):
    """float64[K, K], sum 1: of the mean width, and of the mean length over all directions; of both, their mean."""
    reach = max(blur.radius(np.mean(width)), int(np.mean(length)) // 2 + 1)
    made = []
    if "gaussian" in blurs:
        line = np.asarray(blur.gaussian_weights(np.float32(np.mean(width)), reach), np.float64)
        made.append(np.outer(line, line) / 4**blur.GAUSSIAN_BITS)
    if "motion" in blurs:
        angles = np.float32(np.pi * np.arange(_ANGLES) / _ANGLES)
        line = jax.vmap(lambda angle: blur.motion_weights(np.float32(np.mean(length)), angle, 2 * reach - 2))
        made.append(np.mean(np.asarray(jax.jit(line)(angles), np.float64), 0) / 2**blur.MOTION_BITS)
    return np.mean(made, 0)


def richardson_lucy(observed, kernel, steps: int = 10):
    """Richardson 1972 and Lucy 1974, by scikit-image; levels [H, W, C] on the host, a kernel [K, K] of sum 1."""
    from skimage import restoration as classical

    # Beyond the pad there is darkness, which comes nearer with each step.
    pad = _PAD * (len(kernel) // 2)
    padded = np.pad(host.to_unit(observed), [(pad, pad), (pad, pad), (0, 0)], "edge")
    planes = [classical.richardson_lucy(plane, kernel, steps) for plane in np.moveaxis(padded, -1, 0)]
    return host.to_levels(np.stack(planes, -1)[pad:-pad, pad:-pad], observed.dtype)
