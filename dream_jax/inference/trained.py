"""A trained model, opened from its workdir."""

import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dream_jax.config import checks, command_line, keys, records
from dream_jax.errors import UserError
from dream_jax.experiment import Experiment, build
from dream_jax.inference.drawing import Model
from dream_jax.runtime import sharding
from dream_jax.training import checkpoint, mirror
from dream_jax.training.workdir import checkpoint_folder

# Keys without which weights mean nothing; others may be given for a use of them. A network for one scale can be used
# at another, as in the paper's Table 4.
_TRAINED_AS = ("task.name", "task.kernel", "task.residual", "task.gain")
_TRAINED_AS = (*_TRAINED_AS, "schedule.", "objective.", "network.", "image_size")


def open_experiment(workdir, overrides=(), only_sampling: bool = False) -> Experiment:
    """What was trained in a workdir, without its weights; overrides are `--config.KEY=VALUE` arguments.

    Raises UserError where there is no run, and for overrides of what the weights were trained as; with only_sampling,
    for overrides of anything but `sampling.KEY`.
    """
    saved = records.read(Path(workdir) / "config.json")
    chosen = command_line.override(saved, list(overrides))
    if only_sampling:
        _check_only_sampling(saved, chosen)
    chosen = checks.validate(chosen)
    changed = [line for line in records.differences(saved, chosen) if line.startswith(_TRAINED_AS)]
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(f"{workdir}: its weights were trained as they are, and these keys are theirs:\n  {listed}")
    return build(chosen)


def _check_only_sampling(saved, chosen):
    before = keys.flatten(saved)
    for key, value in keys.flatten(chosen).items():
        if value != before[key] and not key.startswith("sampling."):
            raise UserError(f"--config.{key}: the model is trained; only --config.sampling.KEY=VALUE can be chosen")


def load(workdir, overrides=()) -> Model:
    """A trained model: `open_experiment`, and its weights by `load_weights`."""
    return load_weights(workdir, open_experiment(workdir, overrides))


def load_weights(workdir, experiment: Experiment, step: int | None = None) -> Model:
    """An opened experiment with the EMA weights of the newest checkpoint of its run, or of the one of a step.

    A damaged checkpoint is named on stderr, left where it is, and the next older one is used. Only the EMA weights are
    read and checked: damage to the rest of a checkpoint, the optimizer's state for example, goes unnoticed here.

    Raises UserError where there is no checkpoint yet, or none whose weights are whole, or not that of the step.
    """
    mirror.check(experiment.config.checkpoint.directory)
    directory = checkpoint_folder(Path(workdir), experiment.config)
    mesh = sharding.make_mesh()
    shapes = _Weights(jax.ShapeDtypeStruct((), jnp.int32), _params_shapes(experiment))
    everywhere = jax.tree.map(lambda _: NamedSharding(mesh, P()), shapes)
    if step is None:
        restored = checkpoint.restore(directory, shapes, everywhere, _say, partial=True)
    else:
        # That newer ones are not used is what was asked for.
        restored = checkpoint.restore(directory, shapes, everywhere, lambda _: None, before=step + 1, partial=True)
    if restored is None:
        raise UserError(f"{directory}: there is no checkpoint yet; train first")
    weights, _ = restored
    if step is not None and int(weights.step) != step:
        raise UserError(f"{directory}: there is no whole checkpoint of step {step}")
    return Model(experiment, weights.ema, int(weights.step), mesh, str(workdir))


class _Weights(NamedTuple):
    """What is read of a checkpoint, named as in the training state."""

    step: jax.Array | jax.ShapeDtypeStruct
    ema: dict


def _params_shapes(experiment):
    inputs = jax.ShapeDtypeStruct(experiment.inputs_shape(), jnp.float32)
    alpha = jax.ShapeDtypeStruct(inputs.shape[:1], jnp.float32)
    return jax.eval_shape(experiment.network.init, jax.random.key(0), inputs, alpha)["params"]


def _say(message):
    print(message, file=sys.stderr)
