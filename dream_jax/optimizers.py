"""Optimizers: optax's, with warmup and clipping by the global norm.

To add an optimizer, add its line to OPTIMIZERS.
"""

from dream_jax.errors import UserError

# optax is imported where it is used: programs that only draw need none of it.


def _adam(rate, settings):
    import optax

    return optax.adam(rate, *settings.betas, settings.epsilon)


def _adamw(rate, settings):
    import optax

    return optax.adamw(rate, *settings.betas, settings.epsilon, weight_decay=settings.weight_decay)


def _sgd(rate, settings):
    import optax

    return optax.sgd(rate)


# By name in `optimizer.name`: from the learning rate, a number or a schedule, and `config.optimizer`.
OPTIMIZERS = {"adam": _adam, "adamw": _adamw, "sgd": _sgd}


def make_optimizer(settings):
    """The optax.GradientTransformation of `config.optimizer`."""
    import optax

    if settings.name not in OPTIMIZERS:
        raise UserError(f"optimizer.name = {settings.name!r}: choose one of {', '.join(OPTIMIZERS)}")
    rate = settings.learning_rate
    if settings.warmup_steps:
        # Step s of the warmup runs at (s + 1) / warmup_steps of the rate, so no step is wasted at zero.
        rate = optax.linear_schedule(rate / settings.warmup_steps, rate, settings.warmup_steps - 1)
    update = OPTIMIZERS[settings.name](rate, settings)
    return update if settings.clip is None else optax.chain(optax.clip_by_global_norm(settings.clip), update)
