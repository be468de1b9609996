"""Training objectives: what is minimised, from what was drawn for a batch.

To add an objective, write its function of losses and name it in OBJECTIVES.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dream_jax import diffusion, dream
from dream_jax.diffusion import expand
from dream_jax.errors import UserError
from dream_jax.noise_schedule import NoiseSchedule


class Draw(NamedTuple):
    """What was drawn for a batch.

    Attributes:
      x0, eps: [B, H, W, C], what is modelled and the noise.
      t: int32 [B], the step of the noise schedule, 1 .. num_steps.
      alpha, sigma: [B], the level.
      schedule: the noise schedule, of T = `schedule.num_steps` steps.
      dropout: keys [B, 2]: for two passes with independent dropout.
      keys: [B], for whatever else an objective draws; see `further_noise`.
      ramp: in [0, 1], by which the weight is multiplied.
      constrain: `x0 -> x0` that a picture can be, as sampling constrains predictions.
    """

    x0: jax.Array
    eps: jax.Array
    t: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    schedule: NoiseSchedule
    dropout: jax.Array
    keys: jax.Array | None = None
    ramp: jax.Array | float = 1.0
    constrain: Callable = lambda x0: x0


class Losses(NamedTuple):
    """Of each example [B]: the loss; the mean |eps - eps_hat| of the network's estimate; the rectification weight."""

    loss: jax.Array
    eps_error: jax.Array
    lam: jax.Array


def _check_distance(config, task):
    settings = config.objective
    if settings.min_snr_gamma is not None and settings.distance != "l2":
        raise UserError(
            f"objective.min_snr_gamma = {settings.min_snr_gamma}: it is defined for squared errors; set "
            f"objective.distance = l2, not {settings.distance}"
        )


class Objective(NamedTuple):
    """What is minimised.

    Attributes:
      title: what models that were trained with it are called in tables and pictures.
      losses: `(predict, draw, settings) -> Losses`. predict is `(x_t, dropout_keys=None, alpha=None, previous=None) ->
        output`, the network with its gradient, at the level drawn unless another alpha is given; settings are
        `config.objective`.
      rectifies: whether it is the standard objective outside of `objective.start_step` and `stop_step`.
      weight: `(draw, settings) -> lam [B]`, its rectification weight; None: it has none.
      self_conditions: whether the network is also given `previous`, the x0 estimated before; zeros where there is none.
      check: `(config, task) -> None` raises UserError where it is not defined for the schedule, the task or the kind.
    """

    title: str
    losses: Callable[[Callable, Draw, object], Losses]
    rectifies: bool = True
    weight: Callable[[Draw, object], jax.Array] | None = None
    self_conditions: bool = False
    check: Callable = _check_distance


