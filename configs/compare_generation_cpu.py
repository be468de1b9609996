"""The face study in small: standard, conservative and aggressive DREAM for faces of 16 pixels from noise.

    python -m dream_jax compare --config compare_generation_cpu --workdir runs/generation --config.data.folder=FACES

As in faces64_conservative.py and its two others, with a small network and epochs counted in steps. Generated pictures
are measured against as many of those trained on, by features of EfficientNet-lite0.
"""

from dream_jax.config import command_line


def get_config():
    config = command_line.load("faces64_conservative")
    config.epochs = None
    config.batch_size = 16
    config.image_size = 16
    config.ema_decay = 0.999
    config.compute_dtype = "float32"

    config.network.name = "sr3"
    config.network.channels = 32
    config.network.channel_multipliers = (1, 2)
    config.network.attention_resolutions = ()
    config.network.num_res_blocks = 1
    config.network.patch = 2
    config.network.dropout = 0.0

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.data.resize = 16
    config.objective.start_epoch = 0
    config.objective.ramp_epochs = 0

    config.log_every = 100
    config.samples.every = 100_000
    config.evaluation.samplers = ("ddim",)
    config.evaluation.steps = (20,)
    config.evaluation.pictures = 2000
    config.evaluation.against = "train"
    config.evaluation.batch_size = 100
    config.evaluation.learned = ("efficientnet_lite0",)
    return config


def get_comparison():
    # The study begins to rectify at a tenth of its training.
    conservative = {"objective.start_step": 250}
    aggressive = {"objective.maximum": 1.0, "objective.mix": 0.0}
    return {
        "variants": {
            "standard": {"objective.name": "standard"},
            "conservative": conservative,
            "aggressive": aggressive,
        },
        "seeds": (0, 1, 2),
        "points": (2500,),
    }
