"""Resfusion's process on quickstart's photographs and network: the five steps that are left of twelve.

    python -m dream_jax train --config resfusion_photos_cpu --workdir runs/resfusion

Its own sampler is measured beside others at its own number of steps: docs/processes.md.
"""

from dream_jax.config import command_line


def get_config():
    config = command_line.load("quickstart")
    config.task.gain = 1.0
    config.schedule.name = "resfusion"
    config.schedule.num_steps = 12
    config.samples.sampler = "resfusion"
    config.evaluation.samplers = ("resfusion", "ddim", "ddpm", "dpmpp_2m")
    config.evaluation.steps = (1, 2, 5)
    return config
