"""A trained model, opened from its workdir."""

from pathlib import Path

import jax

from dream_jax import checkpoint, config, experiment, sharding, train
from dream_jax.draw import Model
from dream_jax.errors import UserError
from dream_jax.optimizer import make_optimizer


def load(workdir, overrides=()) -> Model:
    """The EMA weights of the newest checkpoint of a run; overrides are `--config.KEY=VALUE` arguments.

    Raises UserError where there is no run, or no checkpoint yet.
    """
    workdir = Path(workdir)
    chosen = config.validate(config.override(config.read(workdir / "config.json"), list(overrides)))
    directory = chosen.checkpoint.directory or workdir / "checkpoints"
    built = experiment.build(chosen)
    mesh = sharding.make_mesh()
    init, specs = train.start_state(built, make_optimizer(chosen.optimizer), mesh)
    with checkpoint.open_manager(directory) as manager:
        restored = checkpoint.restore(manager, jax.eval_shape(init), sharding.named(specs, mesh))
    if restored is None:
        raise UserError(f"{directory}: there is no checkpoint yet; train first")
    state, _ = restored
    return Model(built, state.ema, int(state.step), mesh, str(workdir))
