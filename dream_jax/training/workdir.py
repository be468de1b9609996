"""The folder of a run: made and checked before training, and where its checkpoints lie."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from dream_jax.config import keys, records
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


def with_classes(config, workdir: Path):
    """A config whose `data.classes` are the names of its data's, where its task takes classes and none are named.

    All processes call it. Raises UserError where there are none, and where a run has others.
    """
    from dream_jax.data import sources

    lies = sources.beside_of(config)
    if lies is None or lies.kind != "label" or lies.classes:
        return config
    found, saved = sources.class_names(config), workdir / "config.json"
    if jax.process_index() == 0 and saved.exists():
        before = tuple(records.read(saved).data.classes)
        if before and before != found:
            more, missing = set(found) - set(before), set(before) - set(found)
            said = [f"{what} {some(names)}" for what, names in (("more:", more), ("without", missing)) if names]
            other = "; ".join(said) or "another order"
            raise UserError(f"{workdir} holds a run with other classes than those of the data, which has {other}")
    return FrozenConfigDict(keys.nest(keys.flatten(config) | {"data.classes": found}))


def check_same(folder, config) -> None:
    """Raises UserError where a folder holds the files of a run with another config."""
    path = folder / "config.json"
    if path.exists() and (changed := records.differences(records.read(path), config)):
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
