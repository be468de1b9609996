"""A run's record: JSON lines, and TensorBoard.

`metrics.jsonl` holds only functions of (config, seed, step), so a repeated run writes the same file. Rates, times and
facts of the host go to `timing.jsonl`.
"""

import json
import math
import os
from pathlib import Path

from tensorboardX import SummaryWriter

from dream_jax.files import atomic, images
from dream_jax.files.names import free_name

FILES = ("metrics.jsonl", "timing.jsonl")


class RunLog:
    """Writes the record of the run in `workdir`. The run goes on from `step`, and lines of later steps are dropped."""

    def __init__(self, workdir: Path, step: int):
        self._files = {}
        for name in FILES:
            if step == 0 and (workdir / name).exists():
                # They are of a run whose checkpoints are gone. Nobody asked to delete them, so they are renamed.
                os.replace(workdir / name, free_name((workdir / name).with_suffix(".old.jsonl")))
        self._workdir = workdir
        self._open(step)

    def _open(self, step):
        for name in FILES:
            lines = _lines_up_to(self._workdir / name, step)
            atomic.write_text(self._workdir / name, "".join(json.dumps(line) + "\n" for line in lines))
            self._files[name] = open(self._workdir / name, "a", buffering=1)  # noqa: SIM115 -- closed by close()
        self._rebuild_board(self._workdir, step)

    def rewind(self, step: int) -> None:
        """Drops the lines of steps after the one that the run was rolled back to."""
        self.close()
        self._open(step)

    def _rebuild_board(self, workdir, step):
        """Writes TensorBoard's files anew: those of an interrupted run may be cut, and may hold later steps."""
        for file in (workdir / "tensorboard").glob("events.out.tfevents.*"):
            file.unlink()
        self._board = SummaryWriter(str(workdir / "tensorboard"))
        records = {name: _lines_up_to(workdir / name, step) for name in FILES}
        times = {record["step"]: record.get("time") for record in records["timing.jsonl"]}
        for name in FILES:
            for record in records[name]:
                self._draw(name, record, times.get(record["step"]))
        for file in sorted((workdir / "samples").glob("step_*.png")):
            number = file.stem.removeprefix("step_")
            if number.isdecimal() and int(number) <= step:
                self.picture(int(number), "samples", images.read(file))

    def _draw(self, name, record, walltime):
        for key, value in record.items():
            if key != "step" and isinstance(value, (int, float)):
                self._board.add_scalar(f"{name.removesuffix('.jsonl')}/{key}", value, record["step"], walltime)

    def write(self, step: int, metrics: dict, timing: dict) -> None:
        for name, values in zip(FILES, (metrics, timing), strict=True):
            self._files[name].write(json.dumps({"step": step, **values}) + "\n")
            self._draw(name, {"step": step, **values}, timing.get("time"))

    def sync(self) -> None:
        """Returns when the lines are on the disk: a checkpoint must not be newer than they are."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def picture(self, step: int, name: str, picture) -> None:
        self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._board.close()
        for file in self._files.values():
            file.close()


def lines(workdir: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return _lines_up_to(workdir / FILES[0], math.inf)


def timing(workdir: Path) -> list[dict]:
    """The lines of a run's timing.jsonl."""
    return _lines_up_to(workdir / FILES[1], math.inf)


def _lines_up_to(path, step):
    """The records of a JSON-lines file up to a step. A line that was cut off is left out."""
    kept = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
            if record["step"] <= step:
                kept.append(record)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return kept
