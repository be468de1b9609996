"""Does DREAM work? Its variants on small faces, from three seeds, in half an hour on two CPU cores.

    python -m dream_jax compare --config compare_faces_cpu --workdir runs/compare \\
        --config.data.folder=FACES --config.data.eval_folder=OTHER_FACES

Needs folders of aligned faces. Pictures of 8 pixels are enlarged to 32 by a network that predicts eps and starts from
pure noise, as the paper's do, so that many sampling steps may be worth their time.
"""

from dream_jax.config import keys


def get_config():
    config = keys.defaults()
    config.batch_size = 16
    config.image_size = 32
    config.ema_decay = 0.999
    config.compute_dtype = "float32"

    config.objective.distance = "l1"

    config.network.channels = 32
    config.network.channel_multipliers = (1, 2)
    config.network.attention_resolutions = ()
    config.network.num_res_blocks = 1
    config.network.norm_groups = 8
    config.network.patch = 2

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100

    config.data.resize = 32
    config.data.crop = "centre"
    config.log_every = 100
    config.samples.every = 100_000
    config.evaluation.samplers = ("ddpm",)
    config.evaluation.steps = (5, 50)
    config.evaluation.pictures = 100
    config.evaluation.batch_size = 50
    return config


def get_comparison():
    # More may be added later: "p=3": {"objective.p": 3.0}, "DREAM at first": {"objective.stop_step": 1000}, ...
    return {
        "variants": {
            "standard": {"objective.name": "standard"},
            "p=1": {"objective.p": 1.0},
            "p=1, fresh": {"objective.noise": "fresh"},
        },
        "seeds": (0, 1, 2),
        "points": (500, 1000, 1500),
    }
