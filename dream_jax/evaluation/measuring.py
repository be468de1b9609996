"""Measures of trained models over held-out pictures, for each sampler, number of steps and seed."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from dream_jax.data import held_out
from dream_jax.data.indexed import images_of
from dream_jax.errors import UserError, shown
from dream_jax.evaluation import tables
from dream_jax.evaluation.inputs import Inputs, check_models, consistency_of, make_inputs
from dream_jax.evaluation.journal import add_row, read_rows
from dream_jax.experiment import Experiment
from dream_jax.inference import classes, drawing
from dream_jax.inference.drawing import Model
from dream_jax.metrics import Compared, Metric, chosen, dense, picture_set, weights
from dream_jax.training import integrity


class Method(NamedTuple):
    """How results are made: a model's name, and its sampler with so many network evaluations."""

    model: str
    sampler: str
    steps: int


class Measures(NamedTuple):
    """What is measured of drawn pictures.

    Attributes:
      metrics: by their names in tables, in order.
      compare: `(results uint8 [N, H, W, 3] of one seed, those of every seed) -> Compared`.
      about_learned: {network: the files of its weights}, for the record.
      identity: what the values depend on besides the pictures drawn.
    """

    metrics: dict[str, Metric]
    compare: Callable[..., Compared]
    about_learned: dict[str, dict]
    identity: dict


def evaluate(models: dict[str, Model], pictures, console: Console, journal: Path | None = None) -> tuple[dict, dict]:
    """Evaluates `config.evaluation`, the first model's, on pictures uint8 [N, H, W, 3], for models of one task.

    The pictures may be an `indexed.Pair`, with low-resolution ones that are there.

    Restoration is measured picture by picture, and as a set; generation as a set. The first rows are the baselines:
    what was observed, as it is (of super-resolution enlarged, and named `bicubic`, after the kernel), and what a
    classical method makes of it; of generation pictures trained on.

    Args:
      journal: a file that keeps finished rows, so that an evaluation that was stopped goes on after them.

    Returns:
      (record, pictures): the result file's content, and what to look at, {label: uint8 [n, H, W, 3]}.
    """
    first = next(iter(models.values()))
    built, settings = first.experiment, first.experiment.config.evaluation
    data_note = check_models(models)
    inputs = make_inputs(built, pictures, classical=True, console=console)
    count = len(inputs.pictures)
    measures = load_measures(built, inputs)
    draw = {name: make_drawer(model, inputs.given) for name, model in models.items()}
    digests = {name: integrity.digest(model.params) for name, model in models.items()}
    baselines = _baseline_rows(built, inputs, measures)
    rows, looked_at = _measure_rows(models, measures, draw, digests, count, console, journal)
    table = [*baselines, *rows]
    few = [
        f"{name} from no more than {metric.comparable_above} pictures compares only with that of as many"
        for name, metric in measures.metrics.items()
        if count <= metric.comparable_above
    ]
    record = {
        "protocol": settings.protocol,
        "about_protocol": {name: measures.metrics[name].about for name in tables.measured(table)},
        "rows": table,
        "models": about_models(models, digests),
        "step": first.step,
        "pictures": count,
        "split": "held-out" if settings.against == "eval" else "training",
        "crop": inputs.pictures.shape[1],
        "seeds": list(settings.seeds),
        "learned": measures.about_learned,
        "notes": [*([data_note] if data_note else []), *few, *_unpainted(inputs), *inputs.notes],
    }
    if built.task.beside == "low":
        record |= {"scale": built.task.scale, "kernel": built.config.task.kernel}
    if built.task.classes and not built.task.paired:
        names, shown = classes.names_of(built), inputs.observed[: built.config.samples.count]
        record["shown_classes"] = [names[label] for label in shown.ravel()]
    return record, _pictures_to_look_at(models, measures, inputs, draw, rows, looked_at)


def _unpainted(inputs):
    """A note of pictures that come back to the bit, whatever model there is."""
    count = len(inputs.pictures)
    if inputs.painted not in (None, count):
        yield (
            f"in {count - inputs.painted} of {count} pictures the mask leaves nothing to paint in the middle that is "
            "evaluated, and PSNR is infinite; give a larger evaluation.crop, or evaluation.whole=True"
        )


def methods_of(models: dict[str, Model]) -> list[Method]:
    """All that an evaluation of models measures, by the first one's config."""
    settings = next(iter(models.values())).experiment.config.evaluation
    return [
        Method(name, sampler, steps) for name in models for sampler in settings.samplers for steps in settings.steps
    ]


def title_of(models: dict[str, Model], method: Method) -> str:
    """What a method is called in a table of these models."""
    return f"{method.sampler} {method.steps}" if len(models) == 1 else "{}: {} {}".format(*method)


def about_models(models: dict[str, Model], digests: dict[str, str]) -> dict[str, dict]:
    """What a result file says of each model; digests: of their weights."""
    return {
        name: {"workdir": model.workdir, "step": model.step, "weights": model.weights, "sha256": digests[name]}
        | {"sampling": model.experiment.config.sampling.to_dict()}
        for name, model in models.items()
    }


