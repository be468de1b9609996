"""Photographs enlarged four times: the DREAM recipe on crops of 64 pixels.

    python -m dream_jax train --config sr3_photos_4x --workdir runs/photos \
        --config.data.folder=PHOTOS

Needs a folder of photographs (DIV2K, BSDS500, ...; large ones are cut into tiles once), or
`--config.data.tfds=div2k/bicubic_x4 --config.data.train_split=train --config.data.eval_split=validation`. A network of
24,478,595 parameters that predicts eps, as in the paper. Training time and final quality: not measured.
"""

from dream_jax.config import keys


def get_config():
    config = keys.defaults()
    config.steps = 200_000
    config.batch_size = 64
    config.image_size = 64
    config.network.channel_multipliers = (1, 2, 4, 4)
    config.network.attention_resolutions = (8,)
    config.network.dropout = 0.1
    config.evaluation.crop = 256
    config.evaluation.steps = (1, 5, 10, 50)
    config.log_every = 500
    config.checkpoint.every = 5000
    config.samples.every = 5000
    return config
