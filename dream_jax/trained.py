"""A trained model, opened from its workdir."""

import sys
from pathlib import Path

import jax

from dream_jax import checkpoint, config, experiment, sharding, train
from dream_jax.draw import Model
from dream_jax.errors import UserError
from dream_jax.optimizer import make_optimizer


def load(workdir, overrides=()) -> Model:
    """The EMA weights of the newest checkpoint of a run; overrides are `--config.KEY=VALUE` arguments.

    A damaged checkpoint is named on stderr, left where it is, and the next older one is used. Raises UserError where
    there is no run, no checkpoint yet, or none that is whole.
    """
    workdir = Path(workdir)
    chosen = config.validate(config.override(config.read(workdir / "config.json"), list(overrides)))
    directory = chosen.checkpoint.directory or workdir / "checkpoints"
    built = experiment.build(chosen)
    mesh = sharding.make_mesh()
    init, specs = train.start_state(built, make_optimizer(chosen.optimizer), mesh)
    restored = checkpoint.restore(directory, jax.eval_shape(init), sharding.named(specs, mesh), _say)
    if restored is None:
        raise UserError(f"{directory}: there is no checkpoint yet; train first")
    state, _ = restored
    return Model(built, state.ema, int(state.step), mesh, str(workdir))


def _say(message):
    print(message, file=sys.stderr)