def further_noise(draw: Draw, number: int):
    """Standard normal noise like eps and independent of it, for each number another one."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(draw.keys)
    return jax.vmap(lambda key: jax.random.normal(key, draw.eps.shape[1:], draw.eps.dtype))(keys)


# What a number means to `further_noise`.
_SECOND_PASS, _ON_ESTIMATE, _ON_INPUT = range(3)
# Another number that keys are folded with.
_WHETHER_SHOWN = 3


def standard(predict, draw: Draw, settings) -> Losses:
    """`dream.standard`."""
    loss, error = dream.standard(
        lambda x: predict(x, draw.dropout[:, 0]),
        *(draw.x0, draw.eps, draw.alpha, draw.sigma),
        kind=settings.kind,
        distance=settings.distance,
    )
    return Losses(loss, error, jnp.zeros_like(draw.sigma))


def rectified(predict, draw: Draw, settings) -> Losses:
    """`dream.dream`, with the weight family of `objective.weight`."""
    lam = _chosen_weight(draw, settings)
    size = settings.estimate_noise
    loss, error = dream.dream(
        lambda x: predict(x, draw.dropout[:, 0]),
        predict,
        *(draw.x0, draw.eps, draw.alpha, draw.sigma, lam),
        kind=settings.kind,
        distance=settings.distance,
        fresh=further_noise(draw, _SECOND_PASS) if settings.noise == "fresh" else None,
        extra=size * further_noise(draw, _ON_ESTIMATE) if size else None,
    )
    return Losses(loss, error, lam)


def input_perturbation(predict, draw: Draw, settings) -> Losses:
    """The standard loss on inputs whose noise has more of it than the target (Ning et al. 2023, arXiv 2301.11706).

    `x_t = alpha x0 + sigma (eps + gamma xi)` with the target of eps (their algorithm 3; gamma = 0.1), gamma is
    `objective.perturbation`.
    """
    eps = draw.eps + settings.perturbation * further_noise(draw, _ON_INPUT)
    x_t = diffusion.add_noise(draw.x0, eps, draw.alpha, draw.sigma)
    output = predict(x_t, draw.dropout[:, 0])
    target = diffusion.target(settings.kind, draw.x0, draw.eps, draw.alpha, draw.sigma)
    eps_hat = jax.lax.stop_gradient(diffusion.to_eps(settings.kind, output, x_t, draw.alpha, draw.sigma))
    loss = dream.DISTANCES[settings.distance](output, target)
    return Losses(loss, dream.DISTANCES["l1"](draw.eps, eps_hat), jnp.zeros_like(draw.sigma))


def scheduled_sampling(predict, draw: Draw, settings) -> Losses:
    """The standard loss on inputs that the sampler made: rollouts from noisier levels, without a gradient through them.

    After multi-step denoising scheduled sampling (Ren et al., AAAI 2024), of which the summary was at hand, not the
    code. Here x at time t comes from the true x at t + span T by `objective.rollout` equal steps of DDIM; the span is
    `objective.span`, cut at T. The target is the noise that is then between x and the true x0, as DREAM's is
    (equation 12), so a rollout of no length is the standard objective.
    """
    x, alpha, sigma = _rolled_out(predict, draw, settings)
    eps = (x - expand(alpha, x) * draw.x0) / expand(sigma, x)
    output = predict(x, draw.dropout[:, 0])
    target = diffusion.target(settings.kind, draw.x0, eps, alpha, sigma)
    eps_hat = jax.lax.stop_gradient(diffusion.to_eps(settings.kind, output, x, alpha, sigma))
    loss = dream.DISTANCES[settings.distance](output, target)
    return Losses(loss, dream.DISTANCES["l1"](eps, eps_hat), jnp.zeros_like(sigma))


def _rolled_out(predict, draw, settings):
    """(x, alpha, sigma) at the level drawn, after DDIM's steps from a noisier one."""
    schedule = draw.schedule
    tables = jnp.asarray(schedule.alpha, draw.alpha.dtype), jnp.asarray(schedule.sigma, draw.sigma.dtype)
    span = round(settings.span * schedule.num_steps)
    # The first is the level drawn, which may lie between entries of the table.
    levels = [(draw.alpha, draw.sigma)]
    for step in range(1, settings.rollout + 1):
        t = jnp.minimum(draw.t + span * step // settings.rollout, schedule.num_steps)
        # At the noisiest levels a rollout is shorter, and at the last one nothing is left of it.
        levels.append(tuple(jnp.where(t > draw.t, table[t], now) for table, now in zip(tables, levels[0], strict=True)))
    (alpha, sigma), *cleaner = reversed(levels)
    x = diffusion.add_noise(draw.x0, draw.eps, alpha, sigma)
    for next_alpha, next_sigma in cleaner:
        output = jax.lax.stop_gradient(predict(x, alpha=alpha))
        x0_hat = diffusion.to_x0(settings.kind, output, x, alpha, sigma)
        eps_hat = diffusion.to_eps(settings.kind, output, x, alpha, sigma)
        moved = diffusion.add_noise(x0_hat, eps_hat, next_alpha, next_sigma)
        # Where both levels are one, x is kept to the bit.
        x = jnp.where(expand(next_alpha == alpha, x), x, moved)
        alpha, sigma = next_alpha, next_sigma
    return x, alpha, sigma


def self_conditioning(predict, draw: Draw, settings) -> Losses:
    """The standard loss of a network that is shown its own estimate, for half of the examples (arXiv 2208.04202).

    Chen et al. 2022, algorithm 1: the estimate has no gradient, and the other half is shown zeros. Sampling shows the
    network what it predicted in the step before.
    """
    x_t = diffusion.add_noise(draw.x0, draw.eps, draw.alpha, draw.sigma)
    output = jax.lax.stop_gradient(predict(x_t))
    x0_hat = draw.constrain(diffusion.to_x0(settings.kind, output, x_t, draw.alpha, draw.sigma))
    shown = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, _WHETHER_SHOWN)))(draw.keys)
    previous = jnp.where(expand(shown, x0_hat), x0_hat, 0)
    return standard(lambda x, keys: predict(x, keys, previous=previous), draw, settings)


