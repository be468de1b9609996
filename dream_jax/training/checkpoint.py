"""Saving and restoring the training state with orbax, which restores damaged numbers without a word.

So every checkpoint says what it holds: of each leaf the shape, the dtype and two checksums, taken from the arrays on
their devices before the save and again after the restore. They find damage, not forgery. A checkpoint that is not
what it says is passed over for the next older one, and moved aside, never deleted, by a run that goes on.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import logging
import math
import re
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from dream_jax.errors import UserError

# Reasons for which a file cannot be read now, though nothing may be wrong with it.
_PASSING = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
# Bytes of a checkpoint besides its numbers, generously.
_OVERHEAD = 2**20
_PASSING_WORDS = "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED"
# Of a full disk each of a state's arrays complains through asyncio, in addition to the one exception that is raised.
logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())


def open_manager(directory, keep: int = 1, keep_best: int = 0) -> ocp.CheckpointManager:
    """A manager of the checkpoints in a directory, which may be a bucket.

    The newest `keep` are kept, and besides the `keep_best` whose `about` has the lowest "loss".
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
    # Of a bucket, resolve() makes a local folder: gs://BUCKET/x becomes gs:/BUCKET/x where the program was started.
    return directory if "://" in str(directory) else directory.resolve()


@dataclasses.dataclass
class _Best:
    """A policy of orbax's. Its own keeps losses in a file that no checksum covers, and fails where that is damaged."""

    count: int
    directory: epath.Path

    def should_preserve(self, checkpoints, *, context):
        losses = {checkpoint.step: self._loss(checkpoint.step) for checkpoint in checkpoints if self.count}
        best = sorted((step for step in losses if losses[step] < math.inf), key=losses.get)[: self.count]
        return [checkpoint.step in best for checkpoint in checkpoints]

    def _loss(self, step):
        try:
            loss = json.loads((self.directory / str(step) / "about" / "metadata").read_text())["loss"]
            return float(loss) if loss is not None else math.inf
        except (OSError, ValueError, KeyError, TypeError):
            # One that is being written, or damaged.
            return math.inf


def save(manager, state, about: dict) -> None:
    """Saves the state under its step, with `about` (config, versions, data) beside it; returns while it is written.

    Raises UserError, here or in `wait`, where it cannot be written; the checkpoints before it are whole.
    """
    _check_room(manager.directory, state)
    about = about | {"leaves": describe(state)}
    about |= {"crc32": _crc32(about)}
    arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
    with _told(manager):
        manager.save(int(state.step), args=arguments)


def check(manager) -> None:
    """Raises UserError where a save begun earlier has failed; does not wait."""
    with _told(manager):
        manager.check_for_errors()


def wait(manager) -> None:
    """Returns when what was saved is on the disk; raises UserError where it cannot be."""
    with _told(manager):
        manager.wait_until_finished()


