"""What is trained: pictures -> (x0, cond), and back. The only place that degrades pictures.

To add a task, write its file and name it in TASKS.
"""

from dream_jax.tasks.colourisation import colourisation
from dream_jax.tasks.deblurring import deblurring
from dream_jax.tasks.denoising import denoising
from dream_jax.tasks.inpainting import inpainting
from dream_jax.tasks.jpeg import jpeg
from dream_jax.tasks.super_resolution import super_resolution
from dream_jax.tasks.task import Task, restoration
from dream_jax.tasks.unconditional import unconditional

# By name in `task.name`: from the settings `config.task` and the channels of pictures to the task.
TASKS = {
    "super_resolution": lambda settings, channels: super_resolution(
        settings.scale, settings.kernel, settings.residual, settings.gain, channels
    ),
    "inpainting": lambda settings, channels: inpainting(
        settings.masks, settings.unknown, settings.residual, settings.gain, channels
    ),
    "deblurring": lambda settings, channels: deblurring(
        settings.blurs, settings.width, settings.length, settings.residual, settings.gain, channels
    ),
    "denoising": lambda settings, channels: denoising(settings.deviation, settings.residual, settings.gain, channels),
    "jpeg": lambda settings, channels: jpeg(settings.quality, settings.residual, settings.gain, channels),
    "colourisation": lambda settings, channels: colourisation(settings.residual, settings.gain, channels),
    "unconditional": lambda settings, channels: unconditional(channels),
}


def make(config) -> Task:
    """The task of a config."""
    return TASKS[config.task.name](config.task, config.data.channels)


__all__ = [
    "TASKS",
    "Task",
    "colourisation",
    "deblurring",
    "denoising",
    "inpainting",
    "jpeg",
    "make",
    "restoration",
    "super_resolution",
    "unconditional",
]
