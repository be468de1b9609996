"""Metrics of EMA weights over held-out pictures, for each sampler and number of steps."""

import functools
import json
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dream_jax import images, metrics, sampling, sharding
from dream_jax.errors import UserError
from dream_jax.experiment import Experiment
from dream_jax.run_log import free_name

PROTOCOL = {
    "name": "standard",
    "psnr": "RGB, no border crop, dB, mean over pictures",
    "ssim": "RGB, Gaussian window 11 with sigma 1.5, mean over pictures",
    "consistency": "mean squared error in [0, 1] between the result, made small again, and its low-resolution picture",
}


def progress_bar(console: Console) -> Progress:
    """A bar with count, time taken and time left."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console)


def make_draw(experiment: Experiment, mesh):
    """The jitted `draw(params, cond, index, rows, key) -> uint8 pictures [B, H, W, 3]` of every use of a model.

    cond is [B, H, W, Cc], sharded over the mesh; index [B] numbers the pictures: picture i's noise depends on (key, i)
    alone.
    """
    rows_over_mesh, everywhere = NamedSharding(mesh, sharding.BATCH), NamedSharding(mesh, P())

    @functools.partial(jax.jit, out_shardings=everywhere)
    def draw(params, cond, index, rows, key):
        cond = jax.lax.with_sharding_constraint(cond, rows_over_mesh)

        def predict(x, alpha, sigma):
            del sigma
            return experiment.predict(params, x, cond, jnp.broadcast_to(alpha, x.shape[:1]))

        task, config = experiment.task, experiment.config
        denoise = sampling.make_denoise(
            predict, config.objective.kind, experiment.schedule.flow, lambda x0: task.constrain(x0, cond)
        )
        shape = (*cond.shape[:3], 3)
        x0 = sampling.run(key, denoise, shape, rows, index)
        return images.to_uint8(task.to_picture(x0, cond))

    return draw


def make_rows(experiment: Experiment, sampler: str, num_steps: int, eta: float = 0.0) -> sampling.Rows:
    """The rows of a named sampler, re-spaced from the experiment's schedule; arrays in the default float type.

    eta is ddim's share of noise.
    """
    options = {"eta": eta} if sampler == "ddim" else {}
    rows = sampling.make_rows(sampler, sampling.levels_of(experiment.schedule, num_steps), **options)
    return jax.tree.map(lambda a: np.asarray(a, jnp.zeros(()).dtype), rows)


def draw_pictures(draw, params, cond, rows, key, mesh, batch_size, advance=lambda count: None, numbers=None):
    """Draws any number of pictures in batches that the mesh divides; cond is [N, H, W, Cc] on the host.

    numbers: int [N], what each picture's noise depends on; 0..N-1 by default.
    """
    numbers = np.arange(len(cond)) if numbers is None else numbers
    batch_size = math.ceil(batch_size / mesh.size) * mesh.size
    rows_over_mesh = NamedSharding(mesh, sharding.BATCH)
    drawn = []
    for start in range(0, len(cond), batch_size):
        # The last batch is filled up with its own last picture, so that one shape is compiled.
        chosen = np.minimum(np.arange(start, start + batch_size), len(cond) - 1)
        part = np.asarray(cond[chosen])
        part = jax.make_array_from_callback(part.shape, rows_over_mesh, lambda i, part=part: part[i])
        pictures = np.asarray(draw(params, part, numbers[chosen], rows, key))[: len(cond) - start]
        drawn.append(pictures)
        advance(len(pictures))
    return np.concatenate(drawn)


def evaluate(experiment: Experiment, params, pictures, mesh, console: Console) -> tuple[dict, np.ndarray]:
    """Evaluates `config.evaluation` on pictures uint8 [N, H, W, 3]: the result file's content, and a grid of some.

    The row named `bicubic` (after the task's kernel) is the low-resolution picture merely enlarged.
    """
    config = experiment.config
    if experiment.task.degrade is None:
        raise UserError("this model is unconditional: it has no original pictures to be compared with")
    low, cond, enlarged = degraded(experiment, pictures)
    draw, key = make_draw(experiment, mesh), jax.random.key(config.evaluation.seed, impl="threefry2x32")
    settings = [(name, steps) for name in config.evaluation.samplers for steps in config.evaluation.steps]
    baseline = baseline_name(config)
    rows = [{"name": baseline, "sampler": None, "steps": 0} | _scores(experiment, enlarged, pictures, low)]
    results = {}
    with progress_bar(console) as bar:
        job = bar.add_task("evaluating", total=len(settings) * len(pictures))
        for sampler, steps in settings:
            table = make_rows(experiment, sampler, steps, config.evaluation.ddim_eta)
            size = config.evaluation.batch_size
            drawn = draw_pictures(draw, params, cond, table, key, mesh, size, lambda n: bar.advance(job, n))
            name = f"{sampler} {steps}"
            results[name] = drawn
            rows.append({"name": name, "sampler": sampler, "steps": steps} | _scores(experiment, drawn, pictures, low))
    best = max(rows[1:], key=lambda row: row["psnr"])
    shown = slice(config.samples.count)
    columns = {label(config, best["sampler"], best["steps"]): results[best["name"]][shown]}
    grid = comparison(experiment, low[shown], enlarged[shown], columns, pictures[shown])
    record = {"protocol": PROTOCOL["name"], "about_protocol": PROTOCOL, "rows": rows, "pictures": len(pictures)}
    record |= {"crop": pictures.shape[1], "seed": config.evaluation.seed, "scale": config.task.scale}
    record |= {"kernel": config.task.kernel, "weights": "ema", "ddim_eta": config.evaluation.ddim_eta}
    return record, grid


def degraded(experiment: Experiment, pictures):
    """Low-resolution pictures, conditions and enlarged pictures, all on the host, made one picture at a time."""

    @jax.jit
    def degrade(picture):
        low = experiment.task.degrade(picture)
        cond = experiment.task.condition(low)
        return low.astype(jnp.uint8), cond, images.to_uint8(cond)

    parts = [jax.tree.map(np.asarray, degrade(picture[None])) for picture in pictures]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


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