def conservative(predict, draw: Draw, settings) -> Losses:
    """`dream.conservative_dream`, whose weight is linear in the time, counted from 0 as in the face study."""
    lam = _linear_weight(draw, settings)
    loss, error = dream.conservative_dream(
        lambda x: predict(x, draw.dropout[:, 0]),
        lambda x: predict(x, draw.dropout[:, 1]),
        *(draw.x0, draw.eps, draw.alpha, draw.sigma, lam),
        mix=settings.mix,
        distance=settings.distance,
    )
    return Losses(loss, error, lam)


def _chosen_weight(draw, settings):
    return _weight(settings.weight, draw, draw.t / draw.schedule.num_steps, settings, p=settings.p)


def _linear_weight(draw, settings):
    return _weight("linear", draw, (draw.t - 1) / draw.schedule.num_steps, settings)


def _weight(family, draw, time, settings, **options):
    bounds = {"minimum": settings.minimum, "maximum": settings.maximum, "ramp": draw.ramp}
    options |= {"rate": settings.rate, "threshold": settings.threshold}
    return dream.weight(family, draw.alpha, draw.sigma, time, **bounds, **options)


def _check_rectified(config, task):
    settings = config.objective
    _check_distance(config, task)
    if settings.p is None and settings.weight != "power":
        raise UserError(
            f"objective.p = None: it switches DREAM off for the weight power, not for {settings.weight}; use "
            "objective.name = standard"
        )


def _check_conservative(config, task):
    _check_distance(config, task)
    if config.objective.kind != "eps":
        raise UserError(f"objective.kind = {config.objective.kind!r}: conservative_dream is defined for eps")
    if task.paired:
        raise UserError(f"task.name = {config.task.name!r}: conservative_dream is for unconditional models")
    if config.schedule.continuous:
        raise UserError("schedule.continuous = True: conservative_dream draws whole levels; set it False")
    if config.objective.estimate_every != 1:
        raise UserError(
            f"objective.estimate_every = {config.objective.estimate_every}: it is for dream: conservative_dream has no "
            "extra pass for the self-estimate"
        )


OBJECTIVES = {
    "standard": Objective("standard", standard, rectifies=False),
    "dream": Objective("DREAM", rectified, weight=_chosen_weight, check=_check_rectified),
    "conservative_dream": Objective(
        "conservative DREAM", conservative, weight=_linear_weight, check=_check_conservative
    ),
    "input_perturbation": Objective("input perturbation", input_perturbation, rectifies=False),
    "scheduled_sampling": Objective("scheduled sampling", scheduled_sampling, rectifies=False),
    "self_conditioning": Objective("self-conditioning", self_conditioning, rectifies=False, self_conditions=True),
}

# Of DREAM's second pass.
NOISES = ("same", "fresh")


def chosen(settings) -> Objective:
    """The objective of `config.objective`: the standard one where `p = None` switches `dream` off."""
    off = settings.name == "dream" and settings.weight == "power" and settings.p is None
    return OBJECTIVES["standard" if off else settings.name]


def weight_over_levels(settings, schedule):
    """(t / T, lam), float [T] each, of `config.objective` when its ramp is over; None where it has no weight."""
    if chosen(settings).weight is None:
        return None
    t = jnp.arange(1, schedule.num_steps + 1)
    alpha, sigma = (jnp.asarray(table[1:]) for table in (schedule.alpha, schedule.sigma))
    level = Draw(None, None, t, alpha, sigma, schedule, None)
    return t / schedule.num_steps, chosen(settings).weight(level, settings)


def rectifies(settings, step: int, steps_per_epoch: int) -> bool:
    """Whether a step, counted from 0, rectifies: from its start to its stop, one of every `estimate_every`."""
    started = step // steps_per_epoch >= settings.start_epoch and step >= settings.start_step
    stopped = settings.stop_step is not None and step >= settings.stop_step
    return chosen(settings).rectifies and started and not stopped and step % settings.estimate_every == 0


def losses(predict, draw: Draw, settings, rectify: bool) -> Losses:
    """The losses of `config.objective` at a step that rectifies or not, with its min-SNR weight where one is set."""
    objective = chosen(settings)
    if objective.rectifies and not rectify:
        objective = OBJECTIVES["standard"]
    result = objective.losses(predict, draw, settings)
    if settings.min_snr_gamma is None:
        return result
    factor = dream.min_snr_weight(settings.kind, draw.alpha, draw.sigma, settings.min_snr_gamma)
    return result._replace(loss=result.loss * factor)
