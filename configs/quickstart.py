from configs import base


def get_config():
    config = base.get_config()
    config.steps = 300
    config.batch_size = 16
    config.image_size = 64
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
    config.ema_decay = 0.99
    config.log_every = 50
    config.checkpoint.every = 100
    config.samples.every = 100
    config.samples.steps = 5
    config.evaluation.steps = (1, 5)
    config.evaluation.samplers = ("ddim", "ddpm")
    config.evaluation.crop = 128
    config.evaluation.batch_size = 2
    return config
