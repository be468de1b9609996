"""RDDM's process on quickstart's photographs and network: the residual and the noise on schedules of their own.

    python -m dream_jax train --config rddm_photos_cpu --workdir runs/rddm

Its own sampler is `ddim`; the noise's variance, `schedule.sum_scale`, is that of its restoration: docs/processes.md.
"""

from dream_jax.config import command_line


def get_config():
    config = command_line.load("quickstart")
    config.task.gain = 1.0
    config.schedule.name = "rddm"
    config.schedule.num_steps = 1000
    config.schedule.sum_scale = 0.01
    config.evaluation.samplers = ("ddim", "resshift", "ddpm", "dpmpp_2m")
    config.evaluation.steps = (1, 5, 10)
    return config
