"""The rows of a table that are finished, kept in a file of JSON lines, so that an evaluation goes on after a stop."""

import contextlib
import json
from pathlib import Path


def read_rows(path: Path | None) -> dict[str, dict]:
    """{key: row} of a journal; empty where there is none."""
    rows = {}
    for line in path.read_text().splitlines() if path is not None and path.exists() else []:
        # A stop may have cut a line off: its row is measured again.
        with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
            entry = json.loads(line)
            rows[entry["key"]] = entry["row"]
    return rows


def add_row(path: Path, key: str, row: dict) -> None:
    """Appends a row, on a line of its own also where the last line was cut off."""
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with open(path, "a") as file:
        file.write("\n" * torn + json.dumps({"key": key, "row": row}) + "\n")
