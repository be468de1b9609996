"""Photographs enlarged four times, on a network that two CPU cores train in under an hour.

    python -m dream_jax train --config photos_4x_cpu --workdir runs/photos_dream --config.data.folder=PHOTOS

Needs a folder of photographs. As in quickstart.py the network predicts the clean residual to the bicubic picture; it
works on patches of 4 x 4 pixels, one for each low-resolution pixel. After 3,600 steps on BSDS500 (34 minutes of CPU
time, jax 0.10.2) 20 validation photographs are 1.10 dB over bicubic at 1 step of DDIM, 0.83 dB at
16: docs/few_steps.md.
"""

from dream_jax.config import keys


def get_config():
    config = keys.defaults()
    config.steps = 6000
    config.batch_size = 16
    config.image_size = 64
    config.ema_decay = 0.999

    config.task.residual = True
    config.task.gain = 4.0
    config.objective.kind = "x0"
    config.objective.distance = "l2"

    config.network.channels = 64
    config.network.channel_multipliers = (1, 2)
    config.network.attention_resolutions = ()
    config.network.num_res_blocks = 2
    config.network.norm_groups = 16
    config.network.patch = 4

    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 100

    config.log_every = 100
    config.checkpoint.every = 1000
    config.samples.every = 2000
    config.samples.steps = 8
    config.evaluation.steps = (1, 4, 16)
    config.evaluation.pictures = 20
    config.evaluation.crop = 128
    return config