def load_metrics(
    settings, paired: bool, of: str = "picture"
) -> tuple[dict[str, Metric], dict[str, dict], dict[str, dict]]:
    """What `config.evaluation` asks for: (metrics, what is known of their networks' files, these networks' weights).

    paired: whether results have originals; of: what they are, see `Task.measured_as`.

    Raises UserError for weights that cannot be had.
    """
    loaded = {name: weights.load(name, settings.weights) for name in settings.learned}
    about = {name: about for name, (_, about) in loaded.items()}
    learned = {name: jax.device_put(values) for name, (values, _) in loaded.items()}
    return chosen(settings.protocol, settings.learned, paired, of), about, learned


def check_learned(settings) -> None:
    """Raises UserError where weights that `config.evaluation` asks for cannot be had: before training, not after it."""
    for name in settings.learned:
        weights.find(name, settings.weights)


def of_pair(asked: dict[str, Metric], compared: Compared) -> dict[str, float]:
    """{metric: value} of one result and its original; paired metrics that need larger pictures are left out."""
    side, cut = min(compared.results.pictures.shape[1:3]), 2 * compared.border
    fitting = {
        name: metric
        for name, metric in asked.items()
        if metric.paired and not metric.of_set and side - cut * (metric.measures == "distortion") >= metric.smallest
    }
    return _values(fitting, compared)


def span_of(config) -> tuple[float, float]:
    """The numbers that black and white mean in the files of a config's pictures; 0 and 1 where it does not say."""
    return tuple(config.data.range) or (0.0, 1.0)


def check_known(of: str, originals, span: tuple[float, float], label: Callable[[int], str]) -> None:
    """Raises UserError for maps of depth of which nothing is known: no mean over pictures has room for them.

    of: what they are, see `Task.measured_as`; label: `(number) -> name` of an original for a person.
    """
    unknown = [n for n, original in enumerate(originals) if of == "depth" and not dense.has_depth(original, span)]
    if unknown:
        more = f", as in {len(unknown) - 1} more" if len(unknown) > 1 else ""
        said = f"no pixel that is measured has a depth above 0{more}; leave out what has none"
        raise UserError(f"{shown(label(unknown[0]))}: {said}")


def check_held_out(built: Experiment, pictures: np.ndarray) -> None:
    """`check_known` of held-out pictures [N, H, W, C]."""
    check_known(
        built.task.measured_as, pictures, span_of(built.config), functools.partial(held_out.label, built.config)
    )


def load_measures(built: Experiment, inputs: Inputs) -> Measures:
    """What `config.evaluation` asks to measure against the held-out pictures, with the networks' weights.

    Raises UserError for weights that cannot be had, fewer pictures than a metric takes, and maps of no depth at all.
    """
    settings, span = built.config.evaluation, span_of(built.config)
    check_held_out(built, inputs.pictures)
    asked = chosen(settings.protocol, settings.learned, built.task.paired, built.task.measured_as)
    fitting = {name for name, metric in asked.items() if len(inputs.pictures) >= metric.fewest}
    for network in settings.learned:
        names = [name for name, metric in asked.items() if metric.weights == network]
        if not fitting.intersection(names):
            fewest = min(asked[name].fewest for name in names)
            there = f"there are {len(inputs.pictures)} held-out pictures only"
            raise UserError(f"evaluation.learned: {network} compares sets of at least {fewest} pictures, and {there}")
    asked, about, learned = load_metrics(settings, built.task.paired, built.task.measured_as)
    asked = {name: metric for name, metric in asked.items() if name in fitting}
    originals = picture_set(inputs.pictures, learned)
    consistency = consistency_of(built, inputs)

    def compare(results, samples):
        sets = picture_set(results, learned), originals
        kept = settings.batch_size, samples, settings.channel, settings.border, span
        return Compared(*sets, inputs.observed, consistency, learned, *kept)

    identity = {
        "pictures": hashlib.sha256(np.ascontiguousarray(inputs.pictures)).hexdigest(),
        "learned": about,
        "protocol": settings.protocol,
        "metrics": list(asked),
        "seeds": list(settings.seeds),
    }
    if inputs.observed is not None:
        identity["observed"] = hashlib.sha256(np.ascontiguousarray(inputs.observed)).hexdigest()
    if (settings.channel, settings.border) != ("rgb", 0):
        identity |= {"channel": settings.channel, "border": settings.border}
    return Measures(asked, compare, about, identity)


def measure(measures: Measures, drawn: list[np.ndarray]) -> dict[str, float]:
    """Means and, with several seeds, spreads (standard deviations) of pictures drawn, [seeds][N, H, W, 3]."""
    of_one = {name: metric for name, metric in measures.metrics.items() if not metric.over_seeds}
    of_all = {name: metric for name, metric in measures.metrics.items() if metric.over_seeds}
    compared = [measures.compare(pictures, drawn) for pictures in drawn]
    seeds = [_values(of_one, seed) for seed in compared]
    values = {name: float(np.mean([seed[name] for seed in seeds])) for name in seeds[0]}
    if len(drawn) > 1:
        values |= {f"{name}_spread": float(np.std([seed[name] for seed in seeds], ddof=1)) for name in seeds[0]}
        values |= _values(of_all, compared[0])
    return values


