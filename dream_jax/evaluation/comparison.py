"""Variants of one experiment, trained from several seeds and measured at several points of their training."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from rich.console import Console

from dream_jax.config import checks, command_line, keys
from dream_jax.data import held_out
from dream_jax.errors import UserError, shown
from dream_jax.evaluation import measuring
from dream_jax.evaluation.inputs import make_inputs
from dream_jax.evaluation.journal import add_row, read_rows
from dream_jax.experiment import build
from dream_jax.inference import drawing, trained
from dream_jax.metrics import METRICS
from dream_jax.training import run_log

# Pictures of each variant that the report shows.
SHOWN = 8


class Comparison(NamedTuple):
    """What is compared.

    Attributes:
      base: the config that all variants change.
      variants: {name: {config key: value}}; the first is what the others are held against.
      seeds: of training.
      points: numbers of steps, rising, at which every run is measured; the last is where it ends.
    """

    base: ConfigDict
    variants: dict[str, dict]
    seeds: tuple[int, ...]
    points: tuple[int, ...]


class Member(NamedTuple):
    """One run of a comparison: a variant from a seed."""

    variant: str
    seed: int
    config: FrozenConfigDict
    workdir: Path


def load(path: str, arguments: list[str]) -> Comparison:
    """The comparison of a config file that also defines `get_comparison()`: a dict of variants, seeds and points.

    Raises UserError for a file without it, unknown keys, and variants that are no sound config.
    """
    base = command_line.override(command_line.load(path), arguments)
    about = command_line.use(path, _comparison_of)
    points, seeds = tuple(about["points"]), tuple(about["seeds"])
    if sorted(set(points)) != list(points) or points[0] < 1:
        raise UserError(f"{shown(path)}: points must be rising numbers of steps")
    bad = [name for name in about["variants"] if not str(name).isprintable() or "/" in str(name)]
    if bad:
        raise UserError(f"{shown(path)}: a variant's name is that of a folder, and cannot be {bad[0]!r}")
    found = Comparison(base, dict(about["variants"]), seeds, points)
    members(found, Path())
    return found


def _comparison_of(module):
    if "get_comparison" not in module:
        raise UserError("it must also define get_comparison(), see docs/comparing.md")
    about = module["get_comparison"]()
    wanted = {"variants": dict, "seeds": (tuple, list), "points": (tuple, list)}
    if not isinstance(about, dict) or set(about) != set(wanted):
        raise UserError(f"get_comparison() must return a dict of {', '.join(wanted)}")
    for name, kind in wanted.items():
        if not isinstance(about[name], kind) or not about[name]:
            raise UserError(f"{name} must be a {'dict' if kind is dict else 'list'} with something in it")
    return about


def members(comparison: Comparison, workdir: Path) -> list[Member]:
    """The runs of a comparison, all variants of a seed before those of the next."""
    every = math.gcd(*comparison.points)
    found = []
    for seed in comparison.seeds:
        for name, changes in comparison.variants.items():
            ours = {"seed": seed, "steps": comparison.points[-1], "checkpoint.every": every}
            ours["checkpoint.keep"] = comparison.points[-1] // every
            config = keys.nest(keys.flatten(comparison.base) | changes | ours)
            try:
                found.append(Member(name, seed, checks.validate(config), workdir / "runs" / f"{name}-{seed}"))
            except UserError as error:
                raise UserError(f"variant {name}: {error}") from error
    return found


def advance(comparison: Comparison, workdir: Path, train: Callable[[FrozenConfigDict, Path], None], console: Console):
    """Trains and measures what is left to do; the content of the result file.

    A run that is trained, and a row that is measured, are not made again: after a stop, or when variants, seeds or
    points were added, only the rest is done.

    Args:
      train: trains a config in a workdir to its end, going on from where it is.
    """
    all_members = members(comparison, workdir)
    journal, rows = workdir / "measured.jsonl", []
    for number, member in enumerate(all_members, 1):
        left = len(all_members) - number
        console.print(f"{member.variant}, seed {member.seed}: {number} of {len(all_members)} runs, {left} after it")
        rows += _measured(member, comparison.points, journal, train, console)
    config = all_members[0].config
    return {
        "protocol": "comparison",
        "variants": comparison.variants,
        "seeds": list(comparison.seeds),
        "points": list(comparison.points),
        "config": config.to_dict(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "baseline": _baseline(config),
        "rows": rows,
    }


def _measured(member, points, journal, train, console):
    """The rows of a run, measured where the journal lacks them; it is trained where any is lacking."""
    settings, finished = member.config.evaluation, read_rows(journal)
    jobs = [(point, sampler, steps) for point in points for sampler in settings.samplers for steps in settings.steps]
    named = {job: _key(member, *job) for job in jobs}
    left = [job for job in jobs if named[job] not in finished]
    if left:
        train(member.config, member.workdir)
        for job, row in _measure(member, left, console):
            add_row(journal, named[job], row)
        finished = read_rows(journal)
    return [finished[key] for key in named.values()]


def _measure(member, jobs, console):
    """Yields (job, its row) of jobs (point, sampler, steps), those of a point together."""
    experiment = trained.open_experiment(member.workdir)
    settings = experiment.config.evaluation
    inputs = make_inputs(experiment, held_out.eval_pictures(experiment.config))
    measures, clock = measuring.load_measures(experiment, inputs), seconds_of(member.workdir)
    shown = member.config.steps, settings.samplers[0], max(settings.steps)
    with drawing.progress_bar(console) as bar:
        bar_job = bar.add_task(f"measuring {member.variant}", total=len(jobs))
        for point, of_point in itertools.groupby(jobs, key=lambda job: job[0]):
            model = trained.load_weights(member.workdir, experiment, step=point)
            draw = measuring.make_drawer(model, inputs.given)
            for _, sampler, steps in of_point:
                drawn = draw(sampler, steps, settings.seeds[0])
                if (point, sampler, steps) == shown:
                    np.save(member.workdir / "shown.npy", drawn[:SHOWN])
                about = {"variant": member.variant, "seed": member.seed, "point": point, "seconds": clock(point)}
                yield (point, sampler, steps), about | {"sampler": sampler, "steps": steps} | _values(measures, drawn)
                bar.advance(bar_job)


def _key(member, point, sampler, steps):
    config = keys.flatten(member.config)
    # What a run may go on with changes neither its weights nor what is measured.
    passing = "steps", "log_every", "checkpoint.", "samples.", "supervision.", "watch.", "evaluation.samplers"
    what = {key: value for key, value in config.items() if not key.startswith((*passing, "evaluation.steps"))}
    text = json.dumps([what, point, sampler, steps], sort_keys=True, default=str)
    return f"{member.variant}-{member.seed}-{point}-{sampler}-{steps}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _values(measures, drawn):
    """{metric: its value for each picture, or one of the set}, of the one seed that is drawn."""
    of_one = {name: metric for name, metric in measures.metrics.items() if not metric.over_seeds}
    values = measuring.values_of(of_one, measures.compare(drawn, [drawn]))
    return {name: np.asarray(value, float).tolist() for name, value in values.items()}


def _baseline(config):
    experiment = build(config)
    inputs = make_inputs(experiment, held_out.eval_pictures(config))
    if inputs.baseline is None:
        return None
    measures = measuring.load_measures(experiment, inputs)
    return {"name": experiment.task.baseline_name} | _values(measures, inputs.baseline)


def seconds_of(workdir: Path) -> Callable[[int], float]:
    """`point -> seconds of training up to it`, without compiling, pictures and checkpoints, by the run's log."""
    steps, seconds, before = [0], [0.0], 0
    for line in run_log.timing(workdir):
        rate = line.get("steps_per_second")
        if rate:
            seconds.append(seconds[-1] + (line["step"] - before) / rate)
            steps.append(line["step"])
        before = line["step"]
    return lambda point: float(np.interp(point, steps, seconds))