def restore(directory, shapes, shardings, tell, accept=lambda about: None, move: bool = False, before=math.inf):
    """(state, about): the newest whole state, laid out by `shardings` on whatever devices there are; None without any.

    In several processes all call it, and a checkpoint is used where every one of them finds it whole.

    Args:
      tell: called with a message about every checkpoint that is not used or could not be checked.
      accept: called with a checkpoint's `about` before its state is read; may raise UserError.
      move: moves damaged and half-written checkpoints to the folder `damaged` beside the directory. Without a whole
        checkpoint nothing is moved, so that repeating the command does not start from zero either.
      before: the step to roll back from; checkpoints of this step or a later one are treated like damaged ones.

    Raises UserError where all checkpoints are damaged, and where one cannot be read for another reason: that it was
    saved with other shapes or dtypes, or that it is not allowed.
    """
    directory = _absolute(directory)
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    try:
        # In this order: what is renamed between the two, its writing done, is half-written to neither.
        paths = list(directory.iterdir()) if directory.exists() else []
        # In a bucket, all that lacks orbax's mark of completeness counts as half-written, the run's files, too.
        ours = [path for path in paths if path.name[:1].isdigit()]
        half_written = sorted(path.name for path in ours if ocp.utils.is_tmp_checkpoint(path))
        steps = sorted(ocp.utils.checkpoint_steps(directory), reverse=True) if paths else []
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({error.strerror or error})") from error
    damaged, found = {}, None
    for step in as_first_process(steps):
        if step >= before:
            damaged[step] = f"of no use, as it holds step {before}"
            continue
        reason, found = _read(directory / str(step), target, accept)
        reason = _agreed(reason)
        if reason is None:
            reason = _agreed(_difference(*found, step))
        if reason is None:
            break
        damaged[step], found = f"damaged ({reason})", None
    if damaged and found is None:
        listed = "\n  ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        what = (
            "every checkpoint is damaged"
            if before == math.inf
            else f"there is no whole checkpoint before step {before}"
        )
        raise UserError(f"{directory}: {what}; mend them, or begin anew in another --workdir:\n  {listed}")
    for step, reason in damaged.items():
        tell(f"the checkpoint of step {step} is {reason}; {_put_aside(directory / str(step), move)}")
    for name in half_written if move else ():
        tell(f"the checkpoint {name} is half-written; {_put_aside(directory / name, move)}")
    _agreed(None)
    if found is not None and "leaves" not in found[1]:
        tell(f"the checkpoint of step {step} has no checksums, so it was not checked for damage")
    return found


def describe(state) -> dict:
    """{name of leaf: its shape, dtype and checksums}, of a tree of arrays on any devices."""
    named = _named(state)
    # One program for each shape, not one for all: a network has hundreds of leaves and a dozen shapes. And each is
    # waited for: on CPUs, programs that sum over several processes block each other for ever when many are under way.
    sums = {name: jax.device_get(_summing(_everywhere(leaf.sharding))(leaf)) for name, leaf in named.items()}
    return {
        name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "sums": sums[name].tolist()}
        for name, leaf in named.items()
    }


