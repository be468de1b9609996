"""Measures over whole pictures of any size, which are drawn as restoring draws them, in tiles where they are large."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from dream_jax.data import indexed, listing, masks
from dream_jax.data.beside import Beside
from dream_jax.data.indexed import Pair, Source, has_beside, is_paired, middle
from dream_jax.errors import UserError, shown
from dream_jax.evaluation import measuring, tables
from dream_jax.evaluation.inputs import Inputs, check_models, make_inputs
from dream_jax.evaluation.journal import add_row, read_rows
from dream_jax.evaluation.measuring import Method
from dream_jax.files.picture import MASK, USUAL, Reading
from dream_jax.inference import drawing
from dream_jax.inference.drawing import Model
from dream_jax.inference.memory import free_bytes
from dream_jax.inference.tile_plans import Planner, check_tiles, draw_observed, shape_of
from dream_jax.metrics import METRICS, Compared, Metric, picture_set
from dream_jax.runtime import consensus
from dream_jax.tasks.beside import BESIDE
from dream_jax.training import integrity

# Pixels a side of what a grid shows of each picture, its middle.
_SHOWN = 256
# Pictures that a note names as the worst ones.
_WORST = 3


def folder_source(folder, beside: Beside | None = None, reading: Reading = USUAL) -> Source:
    """The pictures of folders and files, as `listing.pictures` names them, read when they are asked for.

    Args:
      beside: what lies beside them, in its folder; masks that do not all have the names of pictures are any.
      reading: how files are read.

    Raises UserError where there are none, or a picture has nothing of its name beside it.
    """
    if beside is not None and beside.kind == "mask":
        return _with_masks(folder, beside, reading)
    if beside is None:
        return _listed(listing.pictures(folder), reading)
    return _listed(listing.pictures(folder, beside.folder, beside.scale, beside.kind), reading, beside)


def _with_masks(folder, beside, reading):
    def paired():
        return listing.pictures(folder, beside.folder, kind="mask")

    if own := masks.by_name(folder, beside.folder, paired, reading, "the pictures"):
        return _listed(own, reading, beside)
    drawn = _listed(listing.pictures(beside.folder), MASK)
    return dataclasses.replace(_listed(listing.pictures(folder), reading), kind="mask", masks=drawn)


def _listed(listed, reading, beside=None):
    names, entries = [shown(name) for name in listed], list(listed.values())
    if missing := [entry.problem for entry in entries if entry.problem]:
        raise UserError(f"{len(missing)} of {len(entries)} pictures cannot be used: {listing.first(missing)}")
    source = Source(lambda i: listing.read(entries[i].picture, reading), len(entries), name=names.__getitem__)
    if beside is None:
        return source
    how = beside.read_as(reading)
    return dataclasses.replace(
        source, beside=lambda i: listing.read(entries[i].beside, how), scale=beside.scale, kind=beside.kind
    )


def evaluate(
    models: dict[str, Model], source: Source, console: Console, journal: Path | None = None, given: bool = False
):
    """Evaluates models on whole pictures, by the first one's `config.evaluation`; see `measuring.evaluate`.

    Each picture is cut at the right and below to sides that the task divides, degraded, and restored again; where the
    source has what lies beside pictures, low-resolution ones for example, that is restored. Its measures are those of
    pairs; those of sets need pictures of one size.

    Args:
      source: at most `evaluation.pictures` of it, the first ones.
      journal: a file that keeps what is measured of each picture, so that an evaluation that was stopped goes on.
      given: the source is a person's, not of the first model's held-out pictures.

    Returns:
      (record, pictures) as `measuring.evaluate`; record["by_picture"] has a row for each picture and method.

    Raises UserError for models that do not restore pictures, or not in the same way.
    """
    first = next(iter(models.values()))
    built, settings = first.experiment, first.experiment.config.evaluation
    data_note = _check(models, source, given)
    asked, about, learned = measuring.load_metrics(settings, True, built.task.measured_as)
    asked = {
        name: metric for name, metric in asked.items() if metric.paired and not (metric.over_seeds or metric.of_set)
    }
    if built.task.consistency is None:
        asked.pop("consistency", None)
    digests = {name: integrity.digest(model.params) for name, model in models.items()}
    identity = {"settings": settings.to_dict(), "learned": about, "metrics": list(asked), "scale": built.task.scale}
    measured, columns, notes = _measure(
        models, source, _make_values(built, asked, learned), identity, digests, console, journal
    )
    by_picture = [row | _mean(seeds) for row, seeds in measured]
    table = _means(measured)
    record = {
        "protocol": settings.protocol,
        "about_protocol": {name: asked[name].about for name in tables.measured(table)},
        "rows": table,
        "by_picture": by_picture,
        "models": measuring.about_models(models, digests),
        "step": first.step,
        "pictures": min(len(source), settings.pictures),
        "whole": True,
        "seeds": list(settings.seeds),
        "learned": about,
        "notes": [
            _worst(by_picture, table),
            *(_not_measured(source, settings) if given else ()),
            *_exact(by_picture, table),
            *_left_out(asked, by_picture, notes),
            *([data_note] if data_note else []),
            *notes,
        ],
    }
    if built.task.beside == "low":
        record |= {"scale": built.task.scale, "kernel": built.config.task.kernel}
    return record, _picture_columns(built, columns)


def _check(models, source, given):
    """Raises UserError for models that cannot restore these pictures; what is to be known of their data, or None."""
    built = next(iter(models.values())).experiment
    settings = built.config.evaluation
    if not built.task.paired:
        raise UserError("whole pictures are for models that restore them, not for those that make new ones")
    if has_beside(source) and built.task.beside != source.kind:
        raise UserError(f"{built.config.task.name} takes no {BESIDE[source.kind].nouns} that are there")
    for model in models.values():
        check_tiles(model.experiment, settings.tile, settings.overlap, "evaluation.tile")
    return check_models(models, given)


def _measure(models, source, values_of, identity, digests, console, journal):
    """What is measured of each picture, read once, by the baselines and all methods.

    Returns ([(row's head, [values of each seed])] by method, the first pictures' middles for a grid, notes).
    """
    built = next(iter(models.values())).experiment
    settings, methods = built.config.evaluation, measuring.methods_of(models)
    draws = [_make_draw(models[method.model], method, settings) for method in methods]
    heads = [{"name": measuring.title_of(models, method)} | method._asdict() for method in methods]
    pictures, finished = range(min(len(source), settings.pictures)), read_rows(journal)
    found, of_baselines, columns, notes = [[] for _ in methods], [], [], []
    with drawing.progress_bar(console) as bar:
        job = bar.add_task("evaluating", total=len(pictures) * len(found))
        for number in pictures:
            # It takes its time, before any model draws.
            bar.update(job, description=(built.task.classical or ("evaluating",))[0])
            inputs, label, results = _observe(built, source, number), {"picture": source.label(number)}, {}
            bar.update(job, description="evaluating")
            notes, shows = inputs.notes, number < built.config.samples.count
            for name, baseline in inputs.baselines.items():
                of_baselines.append((label | measuring.baseline_row(name), [values_of(inputs, baseline)]))
            for rows, head, method, draw in zip(found, heads, methods, draws, strict=True):
                key = _fingerprint(identity | head | {"weights": digests[method.model]}, inputs, models, method, number)
                drawn = []
                if key not in finished:
                    drawn = [draw(inputs, number, seed) for seed in settings.seeds]
                    finished[key] = {"seeds": [values_of(inputs, result) for result in drawn]}
                    if journal is not None:
                        add_row(journal, key, finished[key])
                if shows:
                    # The results of an earlier call were not kept.
                    results[head["name"]] = drawn[0] if drawn else draw(inputs, number, settings.seeds[0])
                rows.append((label | head, finished[key]["seeds"]))
                bar.advance(job)
            if shows:
                columns.append(_middles(built, inputs, results))
    # The table names methods in the order of their first rows.
    of_baselines.sort(key=lambda row: list(inputs.baselines).index(row[0]["name"]))
    return [*of_baselines, *(row for rows in found for row in rows)], columns, notes


def _observe(built, source, number) -> Inputs:
    """Of one picture, cut to sides that a result of what is observed of it has."""
    paired = source.pair(number) if is_paired(source) else None
    picture, task = source[number] if paired is None else paired.image, built.task
    height, width = task.sides(tuple(_observed_side(side, task) for side in picture.shape[:2]))
    least = max(math.ceil(task.scale), 2 * built.config.evaluation.border + 1)
    if min(height, width) < least:
        size = f"{picture.shape[1]}x{picture.shape[0]}"
        raise UserError(f"{shown(source.label(number))}: {size} pixels are too few, at least {least} a side are needed")
    picture = picture[:height, :width]
    measuring.check_known(task.measured_as, [picture], measuring.span_of(built.config), lambda _: source.label(number))
    if paired is not None:
        cut = paired.beside if paired.scale > 1 else paired.beside[:height, :width]
        picture = Pair(picture, cut)
    stack = indexed.stack([indexed.masked(source, picture, number)])
    return make_inputs(built, stack, classical=True, numbers=[number])


def _observed_side(side, task):
    """The longest side of what is observed whose result is no longer than this; scales need not be whole."""
    observed = math.ceil(side / task.scale)
    return observed if task.sides((observed, observed))[0] <= side else observed - 1


def _make_values(built, asked: dict[str, Metric], learned) -> Callable[[Inputs, np.ndarray], dict[str, float]]:
    """`(inputs, result uint8 [1, H, W, 3]) -> {metric: value}`; a metric that needs larger pictures is left out."""
    shrunk = None if built.task.consistency is None else jax.jit(built.task.consistency)
    settings = built.config.evaluation

    def values(inputs, result):
        originals = picture_set(inputs.pictures, learned)
        consistency = None if inputs.found else shrunk
        compared = Compared(
            *(picture_set(result, learned), originals, inputs.observed, consistency, learned),
            batch_size=1,
            channel=settings.channel,
            border=settings.border,
            span=measuring.span_of(built.config),
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
        # A condition may have other levels than its picture.
        shape = shape_of(experiment, low.shape[:2], inputs.pictures.dtype)
        key = drawing.make_key(seed)
        return draw_observed(model, rows, planner(shape), shape, [low], np.array([number], np.int32), key)[0][None]

    return draw


def _fingerprint(what: dict, inputs: Inputs, models: dict[str, Model], method: Method, number: int) -> str:
    config = models[method.model].experiment.config
    digest = hashlib.sha256(np.ascontiguousarray(inputs.pictures)).hexdigest()
    what |= {"picture": digest, "number": number, "sampling": config.sampling.to_dict(), "by": "seed"}
    if inputs.observed is not None:
        what |= {"observed": hashlib.sha256(np.ascontiguousarray(inputs.observed)).hexdigest()}
    what |= {"compute_dtype": config.compute_dtype}
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _mean(each: list[dict[str, float]]) -> dict[str, float]:
    """Of each metric that all have."""
    return {name: float(np.mean([values[name] for values in each])) for name in METRICS if all(name in v for v in each)}


def _means(measured):
    """The table's rows: of each method the means over pictures, and with several seeds the spreads of these means."""
    rows = []
    for name in dict.fromkeys(head["name"] for head, _ in measured):
        of_method = [(head, seeds) for head, seeds in measured if head["name"] == name]
        head = {key: of_method[0][0][key] for key in ("name", "model", "sampler", "steps")}
        of_seeds = [_mean(values) for values in zip(*(seeds for _, seeds in of_method), strict=True)]
        values = _mean(of_seeds)
        if len(of_seeds) > 1:
            values |= {f"{key}_spread": float(np.std([seed[key] for seed in of_seeds], ddof=1)) for key in values}
        rows.append(head | values)
    return rows


def _not_measured(source, settings):
    """A note where there are more pictures than are measured."""
    if settings.pictures < len(source):
        yield f"the first {settings.pictures} of {len(source)}; --config.evaluation.pictures={len(source)} measures all"


def _exact(by_picture, table):
    """A note of pictures that the last method gives back to the bit, which make a mean infinite."""
    metric = next(name for name in METRICS if name in table[0])
    same = [row["picture"] for row in by_picture if row["name"] == table[-1]["name"] and math.isinf(row[metric])]
    if same:
        title = METRICS[metric].title
        yield f"infinite {title}: {len(same)} results are the original itself, {shown(same[0])} the first"


def _worst(by_picture, table):
    """A note that names the pictures with the worst first metric of the last method."""
    metric = next(name for name in METRICS if name in table[0])
    rows = [row for row in by_picture if row["name"] == table[-1]["name"]]
    rows = sorted(rows, key=lambda row: row[metric], reverse=not METRICS[metric].higher_is_better)
    named = ", ".join(f"{shown(row['picture'])} {row[metric]:{METRICS[metric].digits}}" for row in rows[:_WORST])
    return f"worst {METRICS[metric].title} of {table[-1]['name']}: {named}"


def _left_out(asked, by_picture, notes):
    """Notes of metrics that some picture is too small for, of which the table then has none."""
    for name in asked:
        first = by_picture[0]["name"]
        small = [row["picture"] for row in by_picture if name not in row and row["name"] == first]
        if small and not any(note.startswith(f"without {name}:") for note in notes):
            yield f"without {name}: {len(small)} pictures are too small for it, {shown(small[0])} the first"


def _middles(built, inputs: Inputs, results: dict[str, np.ndarray]) -> dict[tuple, Pair]:
    """Of a picture, its baselines and results: the middle, at most _SHOWN pixels a side, with what was observed."""
    # What is smaller by no whole number cannot be cut at whole pixels.
    whole = built.task.scale == int(built.task.scale) or inputs.baseline is None
    observed = inputs.observed if whole else inputs.baseline
    pictures = {("baseline", name): picture for name, picture in inputs.baselines.items()}
    pictures |= {("drawn", name): picture for name, picture in results.items()} | {("original",): inputs.pictures}
    side = min(_SHOWN, *inputs.pictures.shape[1:3]) // built.task.divisor * built.task.divisor
    return {what: middle(Pair(picture[0], observed[0]), side) for what, picture in pictures.items()}


def _picture_columns(built, each: list[dict[tuple, Pair]]):
    """The middles of pictures as columns of one size: what was observed, the baselines, the results, the originals."""
    side = min(min(shows["original",].image.shape[:2]) for shows in each)
    columns = {what: indexed.stack(middle(shows[what], side) for shows in each) for what in each[0]}

    def named(kind):
        return {what[1]: pair.image for what, pair in columns.items() if what[0] == kind}

    original, observed = columns["original",]
    return tables.picture_columns(built, Inputs(original, {}, observed, named("baseline")), named("drawn"))
