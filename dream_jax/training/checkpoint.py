"""Checkpoints: saving and restoring the training state with orbax.

A checkpoint that is not what was saved (integrity.py) is not used, and the next older one is. A run that goes on moves
it to another folder; nothing is deleted.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import math
import re
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from dream_jax.errors import UserError
from dream_jax.files.names import is_bucket
from dream_jax.runtime import consensus
from dream_jax.training import flat, integrity

# Beside the folder of checkpoints: where those go that a run does not use, and what a file there says of them.
DAMAGED, ROLLED_BACK = "damaged", "rolled_back"
_ABOUT = {
    DAMAGED: "checkpoints that were found damaged\n",
    ROLLED_BACK: "checkpoints of steps that were taken back\n",
}

# Errors for which a file cannot be read now, although it may be whole.
_PASSING = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
_PASSING_WORDS = "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED"
# More bytes than a checkpoint takes besides its numbers.
_OVERHEAD = 2**20
# When the disk is full, asyncio logs an error for each array, besides the one exception that is raised.
logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())


def open_manager(directory, keep: int = 1, keep_best: int = 0) -> ocp.CheckpointManager:
    """A manager of the checkpoints in a directory, which may be a bucket.

    It keeps the newest `keep`, and the `keep_best` with the lowest "loss" in their `about`.
    """
    directory = _absolute(directory)
    policy = AnyPreservationPolicy([LatestN(keep), _Best(keep_best, directory)])
    options = ocp.CheckpointManagerOptions(preservation_policy=policy)
    try:
        return ocp.CheckpointManager(directory, options=options)
    except OSError as error:
        raise UserError(f"{directory}: cannot hold checkpoints ({error.strerror or error})") from error


def _absolute(directory) -> epath.Path:
    directory = epath.Path(directory)
    # resolve() would make a bucket a local folder: gs://BUCKET/x becomes ./gs:/BUCKET/x.
    return directory if is_bucket(directory) else directory.resolve()


@dataclasses.dataclass
class _Best:
    """A policy for orbax, whose own keeps the losses in a file without a checksum, and fails where that is damaged."""

    count: int
    directory: epath.Path

    def should_preserve(self, checkpoints, *, context):
        losses = {checkpoint.step: self._loss(checkpoint.step) for checkpoint in checkpoints if self.count}
        best = sorted((step for step in losses if losses[step] < math.inf), key=losses.get)[: self.count]
        return [checkpoint.step in best for checkpoint in checkpoints]

    def _loss(self, step):
        loss = _loss_of(self.directory, step)
        return math.inf if loss is None else loss


def _loss_of(directory, step):
    try:
        loss = json.loads((directory / str(step) / "about" / "metadata").read_text())["loss"]
        return None if loss is None else float(loss)
    except (OSError, ValueError, KeyError, TypeError):
        # It is damaged, or still being written.
        return None


def losses(directory) -> dict[int, float | None]:
    """{step: its mean loss since the line of the log before} of the checkpoints there; None where it has none."""
    directory = _absolute(directory)
    return {step: _loss_of(directory, step) for step in _listed(directory)[0]}


def facts(directory, step: int) -> dict:
    """What the checkpoint of a step records of its run, see `origin.facts`; {} where that cannot be read."""
    try:
        about = integrity.unseal(json.loads((_absolute(directory) / str(step) / "about" / "metadata").read_text()))
        return {name: about[name] for name in ("data", "versions") if name in about}
    except (OSError, ValueError, TypeError):
        return {}


def save(manager, state, about: dict) -> None:
    """Saves the state under its step, with `about` (config, versions, data) beside it; returns before it is written.

    Of flat parts the trees are saved.

    Raises UserError, here or in `wait`, where it cannot be written; earlier checkpoints stay whole.
    """
    _check_room(manager.directory, state)
    about = integrity.seal(about, state)
    arguments = ocp.args.Composite(state=ocp.args.StandardSave(flat.trees(state)), about=ocp.args.JsonSave(about))
    with _writing(manager):
        manager.save(int(state.step), args=arguments)


def check(manager) -> None:
    """Raises UserError where an earlier save has failed; does not wait for one that goes on."""
    with _writing(manager):
        manager.check_for_errors()


def wait(manager) -> None:
    """Returns when all saves are on the disk; raises UserError where one has failed."""
    with _writing(manager):
        manager.wait_until_finished()


def restore(
    directory,
    shapes,
    shardings,
    tell,
    accept=lambda about: None,
    move: bool = False,
    before=math.inf,
    partial: bool = False,
    only: int | None = None,
):
    """The newest whole checkpoint: (state, about), laid out by `shardings` on whatever devices there are.

    None where there is no checkpoint. All processes call it, and use a checkpoint only if every one finds it whole.

    Args:
      shapes: the state as ShapeDtypeStructs, or anything with shapes and dtypes.
      tell: called with a message about every checkpoint that is not used or could not be checked.
      accept: called with a checkpoint's `about` before its state is read; may raise UserError.
      move: moves damaged and half-written checkpoints to the folder `damaged` beside the directory, and those that
        `before` leaves out to `rolled_back`. Without a whole checkpoint nothing is moved: then the run must not start
        from zero when the command is repeated.
      before: the step to roll back to before; checkpoints of this step and later ones are not used.
      only: a step, of which alone the checkpoint is looked at.
      partial: shapes has only some of a state's fields, `step` among them. Only these are read and checked: damage to
        the others goes unnoticed.

    Raises UserError where no checkpoint can be used, and where one cannot be read for another reason than damage: its
    shapes or dtypes are others, or the file system does not permit it.
    """
    directory = _absolute(directory)
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    steps, half_written = _listed(directory)
    steps = [step for step in steps if only in (None, step)]
    found, unused = _newest_whole(directory, consensus.of_first(steps), target, accept, before, partial)
    if unused and found is None:
        listed = "\n  ".join(f"step {step}: {reason}" for step, reason in unused.items())
        what = "every checkpoint is damaged" if only is None else "it is damaged"
        what = what if before == math.inf else f"there is no whole checkpoint before step {before}"
        raise UserError(f"{directory}: {what}; mend them, or begin anew in another --workdir:\n  {listed}")
    for step, reason in unused.items():
        folder = ROLLED_BACK if step >= before else DAMAGED
        tell(f"the checkpoint of step {step} is {reason}; {_put_aside(directory / str(step), folder, move)}")
    for name in half_written if move else ():
        tell(f"the checkpoint {name} is half-written; {_put_aside(directory / name, DAMAGED, move)}")
    consensus.synchronise("restored")
    if found is not None and "leaves" not in found[1]:
        step = int(found[0].step)
        tell(f"the checkpoint of step {step} has no checksums, so it was not checked for damage")
    return found


def _listed(directory):
    """(steps, newest first; names of half-written checkpoints)."""
    try:
        # In this order: a checkpoint that gets its final name between the two is not taken for a half-written one.
        paths = list(directory.iterdir()) if directory.exists() else []
        # In a bucket, all that lacks orbax's mark of completeness counts as half-written, the run's files too.
        ours = [path for path in paths if path.name[:1].isdigit()]
        half_written = sorted(path.name for path in ours if ocp.utils.is_tmp_checkpoint(path))
        return sorted(ocp.utils.checkpoint_steps(directory), reverse=True) if paths else [], half_written
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({error.strerror or error})") from error


def _newest_whole(directory, steps, target, accept, before, partial):
    """(state and about, or None; {step: why it is not used})."""
    unused = {}
    for step in steps:
        if step >= before:
            unused[step] = f"of no use, as it holds step {before}"
            continue
        found, reason = read(directory / str(step), target, accept, partial)
        reason = _agreed(reason)
        if reason is None:
            reason = _agreed(_difference(*found, step))
        if reason is None:
            return found, unused
        unused[step] = f"damaged ({reason})"
        # A second state may not fit into memory.
        found = None
    return None, unused


def read(folder, target, accept=lambda about: None, partial: bool = False):
    """((state, about), None), or (None, reason) for a damaged checkpoint; does not compare the checksums of the state.

    Args:
      folder: of one checkpoint.
      target: the state as ShapeDtypeStructs with shardings.
      accept, partial: see `restore`.

    Raises UserError where it holds another state, or cannot be read now.
    """
    # orbax's handlers, not a manager: its restore waits for the other processes, for ever if one of them has failed.
    try:
        about = integrity.unseal(ocp.JsonCheckpointHandler().restore(folder / "about", args=ocp.args.JsonRestore()))
        accept(about)
        if partial and "leaves" in about:
            about["leaves"] = integrity.part(about["leaves"], flat.shapes(target))
        if "leaves" in about:
            # Before the state is read: orbax would cast it to the dtype of the target.
            integrity.check_shapes(folder, about["leaves"], flat.shapes(target))
        on_disk = flat.map_flat(_read_by_host, target)
        tree = (_read_part if partial else _read_whole)(folder / "state", on_disk)
        return (flat.placed(tree, target), about), None
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        if getattr(error, "errno", None) in _PASSING or any(word in reason for word in _PASSING_WORDS):
            raise UserError(f"{folder}: this checkpoint cannot be read ({reason})") from error
        return None, reason


def _read_by_host(part):
    """What orbax takes for the wish to read arrays as numpy's: such arrays, here of one zero each."""
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), flat.shapes(part))


