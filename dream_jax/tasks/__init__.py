"""What is trained: pictures -> (x0, cond), and back. The only place that degrades pictures.

To add a task, write its file and name it in TASKS.
"""

from dream_jax.tasks.super_resolution import super_resolution
from dream_jax.tasks.task import Task, restoration
from dream_jax.tasks.unconditional import unconditional

# By name in `task.name`: from the settings `config.task` and the channels of pictures to the task.
TASKS = {
    "super_resolution": lambda settings, channels: super_resolution(
        settings.scale, settings.kernel, settings.residual, settings.gain, channels
    ),
    "unconditional": lambda settings, channels: unconditional(channels),
}


def make(config) -> Task:
    """The task of a config."""
    return TASKS[config.task.name](config.task, config.data.channels)


__all__ = ["TASKS", "Task", "make", "restoration", "super_resolution", "unconditional"]
