"""Faces of 64 pixels from noise: conservative DREAM, the face-generation study's recipe.

    python -m dream_jax train --config faces64_conservative --workdir runs/faces64 \
        --config.data.folder=FACES

Needs a folder of aligned face crops (the study: 50,000 of CelebA), or `--config.data.tfds=celeb_a`. The network has
54,846,979 parameters. The standard loss until epoch 10, then the mix. Training time and final quality: not measured.
"""

from dream_jax.config import keys


def get_config():
    config = keys.defaults()
    config.epochs = 100
    config.batch_size = 128
    config.image_size = 64
    config.task.name = "unconditional"

    config.schedule.name = "cosine"
    config.schedule.num_steps = 1000
    config.schedule.continuous = False

    config.objective.name = "conservative_dream"
    config.objective.distance = "l2"
    config.objective.minimum = 0.0
    config.objective.maximum = 0.5
    config.objective.start_epoch = 10
    config.objective.ramp_epochs = 20
    config.objective.mix = 0.7

    config.network.name = "generation"
    config.network.channels = 128
    config.network.channel_multipliers = (1, 2, 4)
    config.network.attention_resolutions = (16,)
    config.network.norm_groups = 8
    config.network.num_heads = 8
    config.network.dropout = 0.1

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.betas = (0.9, 0.999)
    config.optimizer.clip = 1.0

    config.data.resize = 64
    config.data.crop = "centre"
    config.data.limit = 50_000
    config.samples.count = 16
    config.samples.steps = 50
    return config
