"""Generation of pictures of a named class."""

import jax
import jax.numpy as jnp

from dream_jax.errors import UserError
from dream_jax.tasks.task import Task, clip

NEEDS_LABELS = (
    "the data has no classes: sort the pictures into a folder for each in data.folder, or name a feature of data.tfds "
    "with data.label_key"
)


def class_conditional(num_classes: int, drop_label: float = 0.1, channels: int = 3) -> Task:
    """Pictures of a class: x0 is the picture, and cond has a plane for each class, 1 all over of its own, 0 of others.

    Any network takes the class so, among its inputs; for thousands of classes an embedding would take less.

    Args:
      num_classes: how many there are. A label of another number is of no class: all its planes are 0.
      drop_label: the share of examples that are trained on as of no class, drawn from their keys, so that one network
        predicts with and without a class: classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598). At 0 it
        never sees the latter, and guidance is refused.
      channels: of pictures.
    """

    if not num_classes:
        raise UserError(f"task.name = 'class_conditional': {NEEDS_LABELS}")

    def observe(keys, picture):
        raise UserError(f"task.name = 'class_conditional': {NEEDS_LABELS}")

    def condition(label, sides=None):
        label = jnp.asarray(label, jnp.int32)
        planes = jax.nn.one_hot(label[..., 0], num_classes, dtype=jnp.float32)
        return jnp.broadcast_to(planes, (len(label), *(sides or label.shape[1:3]), num_classes))

    return Task(
        observe,
        condition,
        encode=lambda picture, cond: picture,
        to_picture=lambda x0, cond: clip(x0),
        constrain=lambda x0, cond, limit=clip: limit(x0),
        beside="label",
        needs_beside=True,
        null=jnp.zeros_like if drop_label else None,
        dropped=drop_label,
        classes=num_classes,
        channels=channels,
        observed_channels=1,
        given_channels=1,
        cond_channels=num_classes,
    )
