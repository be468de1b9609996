"""Photographs enlarged twice: DREAM in minutes on two CPU cores, without a download.

    python -m dream_jax train --config quickstart --workdir runs/quickstart

Needs nothing: it trains on eleven photographs inside scikit-image and is measured on two others. The network predicts
the clean residual to the bicubic picture (so it starts at bicubic quality) on patches of 2 x 2 pixels (so it is cheap).
The README shows its table, and how long it takes.
"""

from dream_jax.config import keys


def get_config():
    config = keys.defaults()
    config.steps = 300
    config.batch_size = 16
    config.image_size = 64
    config.ema_decay = 0.99

    config.task.scale = 2
    config.task.residual = True
    config.task.gain = 4.0
    config.objective.kind = "x0"
    config.objective.distance = "l2"

    config.network.channels = 32
    config.network.channel_multipliers = (1, 2, 2)
    config.network.attention_resolutions = ()
    config.network.num_res_blocks = 1
    config.network.norm_groups = 8
    config.network.patch = 2

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20

    config.log_every = 50
    config.checkpoint.every = 100
    config.samples.every = 100
    config.samples.steps = 5
    config.evaluation.steps = (1, 2, 5, 10)
    config.evaluation.crop = 256
    config.evaluation.batch_size = 2
    return config
