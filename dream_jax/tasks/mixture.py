"""A mixed degradation, as pictures of unknown origin have it: blur, shrinking, noise and JPEG in random order."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dream_jax.tasks import blur, jpeg_coding, noise
from dream_jax.tasks.draws import whole_within, within


class Strengths(NamedTuple):
    """Of what is drawn for each picture: width of the Gaussian and deviation of the noise from 0 to the largest."""

    width: float
    deviation: float
    quality: tuple[int, ...]


class Plan(NamedTuple):
    """One picture's draws: the places in their order of blur, noise, JPEG and shrinking, the strengths, and keys."""

    order: jax.Array
    width: jax.Array
    deviation: jax.Array
    quality: jax.Array
    noise: jax.Array
    shrink: jax.Array


def draw(key, strengths: Strengths) -> Plan:
    """What is done to one picture."""
    order, width, deviation, quality, noise_key, shrink_key = jax.random.split(key, 6)
    return Plan(
        jax.random.permutation(order, 4),
        within(width, (0, strengths.width)),
        within(deviation, (0, strengths.deviation)),
        whole_within(quality, strengths.quality),
        noise_key,
        shrink_key,
    )


def degrade(key, picture, strengths: Strengths, shrink, shrinks_by, least: float):
    """Whole levels [H, W, C] to whole levels of the type that `shrink` gives.

    Blur, noise, JPEG and the shrinking come in any order, as BSRGAN shuffles them (Zhang et al. 2021, arXiv 2103.14006,
    section 3). A Gaussian after the shrinking is as much narrower.

    Args:
      shrink: `(key, picture) -> (picture, fill)`; `fill(picture)` continues the edges of one that is smaller than its
        array.
      shrinks_by: what sides are divided by, at least `least`.
    """
    plan = draw(key, strengths)
    before = plan.order[:3] < plan.order[3]
    picture = _chain(plan, picture, before, strengths.width)
    small, fill = shrink(plan.shrink, picture)
    plan = plan._replace(width=plan.width / shrinks_by, noise=jax.random.fold_in(plan.noise, 1))
    return _chain(plan, small, ~before, strengths.width / least, fill)


def _chain(plan, picture, on, widest, fill=lambda picture: picture):
    """Those of blur, noise and JPEG that are on, in their order.

    The chain noise, blur, noise, JPEG, noise, blur, noise holds every order of the three; of each kind, the one in the
    right place does something.
    """
    blur_at, noise_at, jpeg_at = (plan.order[i] for i in range(3))
    blurs_last = blur_at > jpeg_at
    noise_slot = (noise_at > blur_at).astype(int) + (noise_at > jpeg_at) + blurs_last

    normal = noise.normal(plan.noise, picture)

    def noisy(picture, slot):
        return noise.add(picture, normal, jnp.where(on[1] & (noise_slot == slot), plan.deviation, 0))

    def blurred(picture, last):
        width = jnp.where(on[0] & (blurs_last == last), plan.width, 0)
        return blur.gaussian(fill(picture), width, blur.radius(widest))

    picture = noisy(blurred(noisy(picture, 0), False), 1)
    picture = jnp.where(on[2], jpeg_coding.code(fill(picture), plan.quality), picture)
    return noisy(blurred(noisy(picture, 2), True), 3)
