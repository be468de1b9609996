"""The optimizer of a config: optax, with warmup and clipping by the global norm."""

import optax

from dream_jax.errors import UserError

OPTIMIZERS = ("adam", "adamw", "sgd")


def make_optimizer(config) -> optax.GradientTransformation:
    """Builds `config.optimizer`: name, learning_rate, warmup_steps, betas, epsilon, weight_decay, clip."""
    rate = config.learning_rate
    if config.warmup_steps:
        # Step s of the warmup runs at (s + 1) / warmup_steps of the rate, so no step is wasted at zero.
        rate = optax.linear_schedule(rate / config.warmup_steps, rate, config.warmup_steps - 1)
    b1, b2 = config.betas
    if config.name == "adam":
        update = optax.adam(rate, b1, b2, config.epsilon)
    elif config.name == "adamw":
        update = optax.adamw(rate, b1, b2, config.epsilon, weight_decay=config.weight_decay)
    elif config.name == "sgd":
        update = optax.sgd(rate)
    else:
        raise UserError(f"optimizer.name = {config.name!r}: choose one of {', '.join(OPTIMIZERS)}")
    return update if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), update)
