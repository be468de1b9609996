"""Faces from 16 to 128 pixels, the recipe of the DREAM paper (arXiv 2312.00210, section 6.2) on SR3's network.

    python -m dream_jax train --config sr3_faces_16_128 --workdir runs/faces \
        --config.data.folder=FFHQ --config.data.eval_folder=CELEBA_HQ

Needs a folder of aligned face crops of at least 128 pixels (the paper: FFHQ to train, CelebA-HQ to test), or
`--config.data.tfds=celeb_a --config.data.resize=128`. The network has 97,807,491 parameters; its training state alone
(weights, EMA, Adam's two moments, gradients) takes 2 GB. Batches of 4 in float32 are the paper's; faces_16_128.py is
what we recommend instead. Training time and final quality: not measured.
"""

from dream_jax.config import keys


def get_config():
    config = keys.defaults()
    config.steps = 1_000_000
    config.batch_size = 4
    config.image_size = 128
    config.compute_dtype = "float32"
    config.task.scale = 8
    config.network.dropout = 0.2
    config.optimizer.learning_rate = 1e-4
    config.data.resize = 128
    config.data.crop = "centre"
    config.log_every = 1000
    config.checkpoint.every = 10_000
    config.samples.every = 10_000
    config.evaluation.samplers = ("ddpm",)
    config.evaluation.steps = (20, 50, 100, 200, 500, 1000, 2000)
    config.evaluation.pictures = 100
    return config
