"""Where a result may be written: names that are free, folders that can be written, buckets."""

import json
import os
import tempfile
from pathlib import Path

from dream_jax.errors import UserError, shown


def is_bucket(path) -> bool:
    """Whether a path is in a bucket, like gs://NAME/...; a `Path` has made one slash of two."""
    return "://" in str(path) or str(path).startswith(("gs:", "s3:"))


def free_name(path: Path) -> Path:
    """The path itself, or with the first number that makes it new."""
    names = (path.with_stem(f"{path.stem}-{n}") if n else path for n in range(10_000))
    return next(name for name in names if not name.exists())


def check_folder(folder: Path) -> None:
    """Makes a folder; raises UserError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # This file has no name, so a process that is killed here leaves nothing behind.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{shown(folder)}: nothing can be written there ({error.strerror or error})") from error


def check_output(path: Path) -> None:
    """Raises UserError where a result cannot be written to PATH (JSON, with others beside it). Makes its folder."""
    if path.suffix != ".json":
        raise UserError(f"{path}: the table is JSON; end --output in .json")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    check_folder(path.parent)


def set_aside(path: Path, files) -> None:
    """Renames an earlier result PATH (JSON) and the files beside it: their training step becomes part of the names."""
    if not path.exists():
        return
    try:
        step = int(json.loads(path.read_text())["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        step = "before"
    kept = free_name(path.with_stem(f"{path.stem}-{step}"))
    # PATH itself goes last: as long as it is there, the next call renames what is left.
    for old in sorted(files, key=lambda file: file == path):
        if old.exists():
            ending = old.name.removeprefix(path.stem)
            os.replace(old, free_name(old.with_name(kept.stem + ending)))
