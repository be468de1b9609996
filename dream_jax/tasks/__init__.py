"""What is trained: pictures -> (x0, cond), and back. The only place that degrades pictures.

To add a task, write its file and name it in TASKS.
"""

from dream_jax.tasks.super_resolution import super_resolution
from dream_jax.tasks.task import Task
from dream_jax.tasks.unconditional import unconditional

# By name in `task.name`: from the settings `config.task` to the task.
TASKS = {
    "super_resolution": lambda settings: super_resolution(
        settings.scale, settings.kernel, settings.residual, settings.gain
    ),
    "unconditional": lambda settings: unconditional(),
}

__all__ = ["TASKS", "Task", "super_resolution", "unconditional"]
