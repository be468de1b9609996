"""Training objectives: what is minimised, from what was drawn for a batch.

To add an objective, write its function of losses and name it in OBJECTIVES.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dream_jax import dream
from dream_jax.errors import UserError


class Draw(NamedTuple):
    """What was drawn for a batch.

    Attributes:
      x0, eps: [B, H, W, C], what is modelled and the noise.
      t: int32 [B], the step of the noise schedule, 1 .. num_steps.
      alpha, sigma: [B], the level.
      num_steps: T, the steps of the noise schedule.
      dropout: keys [B, 2]: for two passes with independent dropout.
      ramp: in [0, 1], by which the weight's rise above its minimum is multiplied.
    """

    x0: jax.Array
    eps: jax.Array
    t: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    num_steps: int
    dropout: jax.Array
    ramp: jax.Array | float = 1.0


class Losses(NamedTuple):
    """Of each example [B]: the loss; the mean |eps - eps_hat| of the network's estimate; the rectification weight."""

    loss: jax.Array
    eps_error: jax.Array
    lam: jax.Array


class Objective(NamedTuple):
    """What is minimised.

    Attributes:
      title: what models that were trained with it are called in tables and pictures.
      losses: `(predict, draw, settings) -> Losses`. predict is `(x_t, dropout_keys=None) -> output`, the network with
        its gradient; settings are `config.objective`.
      rectifies: whether it makes a self-estimate, from `objective.start_epoch` and `start_step` on; before them the
        objective is the standard one.
      check: `(config, task) -> None` raises UserError where it is not defined for the schedule, the task or the kind.
    """

    title: str
    losses: Callable[[Callable, Draw, object], Losses]
    rectifies: bool = True
    check: Callable = lambda config, task: None


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
    lam = _weight(settings.weight, draw, draw.t / draw.num_steps, settings, p=settings.p)
    loss, error = dream.dream(
        lambda x: predict(x, draw.dropout[:, 0]),
        predict,
        *(draw.x0, draw.eps, draw.alpha, draw.sigma, lam),
        kind=settings.kind,
        distance=settings.distance,
    )
    return Losses(loss, error, lam)


def conservative(predict, draw: Draw, settings) -> Losses:
    """`dream.conservative_dream`, whose weight is linear in the time, counted from 0 as in the face study."""
    lam = _weight("linear", draw, (draw.t - 1) / draw.num_steps, settings)
    loss, error = dream.conservative_dream(
        lambda x: predict(x, draw.dropout[:, 0]),
        lambda x: predict(x, draw.dropout[:, 1]),
        *(draw.x0, draw.eps, draw.alpha, draw.sigma, lam),
        mix=settings.mix,
        distance=settings.distance,
    )
    return Losses(loss, error, lam)


def _weight(family, draw, time, settings, **options):
    bounds = {"minimum": settings.minimum, "maximum": settings.maximum, "ramp": draw.ramp}
    options |= {"rate": settings.rate, "threshold": settings.threshold}
    return dream.weight(family, draw.alpha, draw.sigma, time, **bounds, **options)


def _check_rectified(config, task):
    settings = config.objective
    if settings.p is None and settings.weight != "power":
        raise UserError(
            f"objective.p = None: it switches DREAM off for the weight power, not for {settings.weight}; use "
            "objective.name = standard"
        )


def _check_conservative(config, task):
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
    "dream": Objective("DREAM", rectified, check=_check_rectified),
    "conservative_dream": Objective("conservative DREAM", conservative, check=_check_conservative),
}


def chosen(settings) -> Objective:
    """The objective of `config.objective`: the standard one where `p = None` switches `dream` off."""
    off = settings.name == "dream" and settings.weight == "power" and settings.p is None
    return OBJECTIVES["standard" if off else settings.name]


def rectifies(settings, step: int, steps_per_epoch: int) -> bool:
    """Whether a step, counted from 0, rectifies: its start has come, and it is one of every `estimate_every`."""
    started = step // steps_per_epoch >= settings.start_epoch and step >= settings.start_step
    return chosen(settings).rectifies and started and step % settings.estimate_every == 0


def losses(predict, draw: Draw, settings, rectify: bool) -> Losses:
    """The losses of `config.objective` at a step that rectifies or not, with its min-SNR weight where one is set."""
    objective = chosen(settings) if rectify else OBJECTIVES["standard"]
    result = objective.losses(predict, draw, settings)
    if settings.min_snr_gamma is None:
        return result
    factor = dream.min_snr_weight(settings.kind, draw.alpha, draw.sigma, settings.min_snr_gamma)
    return result._replace(loss=result.loss * factor)
