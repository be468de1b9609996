"""The folder of a run: made and checked before training, and where its checkpoints lie."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from dream_jax import tasks
from dream_jax.config import checks, keys, records
from dream_jax.errors import UserError, some
from dream_jax.files.names import check_folder, is_bucket
from dream_jax.runtime import consensus


def check_local(workdir: Path) -> None:
    """Raises UserError where a workdir is in a bucket."""
    if is_bucket(workdir):
        raise UserError(
            f"{workdir}: the workdir is a local folder; checkpoints alone may lie in a bucket, checkpoint.directory"
        )


def make_workdir(workdir: Path, config) -> None:
    """Makes the folders; raises UserError where they cannot be written, and where a run there has another config."""
    for folder in (workdir, workdir / "samples"):
        check_folder(folder)
    check_same(workdir, config)


def with_range(config, workdir: Path):
    """A config whose `data.range` is what `data.percentile` asks for: the run's own, where it has one already.

    All processes call it. Raises UserError where there is no folder to measure.
    """
    c = config.data
    if c.percentile is None or c.range:
        return config
    found = []
    if jax.process_index() == 0:
        # Here, as who uses what was trained needs no training pictures.
        from dream_jax.data import spans

        saved = workdir / "config.json"
        before = records.read(saved).data if saved.exists() else None
        known = before is not None and before.percentile == c.percentile and before.range
        found = before.range if known else spans.measure(c)
    # As whole numbers of 32 bits, which is what processes tell each other.
    told = consensus.of_first(np.float64(found).view(np.int32).tolist())
    span = np.int32(told).view(np.float64).tolist()
    return FrozenConfigDict(keys.nest(keys.flatten(config) | {"data.range": tuple(span)}))


def with_classes(config):
    """A config with the names of its data's classes, where its task takes classes and `data.classes` names none.

    It needs no more than right values of each key: how many classes there are is part of whether a config makes sense.
    Raises UserError where the data has none, or not as many as the config says.
    """
    has_some = config.data.folder is not None or config.data.tfds is not None or config.data.bundled == "scenes"
    if config.data.classes or not has_some:
        return config
    checks.check_each(config)
    flat, some_classes = keys.flatten(config), ("one", "other")
    if tasks.make(keys.nest(flat | {"data.classes": some_classes})).beside != "label":
        return config
    # Here, as who uses what was trained needs no training pictures.
    from dream_jax.data import sources

    found, number = sources.class_names(config), config.task.get("num_classes")
    if number not in (None, len(found)):
        raise UserError(f"task.num_classes = {number}: the data has {len(found)} classes: {some(found)}")
    return keys.nest(flat | {"data.classes": found})


def _check_classes(folder, before, now):
    if before and now and before != now:
        more, missing = set(now) - set(before), set(before) - set(now)
        said = [f"{what} {some(names)}" for what, names in (("also", more), ("not", missing)) if names]
        other = " and ".join(said) or "the same in another order"
        raise UserError(f"{folder} holds a run with other classes; the data has {other}; choose another --workdir")


def check_same(folder, config) -> None:
    """Raises UserError where a folder holds the files of a run with another config."""
    path = folder / "config.json"
    if not path.exists():
        return
    saved = records.read(path)
    _check_classes(folder, tuple(saved.data.classes), tuple(config.data.classes))
    if changed := records.differences(saved, config):
        listed = "\n  ".join(changed)
        raise UserError(
            f"{folder} holds a run with another config; choose another --workdir (and checkpoint.directory), or undo "
            f"the difference (run's -> given):\n  {listed}"
        )


def as_begun(workdir: Path, config, tell: Callable[[str], None]):
    """The config of a run that goes on; all processes call it.

    One that was begun before datasets' own low-resolution pictures were read goes on without them, and says so.
    """
    path = workdir / "config.json"
    open_to = config.data.tfds is not None and config.data.lr_key is None
    made = open_to and jax.process_index() == 0 and path.exists() and records.read(path).data.lr_key == "none"
    if not consensus.of_first([made])[0]:
        return config
    tell("this run makes low-resolution pictures from the originals, as it began: data.lr_key is none")
    return FrozenConfigDict(keys.nest(keys.flatten(config) | {"data.lr_key": "none"}))


def checkpoint_folder(workdir: Path, config) -> Path | str:
    """Where a run has its checkpoints: in `checkpoint.directory`, else in its workdir."""
    return config.checkpoint.directory or workdir / "checkpoints"
