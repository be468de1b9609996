"""ResShift's process on quickstart's photographs and network: 15 steps from the enlarged picture and noise.

    python -m dream_jax train --config resshift_photos_cpu --workdir runs/resshift

Its own sampler is measured beside others at its own number of steps: docs/processes.md.
"""

from dream_jax.config import command_line


def get_config():
    config = command_line.load("quickstart")
    config.task.gain = 1.0
    config.schedule.name = "resshift"
    config.schedule.num_steps = 15
    config.samples.sampler = "resshift"
    config.samples.steps = 15
    config.evaluation.samplers = ("resshift", "ddim", "ddpm", "dpmpp_2m")
    config.evaluation.steps = (1, 4, 15)
    return config
