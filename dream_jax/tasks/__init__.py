"""What is trained: pictures -> (x0, cond), and back. The only place that degrades pictures.

To add a task, write its file and name it in TASKS.
"""

from dream_jax.tasks.class_conditional import class_conditional
from dream_jax.tasks.colourisation import colourisation
from dream_jax.tasks.deblurring import deblurring
from dream_jax.tasks.denoising import denoising
from dream_jax.tasks.inpainting import inpainting
from dream_jax.tasks.jpeg import jpeg
from dream_jax.tasks.mixture import Strengths
from dream_jax.tasks.paired import paired
from dream_jax.tasks.super_resolution import super_resolution
from dream_jax.tasks.task import Task, degraded, restoration
from dream_jax.tasks.unconditional import unconditional


def _super_resolution(settings, data):
    strengths = Strengths(settings.width[-1], settings.deviation[-1], settings.quality)
    strengths = strengths if settings.degradation == "mixed" else None
    more = settings.blur, strengths, settings.scales
    return super_resolution(settings.scale, settings.kernel, settings.residual, settings.gain, data.channels, *more)


# By name in `task.name`: from the settings `config.task`, and `config.data`, which says what pictures are.
TASKS = {
    "super_resolution": _super_resolution,
    "inpainting": lambda settings, data: inpainting(
        settings.masks, settings.unknown, settings.residual, settings.gain, data.channels
    ),
    "deblurring": lambda settings, data: deblurring(
        settings.blurs, settings.width, settings.length, settings.residual, settings.gain, data.channels
    ),
    "denoising": lambda settings, data: denoising(settings.deviation, settings.residual, settings.gain, data.channels),
    "jpeg": lambda settings, data: jpeg(settings.quality, settings.residual, settings.gain, data.channels),
    "colourisation": lambda settings, data: colourisation(settings.residual, settings.gain, data.channels),
    "paired": lambda settings, data: paired(
        settings.target,
        data.channels,
        data.condition_channels,
        settings.num_classes or 0,
        settings.residual,
        settings.gain,
    ),
    "class_conditional": lambda settings, data: class_conditional(
        settings.num_classes or len(data.classes), settings.drop_label, data.channels
    ),
    "unconditional": lambda settings, data: unconditional(data.channels),
}


def make(config) -> Task:
    """The task of a config."""
    return TASKS[config.task.name](config.task, config.data)


__all__ = [
    "TASKS",
    "Task",
    "class_conditional",
    "colourisation",
    "deblurring",
    "degraded",
    "denoising",
    "inpainting",
    "jpeg",
    "make",
    "paired",
    "restoration",
    "super_resolution",
    "unconditional",
]