def _read_whole(folder, target):
    return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(target))


def _read_part(folder, target):
    how = ocp.checkpoint_utils.construct_restore_args(target)
    args = ocp.args.PyTreeRestore(target, how, partial_restore=True)
    tree = ocp.PyTreeCheckpointHandler().restore(folder, args=args)
    leaves, wanted = integrity.named_leaves(tree), integrity.named_leaves(target)
    # orbax leaves what was wanted where it finds no array.
    missing = [name for name, leaf in leaves.items() if leaf is wanted[name]]
    if missing:
        raise ValueError(f"{len(missing)} of {len(leaves)} arrays are not there, {missing[0]} the first")
    for name, leaf in leaves.items():
        if leaf.shape != wanted[name].shape:
            raise ValueError(f"{name} has the shape {leaf.shape}, and {wanted[name].shape} is wanted")
    return tree


def _difference(state, about, step):
    """What of a restored state is not as it was saved, or None."""
    if int(state.step) != step:
        return f"it holds the state of step {int(state.step)}"
    return integrity.difference(about["leaves"], state) if "leaves" in about else None


def _put_aside(path, name, move):
    """Process 0 moves a checkpoint to the folder `name` beside its directory; says what becomes of it."""
    if not move or jax.process_index():
        return "moved by process 0" if move else "passed over"
    folder = path.parent.parent / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not folder.exists():  # A bucket has folders only where it has files.
            (folder / "about").write_text(_ABOUT[name])
        free = next(new for n in range(1, 10_000) if not (new := folder / f"{path.name}-{n}").exists())
        path.rename(free)
    except OSError as error:
        raise UserError(f"{path}: cannot be moved to {folder} ({error.strerror or error})") from error
    return f"moved to {free}"


def _agreed(reason):
    """The reason of this process, or what to say where only another process has one, or None."""
    return (reason or "another process cannot read it") if consensus.any_process(reason is not None) else None


def _check_room(directory, state):
    """Raises UserError where the disk has too little room: orbax would say so in hundreds of lines."""
    if is_bucket(directory):
        return
    needed = sum(shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards)
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(directory).free
        if free < needed + _OVERHEAD:
            wanted = (needed + _OVERHEAD) / 2**20
            raise _cannot_write(
                directory, f"No space left on device: {free / 2**20:.1f} MiB of the {wanted:.1f} that it takes"
            )


def _cannot_write(directory, reason):
    return UserError(
        f"{directory}: a checkpoint cannot be written ({reason}); the last one is whole, and the same command goes on "
        "from it"
    )


@contextlib.contextmanager
def _writing(manager):
    """Turns the exceptions of a full disk or a missing permission into a UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        # tensorstore raises ValueError for everything.
        of_system = re.search(r": ([^:]*) \[os_error_code=", str(error))
        if of_system is None and not isinstance(error, OSError):
            raise
        reason = of_system[1] if of_system else error.strerror or error
        raise _cannot_write(manager.directory, reason) from error
