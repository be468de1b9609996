"""Photographs enlarged four times, the recipe of the DREAM paper (arXiv 2312.00210, section 6.2) on SR3's network.

    python -m dream_jax train --config sr3_div2k_4x --workdir runs/div2k \
        --config.data.folder=DIV2K_AND_FLICKR2K --config.data.eval_folder=DIV2K_VALIDATION

The paper trains on DIV2K and Flickr2K, which belong into one folder, and measures the 100 whole pictures of DIV2K's
validation set in low-resolution tiles of 40 pixels that overlap by 5. Tiles are blended in every step of the sampler,
as upscaling does. The network has 97,807,491 parameters. Attention lies where it does in SR3 at 128 pixels, three
halvings down: the paper does not say. Training time and final quality: not measured.
"""

from dream_jax.config import keys


def get_config():
    config = keys.defaults()
    config.steps = 1_000_000
    config.batch_size = 32
    config.image_size = 160
    config.compute_dtype = "float32"
    config.task.scale = 4
    config.schedule.num_steps = 1000
    config.network.attention_resolutions = (20,)
    config.network.dropout = 0.2
    config.optimizer.learning_rate = 1e-4
    config.log_every = 1000
    config.checkpoint.every = 10_000
    config.samples.every = 10_000
    config.evaluation.samplers = ("ddpm",)
    config.evaluation.steps = (20, 50, 100, 200, 500, 1000)
    config.evaluation.pictures = 100
    config.evaluation.whole = True
    config.evaluation.tile = 160
    config.evaluation.overlap = 20
    return config
