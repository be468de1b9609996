"""Faces of 64 pixels from noise by the standard objective: what the face study's DREAM is to be held against.

    python -m dream_jax train --config faces64_standard --workdir runs/faces64_standard --config.data.folder=FACES

All else is as in faces64_conservative.py. Training time and final quality: not measured.
"""

from dream_jax.config import command_line


def get_config():
    config = command_line.load("faces64_conservative")
    config.objective.name = "standard"
    return config
