"""Saving and restoring the training state with orbax."""

import json

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import LatestN

from dream_jax.errors import UserError


def open_manager(directory, keep: int = 1) -> ocp.CheckpointManager:
    """A manager of the checkpoints in a directory, which may be a bucket; the newest `keep` are kept."""
    directory = epath.Path(directory)
    options = ocp.CheckpointManagerOptions(preservation_policy=LatestN(keep))
    try:
        return ocp.CheckpointManager(directory.resolve(), options=options)
    except OSError as error:
        raise UserError(f"{directory}: cannot hold checkpoints ({error.strerror or error})") from error


def save(manager, state, about: dict) -> None:
    """Saves the state under its step, with `about` (config, versions, data) beside it; returns while it is written."""
    arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
    manager.save(int(state.step), args=arguments)


def restore(manager, shapes, shardings):
    """(state, about): the newest state, laid out by `shardings` on whatever devices there are now; or None."""
    step = manager.latest_step()
    if step is None:
        return None
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    try:
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target), about=ocp.args.JsonRestore())
        restored = manager.restore(step, args=arguments)
    except (ValueError, KeyError, OSError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{manager.directory}/{step}: this checkpoint cannot be restored ({reason})") from error
    return restored["state"], restored["about"]
