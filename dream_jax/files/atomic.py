"""Files that are written whole or not at all."""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path):
    """Gives the name of a file to write in the block, which becomes `path`, in the place of an earlier one, at its end.

    A block that fails, and a process that is killed, leave the earlier file as it was. A killed process also leaves a
    temporary file, which the next write replaces. Raises OSError.
    """
    # A hash: the name of the file and an ending could be longer than a file name may be.
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    temporary = path.with_name(f".{name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file to the disk under another name, and then gives it its own; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a text as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, record: dict) -> None:
    """Writes a record as JSON, in which numbers that are not finite are null."""
    write_text(path, json.dumps(_null_where_not_finite(record), indent=2) + "\n")


def write_csv(path: Path, rows: list[dict]) -> None:
    """Writes rows, which may have different keys, as a table with a column for each key."""
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
    table.writeheader()
    table.writerows(rows)
    write_text(path, file.getvalue())


def _null_where_not_finite(value):
    if isinstance(value, dict):
        return {key: _null_where_not_finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_null_where_not_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
