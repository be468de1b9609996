"""Any picture from any other of the same place and size: another picture of it, its depth, or classes of its pixels."""

import jax
import jax.numpy as jnp

from dream_jax.errors import UserError
from dream_jax.files import palettes
from dream_jax.tasks import value_range
from dream_jax.tasks.task import Task, as_observed, clip, restoration

# What can be made of a condition.
TARGETS = ("picture", "depth", "classes")


def paired(
    target: str = "picture",
    channels: int = 3,
    condition_channels: int = 3,
    num_classes: int = 0,
    residual: bool = False,
    gain: float = 1.0,
) -> Task:
    """A picture from the condition that lies beside it in the data; nothing is known of how one becomes the other.

    Args:
      target: "picture": in low light, through haze, by another camera. "depth": a map of one channel, whose levels are
        as far apart as black and white of its files. "classes": a map of one channel, whose levels are numbers of
        classes from 0 on; white, 255 of 8 bits and 65535 of 16, is void, a pixel of no class.
      channels: of pictures; 1 of maps.
      condition_channels: of conditions.
      num_classes: of maps of classes.
      residual, gain: as for `super_resolution`, of pictures with as many channels as the condition.

    x0 of a map of classes has a channel for each: 1 of the pixel's own, -1 of others, and 0 of void, where nothing is
    to be said for any; the largest one is the result's class.
    """
    if target != "picture" and channels != 1:
        raise UserError(f"data.channels = {channels}: task.target = {target!r} is a map of one channel; set it to 1")
    alike = target == "picture" and channels == condition_channels
    if residual and not alike:
        raise UserError(
            f"task.residual = True: task.target = {target!r} of {channels} channels has no difference to a condition "
            f"of {condition_channels}, only pictures of as many channels have; set task.residual=False"
        )
    fields = {
        "columns": lambda observed, baseline: {"condition": observed},
        "beside": "condition",
        "needs_beside": True,
        "measured_as": target,
        "channels": channels,
        "observed_channels": condition_channels,
        "given_channels": condition_channels,
        "cond_channels": condition_channels,
    }
    if target == "classes":
        return _classes(num_classes, fields)
    if alike:
        fields |= {"baseline": as_observed, "baseline_name": "condition"}
    if target == "depth":
        fields["shown"] = palettes.of_depth
    return restoration(_observe, as_observed, residual=residual, gain=gain, **fields)


def _observe(keys, picture):
    raise UserError("task.name = 'paired': conditions are not made here but must be there: data.condition_folder")


def _classes(number, fields):
    if not number:
        raise UserError("task.num_classes = None: say how many classes there are; numbers run from 0 on")

    def encode(picture, cond):
        mine = jax.nn.one_hot(picture[..., 0].astype(jnp.int32), number, dtype=picture.dtype)
        return (2 * mine - 1) * mine.any(-1, keepdims=True)

    return Task(
        _observe,
        as_observed,
        encode,
        to_picture=lambda x0, cond: jnp.argmax(x0, -1, keepdims=True).astype(x0.dtype),
        constrain=lambda x0, cond, limit=clip: limit(x0),
        to_float=lambda levels: jnp.asarray(levels).astype(jnp.float32),
        to_levels=_whole,
        shown=palettes.of_classes,
        paired=True,
        x0_channels=number,
        classes=number,
        **fields,
    )


def _whole(picture, dtype=jnp.uint8):
    """The numbers of classes as levels, to the bit."""
    return jnp.clip(jnp.floor(picture + 0.5), 0, value_range.white(dtype)).astype(dtype)
