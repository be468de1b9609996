"""Any restoration of photographs, in minutes on two CPU cores, without a download.

    python -m dream_jax train --config restoration_cpu --workdir runs/denoising
    python -m dream_jax train --config restoration_cpu --workdir runs/inpainting --config.task.name=inpainting

and so on for deblurring, jpeg and colourisation. As in quickstart.py the network predicts what a picture differs by
from what was observed of it, so that it begins there. docs/tasks.md has the tables.
"""

from dream_jax.config import command_line


def get_config():
    config = command_line.load("quickstart")
    config.task.name = "denoising"
    config.evaluation.steps = (1, 5)
    config.evaluation.pictures = 20
    return config
