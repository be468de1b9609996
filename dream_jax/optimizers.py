"""Optimizers: optax's, with warmup, decay and clipping by the global norm.

To add an optimizer, add its line to OPTIMIZERS. It is given all parameters of a dtype as one array [N], so it treats
each element by itself, or all alike: one that knows kernels by their shape, or each by its norm, does not work here.
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


def _cosine(rate, last, steps):
    import optax

    return optax.cosine_decay_schedule(rate, steps, last / rate)


def _linear(rate, last, steps):
    import optax

    return optax.linear_schedule(rate, last, steps)


# By name in `optimizer.decay`: from the first rate, the last one, and the number of steps between them.
DECAYS = {"constant": lambda rate, last, steps: rate, "cosine": _cosine, "linear": _linear}


def make_optimizer(settings):
    """The optax.GradientTransformation of `config.optimizer`."""
    import optax

    if settings.name not in OPTIMIZERS:
        raise UserError(f"optimizer.name = {settings.name!r}: choose one of {', '.join(OPTIMIZERS)}")
    rate, warmup = settings.learning_rate, settings.warmup_steps
    after = rate
    if rate and settings.decay_steps is not None:
        after = DECAYS[settings.decay](rate, settings.final * rate, settings.decay_steps - warmup)
    if warmup:
        # Step s of the warmup runs at (s + 1) / warmup_steps of the rate, so no step is wasted at zero.
        rising = optax.linear_schedule(rate / warmup, rate, warmup - 1)
        after = rising if after == rate else optax.join_schedules([rising, after], [warmup])
    rate = after
    update = OPTIMIZERS[settings.name](rate, settings)
    return update if settings.clip is None else optax.chain(optax.clip_by_global_norm(settings.clip), update)
