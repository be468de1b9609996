"""Inpainting: the unknown part of pictures."""

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.errors import UserError
from dream_jax.tasks import draws, host, masks, value_range
from dream_jax.tasks.task import Task, mean_square, restoration


def inpainting(
    kinds: tuple[str, ...] = tuple(masks.MASKS),
    unknown: tuple[float, ...] = (0.1, 0.5),
    residual: bool = False,
    gain: float = 1.0,
    channels: int = 3,
) -> Task:
    """A picture from its known part, which stays as it is to the bit.

    Observed is the picture, mid-grey in the unknown part, and the mask as its last channel, white there. cond is the
    same, 0 in the unknown part, and 1 there in its last channel.

    Args:
      kinds: the random masks, of `masks.MASKS`.
      unknown: the share of a picture that is unknown, about; one number, or LOW, HIGH.
      residual, gain: see `restoration`.
      channels: of pictures.
    """
    if not kinds:
        raise UserError(f"task.masks = (): it must name at least one of {', '.join(masks.MASKS)}")

    @draws.each
    def observe(key, picture):
        share_key, mask_key = jax.random.split(key)
        mask = masks.draw(mask_key, *picture.shape[:2], kinds, draws.within(share_key, unknown))
        return masked(picture, mask)

    def condition(observed, sides=None):
        picture, mask = value_range.to_float(observed[..., :-1]), observed[..., -1:] > 0
        return jnp.concatenate([jnp.where(mask, 0, picture), mask.astype(picture.dtype)], -1)

    def keep(picture, cond):
        return jnp.where(cond[..., -1:] > 0.5, picture, cond[..., :-1].astype(picture.dtype))

    def baseline(observed, sides=None):
        return value_range.to_float(observed[..., :-1])

    def consistency(result, observed):
        observed = jnp.asarray(observed)
        return mean_square(masked(result, observed[..., -1:])[..., :-1], observed[..., :-1])

    return restoration(
        observe,
        condition,
        residual=residual,
        gain=gain,
        keep=keep,
        baseline=baseline,
        baseline_name="masked",
        classical=("biharmonic", biharmonic),
        consistency=consistency,
        project=lambda picture, observed: keep(picture, condition(observed)),
        columns=lambda observed, baseline: {"masked": baseline},
        given=masked,
        beside="mask",
        channels=channels,
        observed_channels=channels + 1,
        cond_channels=channels + 1,
    )


def masked(picture, mask=None):
    """Levels [..., H, W, C + 1]: mid-grey where a mask [..., H, W, 1] of levels is brighter than that, and the mask."""
    if mask is None:
        raise UserError("inpainting needs a mask beside each picture, white where it is unknown: --mask")
    picture, mask = jnp.asarray(picture), jnp.asarray(mask)
    unknown, white = mask > value_range.white(mask.dtype) // 2, value_range.white(picture.dtype)
    grey = jnp.asarray(128 * (white // 255), picture.dtype)
    return jnp.concatenate([jnp.where(unknown, grey, picture), unknown.astype(picture.dtype) * white], -1)


def biharmonic(observed):
    """Damelin and Hoang 2018, by scikit-image; levels [H, W, C + 1] on the host."""
    from skimage import restoration as classical

    picture, unknown = observed[..., :-1], observed[..., -1] > 0
    if not unknown.any() or unknown.all():
        return picture
    found = classical.inpaint_biharmonic(host.to_unit(picture), unknown, channel_axis=-1)
    return np.where(unknown[..., None], host.to_levels(found, picture.dtype), picture)
