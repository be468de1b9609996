"""The table of an evaluation: printed, and written with its plots and pictures."""

import json
import math
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dream_jax.evaluation import plots
from dream_jax.evaluation.inputs import Inputs
from dream_jax.experiment import Experiment
from dream_jax.files import atomic, grids, images
from dream_jax.files.names import set_aside
from dream_jax.metrics import METRICS, first_that_measures


def measured(rows: list[dict]) -> list[str]:
    """The names of the metrics in a table's rows, in METRICS' order."""
    return [name for name in METRICS if any(name in row for row in rows)]


def show(record: dict, console: Console) -> None:
    """Prints the result file's table."""
    rows, several = record["rows"], len(record["models"]) > 1
    scale = f", {record['scale']}x" if "scale" in record else ""
    seeds = f", {len(record['seeds'])} seeds: mean and spread" if len(record["seeds"]) > 1 else ""
    what = "whole" if record.get("whole") else record.get("split", "held-out")
    weights = " and ".join(sorted({model["weights"] for model in record["models"].values()})).replace("ema", "EMA")
    title = f"{record['pictures']} {what} pictures{scale}, {weights} weights at step {record['step']}{seeds}"
    table = Table(title=title)
    names = measured(rows)
    for heading in (*(["model"] if several else []), "", "steps"):
        table.add_column(heading, justify="right" if heading == "steps" else "left")
    for name in names:
        table.add_column(METRICS[name].title, justify="right", overflow="fold")
    gained = first_that_measures("distortion", names)
    baseline = next((row for row in rows if row["model"] is None), None)
    for row in rows:
        cells = [row["model"] or ""] if several else []
        cells += [row["sampler"] or row["name"], str(row["steps"]) if row["sampler"] else ""]
        table.add_row(*cells, *(_cell(name, row, baseline if name == gained else None) for name in names))
    console.print(table)
    for note in record["notes"]:
        console.print(f"note: {note}", markup=False)


def _cell(name, row, baseline):
    """A metric's value in a row, its spread, and where a baseline's row is given how much more it is than there."""
    digits = METRICS[name].digits
    cell = format(row[name], digits) if name in row else ""
    if f"{name}_spread" in row:
        cell += f" ± {row[f'{name}_spread']:.1g}"
    # Pictures that come back to the bit have an infinite PSNR.
    if baseline is not None and row["sampler"] and math.isfinite(row[name]) and math.isfinite(baseline[name]):
        cell += f" ({row[name] - baseline[name]:+{digits}})"
    return cell


def write(record: dict, columns: dict[str, np.ndarray], path: Path, overwrite: bool) -> None:
    """Writes PATH (JSON) and the files beside it; earlier ones are kept under their step unless overwrite."""
    names = files(path)
    if not overwrite:
        set_aside(path, names.values())
    atomic.write_csv(names["csv"], record["rows"])
    if "by_picture" in record:
        atomic.write_csv(names["by picture"], record["by_picture"])
    else:
        # That of an earlier table.
        names["by picture"].unlink(missing_ok=True)
    images.write(names["pictures"], grids.grid(columns, record.get("shown_classes")), overwrite=True)
    plots.metrics_against_steps(record, measured(record["rows"]), names["steps"])
    plots.perception_against_distortion(record, measured(record["rows"]), names["tradeoff"])
    atomic.write_json(path, record)


def files(path: Path) -> dict[str, Path]:
    """The files of a table at PATH (JSON): what each holds."""
    return {
        "table": path,
        "csv": path.with_suffix(".csv"),
        "by picture": path.with_name(f"{path.stem}-pictures.csv"),
        "pictures": path.with_suffix(".png"),
        "steps": path.with_name(f"{path.stem}-steps.png"),
        "tradeoff": path.with_name(f"{path.stem}-tradeoff.png"),
    }


def is_written(path: Path, step: int) -> bool:
    """Whether the table at PATH (JSON) is one of this training step, and its pictures are there too."""
    names = files(path)
    try:
        return json.loads(names["table"].read_text())["step"] == step and names["pictures"].exists()
    except (OSError, ValueError, KeyError):
        return False


def tell(path: Path, console: Console) -> None:
    """Says where the files of a table at PATH lie."""
    for what, file in files(path).items():
        if file.exists():
            console.print(f"{what}: {file}", markup=False)


def picture_columns(built: Experiment, inputs: Inputs, drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of a grid: `low resolution | bicubic | drawn ones | original`, uint8 [N, H, W, 3] each."""
    last = "original" if built.task.paired else "held out"
    first = built.task.columns(inputs.observed, inputs.baseline)
    # The first baseline is among the task's own columns.
    others = dict(list(inputs.baselines.items())[1:]) | drawn | {last: inputs.pictures}
    return first | {name: built.task.shown(pictures) for name, pictures in others.items()}


def label(built: Experiment, sampler: str, steps: int) -> str:
    """What the results of a model are called in pictures."""
    return f"{built.objective.title}, {sampler} {steps} step{'s' if steps > 1 else ''}"
