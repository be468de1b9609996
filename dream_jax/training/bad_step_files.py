"""The files in which a workdir keeps the steps that went wrong.

`skipped_steps.json` is the list of the steps that the run leaves out; `rollbacks.jsonl` has a line for each rollback;
`bad_batches/` holds the pictures of steps whose numbers were not finite. Steps are counted from 1.
"""

import io
import json
from pathlib import Path

import numpy as np

from dream_jax.data import batches, indexed
from dream_jax.errors import UserError
from dream_jax.files import atomic, grids, images

# A run that skips many steps must not fill the disk.
MOST_BATCHES = 100


def read(workdir: Path) -> tuple[list[int], list[int]]:
    """(skipped steps; for each rollback, the step that it went back to). Raises UserError for files of another kind."""
    path, log = workdir / "skipped_steps.json", workdir / "rollbacks.jsonl"
    try:
        skipped = json.loads(path.read_text()) if path.exists() else []
        records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return sorted({int(step) for step in skipped}), [int(record["to"]) for record in records]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: must be a list of the numbers of steps, like [12, 13] ({error})") from error


def write(workdir: Path, skipped) -> None:
    atomic.write_text(workdir / "skipped_steps.json", json.dumps(sorted(skipped)) + "\n")


def record(workdir: Path, at: int, to: int, steps: list[int], reasons: list[str]) -> None:
    """Adds a rollback from step `at` to the checkpoint of step `to`, or to the first state (0)."""
    path = workdir / "rollbacks.jsonl"
    line = json.dumps({"at": at, "to": to, "steps": steps, "reasons": reasons})
    atomic.write_text(path, (path.read_text() if path.exists() else "") + line + "\n")


def names(source, config, step: int) -> list[str]:
    """The names of a step's pictures, in the order of the batch's rows."""
    return [source.label(index) for index in batches.batch_indices(source, config.seed, config.batch_size, step - 1)]


def save_batch(workdir: Path, step: int, source, pictures, config) -> str:
    """Writes the batch of a step to `bad_batches/step_N.npz` and `.png`, unless it is there; says where it is.

    The `.npz` holds image, levels [G, H, W, C], before flips, and of pairs beside, levels [G, h, w, .], of classes
    uint16 [G, 1, 1, 1]; row, int32 [G]; index, int64 [G], the place in the data; and name, str [G]. The `.png` shows
    the pictures in the order of rows.
    """
    path = workdir / "bad_batches" / f"step_{step:07d}.npz"
    if path.exists():
        return f"kept in {path}"
    try:
        path.parent.mkdir(exist_ok=True)
        if len(list(path.parent.glob("step_*.npz"))) >= MOST_BATCHES:
            return f"not kept, as {path.parent} holds {MOST_BATCHES} batches"
        size = config.batch_size
        batch = batches.named(indexed.stack(pictures[(step - 1) * size + row] for row in range(size)))
        index = np.array(batches.batch_indices(source, config.seed, size, step - 1))
        file = io.BytesIO()
        row = np.arange(size, dtype=np.int32)
        np.savez(file, **batch, row=row, index=index, name=np.array(names(source, config, step)))
        if not path.with_suffix(".png").exists():
            images.write(path.with_suffix(".png"), grids.mosaic(batch["image"]))
        atomic.write_bytes(path, file.getvalue())
    except OSError as error:
        return f"which could not be kept in {path} ({error.strerror or error})"
    return f"kept in {path}"
