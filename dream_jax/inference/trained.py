"""A trained model, opened from its workdir."""

import sys
from pathlib import Path

import jax

from dream_jax import config, experiment
from dream_jax.errors import UserError
from dream_jax.inference.drawing import Model
from dream_jax.optimizers import make_optimizer
from dream_jax.runtime import sharding
from dream_jax.training import checkpoint, mirror
from dream_jax.training.train_step import start_state

# Keys without which weights mean nothing; others may be given for a use of them.
_TRAINED_AS = ("task.", "schedule.", "objective.", "network.", "image_size")


def open_experiment(workdir, overrides=()) -> experiment.Experiment:
    """What was trained in a workdir, without its weights; overrides are `--config.KEY=VALUE` arguments.

    Raises UserError where there is no run, and for overrides of what the weights were trained as.
    """
    saved = config.read(Path(workdir) / "config.json")
    chosen = config.validate(config.override(saved, list(overrides)))
    changed = [line for line in config.differences(saved, chosen) if line.startswith(_TRAINED_AS)]
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(f"{workdir}: its weights were trained as they are, and these keys are theirs:\n  {listed}")
    return experiment.build(chosen)


def load(workdir, overrides=()) -> Model:
    """The EMA weights of the newest checkpoint of a run; overrides are `--config.KEY=VALUE` arguments.

    A damaged checkpoint is named on stderr, left where it is, and the next older one is used. Raises UserError as
    `open_experiment`, and where there is no checkpoint yet or none that is whole.
    """
    built = open_experiment(workdir, overrides)
    mirror.check(built.config.checkpoint.directory)
    directory = built.config.checkpoint.directory or Path(workdir) / "checkpoints"
    mesh = sharding.make_mesh()
    init, specs = start_state(built, make_optimizer(built.config.optimizer), mesh)
    restored = checkpoint.restore(directory, jax.eval_shape(init), sharding.named(specs, mesh), _say)
    if restored is None:
        raise UserError(f"{directory}: there is no checkpoint yet; train first")
    state, _ = restored
    return Model(built, state.ema, int(state.step), mesh, str(workdir))


def _say(message):
    print(message, file=sys.stderr)
