"""IR-SDE's process on quickstart's photographs and network: a mean-reverting SDE of 100 steps.

    python -m dream_jax train --config ir_sde_photos_cpu --workdir runs/ir_sde

Its posterior sampling is `ddpm`: docs/processes.md.
"""

from dream_jax.config import command_line


def get_config():
    config = command_line.load("quickstart")
    config.task.gain = 1.0
    config.schedule.name = "ir_sde"
    config.schedule.num_steps = 100
    config.samples.sampler = "ddpm"
    config.evaluation.samplers = ("ddpm", "ddim", "dpmpp_2m")
    config.evaluation.steps = (1, 10, 100)
    return config
