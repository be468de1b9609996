"""Measures over whole pictures of any size, which are drawn as upscaling draws them, in tiles where they are large."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from dream_jax.data.indexed import Source, middle
from dream_jax.errors import UserError, shown
from dream_jax.evaluation import measuring, tables
from dream_jax.evaluation.inputs import Inputs, check_models
from dream_jax.evaluation.journal import add_row, read_rows
from dream_jax.evaluation.measuring import Method
from dream_jax.files import images, listings
from dream_jax.inference import drawing
from dream_jax.inference.drawing import Model
from dream_jax.inference.memory import free_bytes
from dream_jax.inference.tile_plans import Planner, check_tiles, draw_lows, shape_of
from dream_jax.metrics import METRICS, Compared, Metric, picture_set
from dream_jax.runtime import consensus
from dream_jax.training import integrity

# Pixels a side of what a grid shows of each picture, its middle.
_SHOWN = 256
# Pictures that a note names as the worst ones.
_WORST = 3


def folder_source(folder) -> Source:
    """The picture files in a folder and those below, read when they are asked for.

    Raises UserError where there are none.
    """
    files = listings.list_pictures(folder)
    names = [shown(file.relative_to(Path(folder).expanduser()).as_posix()) for file in files]
    return Source(lambda i: images.read(files[i]), len(files), name=names.__getitem__)


def evaluate(models: dict[str, Model], source: Source, console: Console, journal: Path | None = None):
    """Evaluates models on whole pictures, by the first one's `config.evaluation`; see `measuring.evaluate`.

    Each picture is cut at the right and below to sides that the scale divides, made small, and enlarged again. Its
    measures are those of pairs; those of sets need pictures of one size.

    Args:
      source: at most `evaluation.pictures` of it, the first ones.
      journal: a file that keeps what is measured of each picture, so that an evaluation that was stopped goes on.

    Returns:
      (record, pictures) as `measuring.evaluate`; record["by_picture"] has a row for each picture and method.

    Raises UserError for models that do not restore pictures, or not in the same way.
    """
    first = next(iter(models.values()))
    built, settings = first.experiment, first.experiment.config.evaluation
    if not built.task.paired:
        raise UserError("whole pictures are for models that restore them, not for those that make new ones")
    check_models(models)
    for model in models.values():
        check_tiles(model.experiment, settings.tile, settings.overlap, "evaluation.tile")
    asked, about, learned = measuring.load_metrics(settings, paired=True)
    asked = {name: metric for name, metric in asked.items() if metric.paired and not metric.over_seeds}
    values_of = _make_values(built, asked, learned)
    methods, digests = measuring.methods_of(models), {name: integrity.digest(m.params) for name, m in models.items()}
    pictures = range(min(len(source), settings.pictures))
    finished, by_picture, columns = read_rows(journal), [], {}
    identity = {"settings": settings.to_dict(), "learned": about, "metrics": list(asked), "scale": built.task.scale}
    with drawing.progress_bar(console) as bar:
        job = bar.add_task(built.task.baseline_name, total=len(pictures) * (1 + len(methods)))
        for number in pictures:
            inputs = _observe(built, source, number)
            row = {"name": built.task.baseline_name, "model": None, "sampler": None, "steps": 0}
            by_picture.append({"picture": source.label(number)} | row | values_of(inputs, inputs.baseline))
            bar.advance(job)
        for method in methods:
            title, model = measuring.title_of(models, method), models[method.model]
            row, draw = {"name": title} | method._asdict(), _make_draw(model, method, settings)
            bar.update(job, description=title)
            for number in pictures:
                inputs, shows = _observe(built, source, number), number < built.config.samples.count
                key = _fingerprint(identity | row | {"weights": digests[method.model]}, inputs, model, number)
                if key not in finished:
                    drawn = [draw(inputs, number, seed) for seed in settings.seeds]
                    finished[key] = _mean([values_of(inputs, result) for result in drawn])
                    if journal is not None:
                        add_row(journal, key, finished[key])
                elif shows:
                    # The results of an earlier call were not kept.
                    drawn = [draw(inputs, number, settings.seeds[0])]
                if shows:
                    columns.setdefault(title, []).append(drawn[0][0])
                by_picture.append({"picture": source.label(number)} | row | finished[key])
                bar.advance(job)
    table = _means(by_picture)
    record = {
        "protocol": settings.protocol,
        "about_protocol": {name: asked[name].about for name in tables.measured(table)},
        "rows": table,
        "by_picture": by_picture,
        "models": measuring.about_models(models, digests),
        "step": first.step,
        "pictures": len(pictures),
        "whole": True,
        "seeds": list(settings.seeds),
        "learned": about,
        "notes": [_worst(by_picture, table), *_left_out(asked, by_picture)],
        "scale": built.config.task.scale,
        "kernel": built.config.task.kernel,
    }
    return record, _columns(built, source, columns)


def _observe(built, source, number) -> Inputs:
    """Of one picture, cut to sides that the task's scale divides."""
    picture, divisor = source[number], built.task.divisor
    height, width = (side // divisor * divisor for side in picture.shape[:2])
    least = max(divisor, 2 * built.config.evaluation.border + 1)
    if min(height, width) < least:
        size = f"{picture.shape[1]}x{picture.shape[0]}"
        raise UserError(f"{shown(source.label(number))}: {size} pixels are too few, at least {least} a side are needed")
    picture = picture[None, :height, :width]
    observed, cond, baseline = drawing.observe(built, picture)
    return Inputs(picture, {"cond": cond}, observed, baseline)


def _make_values(built, asked: dict[str, Metric], learned) -> Callable[[Inputs, np.ndarray], dict[str, float]]:
    """`(inputs, result uint8 [1, H, W, 3]) -> {metric: value}`; a metric that needs larger pictures is left out."""
    consistency = None if built.task.consistency is None else jax.jit(built.task.consistency)
    settings = built.config.evaluation

    def values(inputs, result):
        originals = picture_set(inputs.pictures, learned)
        compared = Compared(
            *(picture_set(result, learned), originals, inputs.observed, consistency, learned),
            batch_size=1,
            channel=settings.channel,
            border=settings.border,
        )
        return measuring.of_pair(asked, compared)

    return values


def _make_draw(model: Model, method: Method, settings) -> Callable[[Inputs, int, int], np.ndarray]:
    """`(inputs, number, seed) -> result` uint8 [1, H, W, 3] of one picture; number is what its noise depends on."""
    experiment = model.experiment
    rows = drawing.make_rows(experiment, method.sampler, method.steps)
    # Processes that plan by different limits would wait for each other for ever.
    (limit,) = consensus.of_first([int(free_bytes(model.mesh.local_devices[0]) / 2 / 2**20)])
    planner = Planner(model, rows, limit * 2**20, settings.tile, overlap=settings.overlap)

    def draw(inputs, number, seed):
        low = inputs.observed[0]
        shape = shape_of(experiment, low)
        key = drawing.make_key(seed)
        return draw_lows(model, rows, planner(shape), shape, [low], np.array([number], np.int32), key)[0][None]

    return draw


def _fingerprint(what: dict, inputs: Inputs, model: Model, number: int) -> str:
    config = model.experiment.config
    digest = hashlib.sha256(np.ascontiguousarray(inputs.pictures)).hexdigest()
    what |= {"picture": digest, "number": number, "sampling": config.sampling.to_dict()}
    what |= {"compute_dtype": config.compute_dtype}
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _mean(each: list[dict[str, float]]) -> dict[str, float]:
    """Of each metric that all have."""
    return {name: float(np.mean([values[name] for values in each])) for name in METRICS if all(name in v for v in each)}


def _means(by_picture):
    """The table's rows: the means over pictures of each method."""
    names = dict.fromkeys(row["name"] for row in by_picture)
    of_method = [[row for row in by_picture if row["name"] == name] for name in names]
    return [{key: rows[0][key] for key in ("name", "model", "sampler", "steps")} | _mean(rows) for rows in of_method]


def _worst(by_picture, table):
    """A note that names the pictures with the worst first metric of the last method."""
    metric = next(name for name in METRICS if name in table[0])
    rows = [row for row in by_picture if row["name"] == table[-1]["name"]]
    rows = sorted(rows, key=lambda row: row[metric], reverse=not METRICS[metric].higher_is_better)
    named = ", ".join(f"{shown(row['picture'])} {row[metric]:{METRICS[metric].digits}}" for row in rows[:_WORST])
    return f"worst {METRICS[metric].title} of {table[-1]['name']}: {named}"


def _left_out(asked, by_picture):
    """Notes of metrics that some picture is too small for, of which the table then has none."""
    for name in asked:
        small = [row["picture"] for row in by_picture if name not in row and row["model"] is None]
        if small:
            yield f"without {name}: {len(small)} pictures are too small for it, {shown(small[0])} the first"


def _columns(built, source, drawn):
    """The middles of the first pictures, side by side: what was observed, the results, the originals."""
    count = len(next(iter(drawn.values())))
    all_inputs = [_observe(built, source, number) for number in range(count)]
    divisor = built.task.divisor
    side = min(_SHOWN, *(length for inputs in all_inputs for length in inputs.pictures.shape[1:3])) // divisor * divisor

    def middles(pictures, side):
        return np.stack([middle(picture, side) for picture in pictures])

    # The low-resolution picture of a middle is not quite the middle of the low-resolution picture.
    originals = middles([inputs.pictures[0] for inputs in all_inputs], side)
    shown_inputs = Inputs(
        originals, {}, drawing.observe(built, originals)[0], middles([i.baseline[0] for i in all_inputs], side)
    )
    results = {title: middles(pictures, side) for title, pictures in drawn.items()}
    return tables.picture_columns(built, shown_inputs, results)
