"""Faces of 64 pixels from noise by DREAM without restraint: what the face study's caution is to be held against.

    python -m dream_jax train --config faces64_aggressive --workdir runs/faces64_aggressive --config.data.folder=FACES

The rectified loss alone, with a weight that runs to 1, from the first step on. The study speaks of an aggressive
setting, but prints no values for it: these are ours. All else is as in faces64_conservative.py. Training time and final
quality: not measured.
"""

from dream_jax.config import command_line


def get_config():
    config = command_line.load("faces64_conservative")
    config.objective.maximum = 1.0
    config.objective.mix = 0.0
    config.objective.start_epoch = 0
    config.objective.ramp_epochs = 0
    return config