def mean(row: dict, metric: str) -> float:
    """A metric of a row, over its pictures."""
    return float(np.mean(row[metric]))


def of(rows: list[dict], **wanted) -> list[dict]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def metrics_of(rows: list[dict]) -> list[str]:
    """The metrics that were measured, in METRICS' order."""
    return [name for name in METRICS if name in rows[0]]


def reached(rows: list[dict], metric: str, value: float, clock: str) -> float | None:
    """Where the curve of rows, by `clock`, first is as good as a value, between points; None where it never is."""
    rows = sorted(rows, key=lambda row: row[clock])
    sign = 1 if METRICS[metric].higher_is_better else -1
    times, values = [row[clock] for row in rows], [sign * mean(row, metric) for row in rows]
    value *= sign
    for i, found in enumerate(values):
        if found >= value:
            if i == 0 or found == values[i - 1]:
                return float(times[i])
            part = (value - values[i - 1]) / (found - values[i - 1])
            return float(times[i - 1] + part * (times[i] - times[i - 1]))
    return None


def speed_up(record: dict, variant: str, metric: str, clock: str, sampler: str, steps: int) -> list[float | None]:
    """For each seed: the share of the first variant's steps or seconds after which this one has its last value.

    clock: "point" or "seconds". None where it does not come to it.
    """
    first, shares = next(iter(record["variants"])), []
    for seed in record["seeds"]:
        theirs, ours = (
            of(record["rows"], variant=name, seed=seed, sampler=sampler, steps=steps) for name in (first, variant)
        )
        last = max(theirs, key=lambda row: row["point"])
        found = reached(ours, metric, mean(last, metric), clock)
        shares.append(None if found is None else found / last[clock])
    return shares


def difference(record: dict, variant: str, metric: str, sampler: str, steps: int) -> tuple[float, float, float] | None:
    """(mean, low, high) of this variant's last values less the first one's: a paired bootstrap over pictures, 95%.

    Means over seeds are taken first. None for metrics of whole sets.
    """
    last, each = record["points"][-1], []
    for name in (next(iter(record["variants"])), variant):
        rows = of(record["rows"], variant=name, point=last, sampler=sampler, steps=steps)
        each.append(np.mean([np.atleast_1d(row[metric]) for row in rows], axis=0))
    apart = each[1] - each[0]
    if len(apart) == 1:
        return None
    drawn = np.random.default_rng(0).integers(0, len(apart), (2000, len(apart)))
    low, high = np.quantile(apart[drawn].mean(1), (0.025, 0.975))
    return float(apart.mean()), float(low), float(high)
