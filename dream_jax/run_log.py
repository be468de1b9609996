"""A run's record: JSON lines, TensorBoard, and lines on the screen.

`metrics.jsonl` holds only functions of (config, seed, step), so that a repeated run writes it again to the letter;
rates, times and facts of the host go to `timing.jsonl`.
"""

import json
import os
from pathlib import Path

from tensorboardX import SummaryWriter

FILES = ("metrics.jsonl", "timing.jsonl")


class RunLog:
    """Writes the record of the run in `workdir`, which goes on from `step`: lines beyond it are dropped."""

    def __init__(self, workdir: Path, step: int):
        self._files = {}
        for name in FILES:
            if step == 0 and (workdir / name).exists():
                # Of a run whose checkpoints are gone; nobody asked for them to be thrown away.
                os.replace(workdir / name, free_name((workdir / name).with_suffix(".old.jsonl")))
            lines = _lines_up_to(workdir / name, step)
            write_text(workdir / name, "".join(json.dumps(line) + "\n" for line in lines))
            self._files[name] = open(workdir / name, "a", buffering=1)  # noqa: SIM115 -- closed by close()
        # Purging makes TensorBoard forget what an interrupted run wrote beyond the step.
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, metrics: dict, timing: dict) -> None:
        for name, values in zip(FILES, (metrics, timing), strict=True):
            self._files[name].write(json.dumps({"step": step, **values}) + "\n")
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{name.removesuffix('.jsonl')}/{key}", value, step)

    def picture(self, step: int, name: str, picture) -> None:
        self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._board.close()
        for file in self._files.values():
            file.close()


def free_name(path: Path) -> Path:
    """The path itself, or with the first number that makes it new."""
    names = (path.with_stem(f"{path.stem}-{n}") if n else path for n in range(10_000))
    return next(name for name in names if not name.exists())


def _lines_up_to(path, step):
    """The records of a JSON-lines file up to a step; a torn last line is no record."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] <= step:
            kept.append(record)
    return kept


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
