"""Result files: written whole or not at all, and never over an earlier one by accident."""

import csv
import io
import json
import math
import os
import tempfile
from pathlib import Path

from dream_jax.errors import UserError, shown
from dream_jax.training.run_log import free_name, write_text


def check_output(path: Path) -> None:
    """Raises UserError where a result cannot be written to PATH (JSON, with others beside it). Makes its folder."""
    if path.suffix != ".json":
        raise UserError(f"{path}: the table is JSON; end --output in .json")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Makes a folder; raises UserError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # It has no name, so that a kill leaves nothing behind.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{shown(folder)}: nothing can be written there ({error.strerror or error})") from error


def set_aside(path: Path, files) -> None:
    """Renames an earlier result PATH (JSON) and the files beside it, after the step they are of."""
    if not path.exists():
        return
    try:
        step = int(json.loads(path.read_text())["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        step = "before"
    kept = free_name(path.with_stem(f"{path.stem}-{step}"))
    # PATH itself goes last: as long as it is there, a stop in between loses nothing.
    for old in sorted(files, key=lambda file: file == path):
        if old.exists():
            ending = old.name.removeprefix(path.stem)
            os.replace(old, free_name(old.with_name(kept.stem + ending)))


def write_json(record: dict, path: Path) -> None:
    """Writes a record as JSON, in which numbers that are not finite are null."""
    write_text(path, json.dumps(_finite(record), indent=2) + "\n")


def write_csv(rows: list[dict], path: Path) -> None:
    """Writes rows with any keys as a table with all of them."""
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
    table.writeheader()
    table.writerows(rows)
    write_text(path, file.getvalue())


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