def _values(metrics, compared):
    return {name: float(np.mean(value)) for name, value in values_of(metrics, compared).items()}


def values_of(metrics: dict[str, Metric], compared: Compared) -> dict[str, np.ndarray | float]:
    """{metric: its value for each picture [N], or one of the set}, without those whose task lacks what they need."""
    found = {name: metric.function(compared) for name, metric in metrics.items()}
    return {name: value for name, value in found.items() if value is not None}


def _baseline_rows(built, inputs, measures):
    if built.task.paired:
        named = inputs.baselines
    else:
        name, other = ("training", "train") if built.config.evaluation.against == "eval" else ("held-out", "eval")
        pictures = images_of(held_out.eval_pictures(built.config, other))[: len(inputs.pictures)]
        named = {f"{name} pictures": pictures}
    return [baseline_row(name) | measure(measures, [pictures]) for name, pictures in named.items()]


def baseline_row(name: str) -> dict:
    """The head of a row that no model made."""
    return {"name": name, "model": None, "sampler": None, "steps": 0}


def make_drawer(model: Model, given: dict, draw: Callable | None = None) -> Callable[..., np.ndarray]:
    """`draw(sampler, steps, seed, count=None, advance=...) -> uint8 [N, H, W, 3]` of a model, for `Inputs.given`.

    count: only so many, the first ones. `advance(n)` is called when n more are drawn.

    Args:
      draw: `drawing.make_draw` of the model's experiment, where there is one already.
    """
    draw = draw or drawing.make_draw(model.experiment, model.mesh)
    batch_size = model.experiment.config.evaluation.batch_size

    def drawer(sampler, steps, seed, count=None, advance=lambda count: None):
        rows, key = drawing.make_rows(model.experiment, sampler, steps), drawing.make_key(seed)
        inputs = {name: array[:count] for name, array in given.items()}
        return drawing.draw_pictures(draw, model.params, inputs, rows, key, model.mesh, batch_size, advance)

    return drawer


def _measure_rows(models, measures, draw, digests, count, console, journal):
    """(the models' rows, the first seed's first pictures by (model, sampler, steps) of those that were drawn)."""
    config = next(iter(models.values())).experiment.config
    settings, finished, jobs = config.evaluation, read_rows(journal), methods_of(models)
    rows, looked_at = [], {}
    with drawing.progress_bar(console) as bar:
        job = bar.add_task("evaluating", total=len(jobs) * len(settings.seeds) * count)
        for name, sampler, steps in jobs:
            title = title_of(models, Method(name, sampler, steps))
            about = {"name": title, "model": name, "sampler": sampler, "steps": steps}
            key = _fingerprint(about, digests[name], measures.identity, models[name].experiment.config)
            if key in finished:
                bar.advance(job, len(settings.seeds) * count)
                rows.append(finished[key])
                continue
            bar.update(job, description=title)
            drawn = [draw[name](sampler, steps, seed, advance=lambda n: bar.advance(job, n)) for seed in settings.seeds]
            rows.append(about | measure(measures, drawn))
            if journal is not None:
                add_row(journal, key, rows[-1])
            looked_at[name, sampler, steps] = drawn[0][: config.samples.count]
        bar.update(job, description="evaluated")
    return rows, looked_at


def _fingerprint(about, weights_digest, identity, config) -> str:
    what = {"row": about, "weights": weights_digest, "measured": identity, "sampling": config.sampling.to_dict()}
    what["compute_dtype"] = config.compute_dtype
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _pictures_to_look_at(models, measures, inputs, draw, rows, looked_at):
    """The columns of a grid: for each model the fewest, the best and the most steps of its best sampler."""
    built = next(iter(models.values())).experiment
    config, settings = built.config, built.config.evaluation
    shown = min(config.samples.count, len(inputs.pictures))
    # The table's first metric is its most telling one.
    merit, metric = next(iter(measures.metrics.items()))
    best_of = max if metric.higher_is_better else min
    results = {}
    for name, model in models.items():
        best = best_of((row for row in rows if row["model"] == name), key=lambda row: row[merit])
        for steps in sorted({min(settings.steps), best["steps"], max(settings.steps)}):
            method = tables.label(model.experiment, best["sampler"], steps)
            title = method if len(models) == 1 else f"{name}, {best['sampler']} {steps}"
            drawn = looked_at.get((name, best["sampler"], steps))
            # Rows that an earlier call finished have no pictures any more.
            results[title] = draw[name](best["sampler"], steps, settings.seeds[0], shown) if drawn is None else drawn
    return tables.picture_columns(built, inputs.first(shown), results)
