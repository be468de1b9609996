"""Faces from 16 to 128 pixels, the recipe of the DREAM paper (arXiv 2312.00210) on SR3's network.

    python -m dream_jax train --config sr3_faces_16_128 --workdir runs/faces \
        --config.data.folder=FACES

Needs a folder of aligned face crops of at least 128 pixels (the paper: FFHQ to train, CelebA-HQ to test), or
`--config.data.tfds=celeb_a --config.data.resize=128`. The network has 97,807,491 parameters; its training state alone
(weights, EMA, Adam's two moments, gradients) takes 2 GB. Training time and final quality: not measured.
"""

from dream_jax.config import keys


def get_config():
    config = keys.defaults()
    config.steps = 1_000_000
    config.batch_size = 32
    config.image_size = 128
    config.task.scale = 8
    config.network.dropout = 0.2
    config.optimizer.learning_rate = 1e-4
    config.data.resize = 128
    config.log_every = 1000
    config.checkpoint.every = 10_000
    config.samples.every = 10_000
    config.evaluation.steps = (10, 50, 100)
    return config
