"""Metrics of EMA weights over held-out pictures, for each sampler and number of steps."""

import json
import os
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console
from rich.table import Table

from dream_jax import images, metrics
from dream_jax.draw import degraded, draw_pictures, inputs_of, make_draw, make_key, make_rows, progress_bar
from dream_jax.errors import UserError
from dream_jax.experiment import Experiment
from dream_jax.run_log import free_name

PROTOCOL = {
    "name": "standard",
    "psnr": "RGB, no border crop, dB, mean over pictures",
    "ssim": "RGB, Gaussian window 11 with sigma 1.5, mean over pictures",
    "consistency": "mean squared error in [0, 1] between the result, made small again, and its low-resolution picture",
}


def evaluate(experiment: Experiment, params, pictures, mesh, console: Console) -> tuple[dict, np.ndarray]:
    """Evaluates `config.evaluation` on pictures uint8 [N, H, W, 3]: the result file's content, and a grid of some.

    The row named `bicubic` (after the task's kernel) is the low-resolution picture merely enlarged.
    """
    config = experiment.config
    if experiment.task.degrade is None:
        raise UserError("this model is unconditional: it has no original pictures to be compared with")
    low, cond, enlarged = degraded(experiment, pictures)
    inputs = inputs_of(experiment, cond, low)
    draw, key = make_draw(experiment, mesh), make_key(config.evaluation.seeds[0])
    settings = [(name, steps) for name in config.evaluation.samplers for steps in config.evaluation.steps]
    baseline = baseline_name(config)
    rows = [{"name": baseline, "sampler": None, "steps": 0} | _scores(experiment, enlarged, pictures, low)]
    results = {}
    with progress_bar(console) as bar:
        job = bar.add_task("evaluating", total=len(settings) * len(pictures))
        for sampler, steps in settings:
            table = make_rows(experiment, sampler, steps)
            size = config.evaluation.batch_size
            drawn = draw_pictures(draw, params, inputs, table, key, mesh, size, lambda n: bar.advance(job, n))
            name = f"{sampler} {steps}"
            results[name] = drawn
            rows.append({"name": name, "sampler": sampler, "steps": steps} | _scores(experiment, drawn, pictures, low))
    best = max(rows[1:], key=lambda row: row["psnr"])
    shown = slice(config.samples.count)
    columns = {label(config, best["sampler"], best["steps"]): results[best["name"]][shown]}
    grid = comparison(experiment, low[shown], enlarged[shown], columns, pictures[shown])
    record = {"protocol": PROTOCOL["name"], "about_protocol": PROTOCOL, "rows": rows, "pictures": len(pictures)}
    record |= {"crop": pictures.shape[1], "seeds": list(config.evaluation.seeds), "scale": config.task.scale}
    record |= {"kernel": config.task.kernel, "weights": "ema"}
    return record, grid


def _scores(experiment, drawn, pictures, low):
    per_picture = {
        "psnr": lambda a, b, l: metrics.psnr(a, b),
        "ssim": lambda a, b, l: metrics.ssim(a, b),
        "consistency": lambda a, b, l: metrics.consistency(a, l, kernel=experiment.config.task.kernel),
    }
    values = {}
    for name, measure in per_picture.items():
        each = [float(measure(a[None], b[None], l[None])[0]) for a, b, l in zip(drawn, pictures, low, strict=True)]
        values[name] = float(np.mean(each))
    return values


def comparison(experiment: Experiment, low, enlarged, results: dict, pictures) -> np.ndarray:
    """The grid `low resolution | bicubic | results | original`, uint8."""
    columns = {"low resolution": low, baseline_name(experiment.config): enlarged, **results, "original": pictures}
    return images.grid(columns)


def baseline_name(config) -> str:
    """What the low-resolution picture merely enlarged is called in tables: bicubic, after the task's kernel."""
    return config.task.kernel.removeprefix("pil_")


def label(config, sampler: str, steps: int) -> str:
    """What the results of a model trained with this config are called in pictures."""
    off = config.objective.name == "standard" or (config.objective.name == "dream" and config.objective.p is None)
    return f"{'standard' if off else 'DREAM'}, {sampler} {steps} step{'s' if steps > 1 else ''}"


def show(record: dict, console: Console) -> None:
    """Prints the result file's table."""
    rows = record["rows"]
    title = f"{record['pictures']} held-out pictures, {record['scale']}x, EMA weights at step {record['step']}"
    table = Table(title=title)
    for heading in ("", "steps", "PSNR dB", "SSIM", "consistency"):
        table.add_column(heading, justify="left" if not heading else "right")
    baseline = rows[0]["psnr"]
    for row in rows:
        gain = f" ({row['psnr'] - baseline:+.2f})" if row["sampler"] else ""
        steps = str(row["steps"]) if row["sampler"] else ""
        cells = f"{row['psnr']:.2f}{gain}", f"{row['ssim']:.4f}", f"{row['consistency']:.2e}"
        table.add_row(row["sampler"] or row["name"], steps, *cells)
    console.print(table)


def check_output(path: Path) -> None:
    """Raises UserError where a table cannot be written to PATH (JSON, with a .png beside it)."""
    if path.suffix != ".json":
        raise UserError(f"{path}: the table is JSON; end --output in .json")
    probe = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")


def write(record: dict, grid, path: Path, overwrite: bool) -> None:
    """Writes PATH (JSON) and the grid beside it (PNG); earlier ones are kept under their step unless overwrite."""
    if path.exists() and not overwrite:
        try:
            step = json.loads(path.read_text())["step"]
        except (ValueError, KeyError, TypeError):
            step = "before"
        for old in (path, path.with_suffix(".png")):
            if old.exists():
                os.replace(old, free_name(old.with_stem(f"{old.stem}-{step}")))
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, path)
    images.write(path.with_suffix(".png"), grid, overwrite=overwrite)


def synchronise(name: str) -> None:
    """Waits for all processes; free for one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
