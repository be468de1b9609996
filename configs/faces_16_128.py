"""Faces from 16 to 128 pixels, as we would train them on a GPU: the paper's recipe with larger batches, in bfloat16.

    python -m dream_jax train --config faces_16_128 --workdir runs/faces \\
        --config.data.folder=FFHQ --config.data.eval_folder=CELEBA_HQ

The network of sr3_faces_16_128.py. Batches of 64 use a GPU better than the paper's of 4 in float32; the rate grows with
the square root of that, after a warmup. Training time and final quality: not measured.
"""

from dream_jax.config import command_line


def get_config():
    config = command_line.load("sr3_faces_16_128")
    config.steps = 100_000
    config.batch_size = 64
    config.compute_dtype = "auto"
    config.optimizer.learning_rate = 4e-4
    config.optimizer.warmup_steps = 2000
    config.evaluation.samplers = ("ddpm", "ddim")
    config.evaluation.steps = (5, 20, 100)
    return config