def _named(tree):
    return {jax.tree_util.keystr(path).lstrip("."): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def checksums(array):
    """uint32 [2]: sums modulo 2^32 over the elements of two mixes of their bits and their place; traceable.

    Integers, so the same in whatever order and on however many devices they are summed. A change of one element always
    shows, as its mix is one-to-one; any other change but for one in 2^64.
    """
    size = array.dtype.itemsize
    if array.dtype == bool:
        bits = array.astype(jnp.uint32)
    elif size <= 4:
        bits = lax.bitcast_convert_type(array, f"uint{8 * size}").astype(jnp.uint32)
    else:
        bits = lax.bitcast_convert_type(array, jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for dimension in range(bits.ndim):
        stride = np.uint32(np.prod(bits.shape[dimension + 1 :], dtype=np.uint64) % 2**32)
        place += lax.broadcasted_iota(jnp.uint32, bits.shape, dimension) * stride
    mixed = _mix(bits ^ _mix(place)), _mix(bits + _mix(place ^ np.uint32(0x9E3779B9)))
    return jnp.stack([jnp.sum(m, dtype=jnp.uint32) for m in mixed])


def _mix(x):
    """A one-to-one function of uint32 that looks random (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@functools.cache
def _summing(sharding):
    return jax.jit(checksums, out_shardings=sharding)


def _everywhere(sharding):
    return NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else sharding


def _crc32(about):
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _read(folder, target, accept):
    """(reason, (state, about)), one of them None: what is wrong with a checkpoint, or what it holds.

    The handlers, not a manager, as a manager's restore waits for the other processes: for ever, where one has failed.
    """
    try:
        about = ocp.JsonCheckpointHandler().restore(folder / "about", args=ocp.args.JsonRestore())
        # One of the two may be damaged beyond recognition.
        if "leaves" in about or "crc32" in about:
            crc32 = about.pop("crc32", None)
            if crc32 != _crc32(about) or "leaves" not in about:
                return "its description is not what was saved", None
        accept(about)
        if "leaves" in about:
            # Before reading: orbax would cast to the dtype that it is asked for.
            _check_shapes(folder, about["leaves"], target)
        state = ocp.StandardCheckpointHandler().restore(folder / "state", args=ocp.args.StandardRestore(target))
        return None, (state, about)
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        if getattr(error, "errno", None) in _PASSING or any(word in reason for word in _PASSING_WORDS):
            raise UserError(f"{folder}: this checkpoint cannot be read ({reason})") from error
        return reason, None


def _check_shapes(folder, leaves, target):
    wanted = {name: (leaf.dtype.name, list(leaf.shape)) for name, leaf in _named(target).items()}
    there = {name: (leaf["dtype"], leaf["shape"]) for name, leaf in leaves.items()}
    for name in sorted(wanted.keys() | there.keys()):
        if wanted.get(name) != there.get(name):
            has, wants = (" ".join(map(str, side.get(name, ("nothing",)))) for side in (there, wanted))
            raise UserError(
                f"{folder}: this checkpoint cannot be restored: at {name} it has {has}, and {wants} is wanted"
            )


def _difference(state, about, step):
    """What of a restored state is not as it was saved, or None."""
    if int(state.step) != step:
        return f"it holds the state of step {int(state.step)}"
    if "leaves" in about:
        now = describe(state)
        changed = [name for name, leaf in about["leaves"].items() if now[name]["sums"] != leaf["sums"]]
        if changed:
            return f"{len(changed)} of {len(now)} arrays are not what was saved, {changed[0]} the first"
    return None


def _put_aside(path, move):
    """Moves a checkpoint to the folder `damaged` beside its directory, by process 0; says what becomes of it."""
    if not move or jax.process_index():
        return "moved by process 0" if move else "passed over"
    folder = path.parent.parent / "damaged"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not folder.exists():  # in a bucket, where a folder is what has files
            (folder / "about").write_text("checkpoints that were found damaged\n")
        free = next(new for n in range(1, 10_000) if not (new := folder / f"{path.name}-{n}").exists())
        path.rename(free)
    except OSError as error:
        raise UserError(f"{path}: cannot be moved to {folder} ({error.strerror or error})") from error
    return f"moved to {free}"


def as_first_process(steps: list[int]) -> list[int]:
    """The list that process 0 has; others may see a file system that is behind, or none."""
    if jax.process_count() == 1:
        return steps
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    own = np.int32(steps) if jax.process_index() == 0 else np.zeros(count, np.int32)
    return [int(step) for step in multihost_utils.broadcast_one_to_all(own)]


def _agreed(reason):
    """The reason, or what to say where another process has one; waits for all."""
    if jax.process_count() == 1:
        return reason
    bad = np.any(multihost_utils.process_allgather(np.int32(reason is not None)))
    return (reason or "another process cannot read it") if bad else None


def _check_room(directory, state):
    """Raises UserError where a full disk is to be foreseen: orbax says so, too, but in hundreds of lines."""
    if "://" in str(directory):
        return
    needed = sum(shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards)
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(directory).free
        if free < needed + _OVERHEAD:
            wanted = (needed + _OVERHEAD) / 2**20
            _cannot_write(
                directory, f"No space left on device: {free / 2**20:.1f} MiB of the {wanted:.1f} that it takes"
            )


def _cannot_write(directory, reason, error=None):
    raise UserError(
        f"{directory}: a checkpoint cannot be written ({reason}); the last one is whole, and the same command goes on "
        "from it"
    ) from error


@contextlib.contextmanager
def _told(manager):
    """Turns what a full disk or a missing permission raises into a message."""
    try:
        yield
    except (OSError, ValueError) as error:
        # tensorstore has one exception for everything.
        of_system = re.search(r": ([^:]*) \[os_error_code=", str(error))
        if of_system is None and not isinstance(error, OSError):
            raise
        reason = of_system[1] if of_system else error.strerror or error
        _cannot_write(manager.directory, reason, error)
