"""The weights in a run's checkpoints, without the rest of its state."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dream_jax.errors import UserError, shown
from dream_jax.experiment import Experiment
from dream_jax.networks import parameters
from dream_jax.runtime import sharding
from dream_jax.training import checkpoint, flat


class _Averaged(NamedTuple):
    """What is read of a checkpoint, named as in the training state."""

    step: jax.Array | jax.ShapeDtypeStruct
    ema: flat.Flat


class _Live(NamedTuple):
    """The same of the weights that training moves."""

    step: jax.Array | jax.ShapeDtypeStruct
    params: flat.Flat


# By what a person calls them: the average of those of the last steps, which is used, and the last step's own.
FIELDS = {"ema": _Averaged, "live": _Live}


def shapes_of(experiment: Experiment) -> dict:
    """The parameters of an experiment's network, as ShapeDtypeStructs."""
    return parameters.shapes_of(experiment.network, experiment.inputs_shape())


def step_of(directory, which: str) -> int | None:
    """The step of "latest" (None: the newest whole one), of "best", or of a number, among the checkpoints there.

    The best has the lowest mean loss since the line of the log before; only checkpoints on such a line have one.

    Raises UserError for other words, a step that is not there, and where no checkpoint has a loss.
    """
    if which == "latest":
        return None
    losses = checkpoint.losses(directory)
    there = ", ".join(map(str, sorted(losses))) or "none"
    if which == "best":
        known = {step: loss for step, loss in losses.items() if loss is not None}
        if not known:
            raise UserError(f"{directory}: no checkpoint there has a loss to be the best by; steps: {there}")
        return min(known, key=known.get)
    if not re.fullmatch(r"\d{1,10}", which):
        raise UserError(f"checkpoint {shown(which)[:100]}: say latest, best or a step, one of {there}")
    if int(which) not in losses:
        raise UserError(f"{directory}: there is no checkpoint of step {which}; steps: {there}")
    return int(which)


def read(directory, shapes: dict, mesh, tell, step: int | None = None, field: str = "ema") -> tuple[dict, int]:
    """(parameters on every device, their step) of the newest whole checkpoint, or of that of a step.

    Only these weights are read and checked: damage to the rest of a checkpoint, the optimizer's state for example, goes
    unnoticed here. A damaged checkpoint is told and left where it is, and the next older one is used.

    Raises UserError where there is no checkpoint yet, or none whose weights are whole, or not that of the step.
    """
    everywhere, layout = NamedSharding(mesh, P()), flat.layout_of(shapes)
    # Its checksums are then of one program, which compiles in a moment; a tree has one for each shape of its leaves.
    buffers = {dtype: jax.ShapeDtypeStruct((size,), dtype) for dtype, size in layout.sizes.items()}
    target = FIELDS[field](jax.ShapeDtypeStruct((), jnp.int32), flat.Flat(buffers, layout))
    layouts = jax.tree.map(lambda _: everywhere, target)
    restored = checkpoint.restore(directory, target, layouts, tell, partial=True, only=step)
    if restored is None:
        missing = "no checkpoint yet; train first" if step is None else f"no checkpoint of step {step}"
        raise UserError(f"{directory}: there is {missing}")
    step, params = flat.trees(restored[0])
    # A second copy may not fit into memory.
    del restored
    return jax.tree.map(lambda leaf: sharding.from_host(leaf, everywhere), params), int(step)
