"""Variants of one experiment, trained from several seeds and measured at several points of their training."""

import datetime
import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from rich.console import Console

from dream_jax import tasks
from dream_jax.config import checks, command_line, keys
from dream_jax.config.keys import MOST
from dream_jax.data import held_out
from dream_jax.errors import UserError, shown
from dream_jax.evaluation import measuring
from dream_jax.evaluation.inputs import make_inputs
from dream_jax.evaluation.journal import add_row, read_rows
from dream_jax.experiment import build
from dream_jax.files import atomic
from dream_jax.inference import drawing, trained
from dream_jax.runtime import sharding
from dream_jax.training import run_log
from dream_jax.training.workdir import check_same, checkpoint_folder, with_classes, with_range

# Pictures of each variant that the report shows.
SHOWN = 8

# What points count: updates, or the time they took, see `seconds_of`.
UNITS = ("steps", "seconds")

# The keys that held-out pictures and their measures depend on.
_MEASURED_BY = "task.", "data.", "evaluation.", "image_size"
# The keys in which the runs of a variant differ.
_OF_A_RUN = "seed", "steps"


class Comparison(NamedTuple):
    """What is compared.

    Attributes:
      base: the config that all variants change.
      variants: {name: {config key: value}}; the first is what the others are held against.
      seeds: of training.
      points: rising, at which every run is measured; the last is where it ends.
      unit: of the points, one of UNITS.
    """

    base: ConfigDict
    variants: dict[str, dict]
    seeds: tuple[int, ...]
    points: tuple[int, ...]
    unit: str


class Member(NamedTuple):
    """One run of a comparison: a variant from a seed."""

    variant: str
    seed: int
    config: FrozenConfigDict
    workdir: Path


def load(path: str, arguments: list[str]) -> Comparison:
    """The comparison of a config file that also defines `get_comparison()`, a dict: variants, seeds, points and unit.

    Raises UserError for a file without it, unknown keys, and variants that are no sound config.
    """
    base = command_line.override(command_line.load(path), arguments)
    about = command_line.use(path, _comparison_of)
    points, seeds = tuple(about["points"]), tuple(about["seeds"])
    if sorted(set(points)) != list(points) or points[0] < 1:
        raise UserError(f"{shown(path)}: points must be rising numbers of {about['unit']}")
    bad = [name for name in about["variants"] if not str(name).isprintable() or "/" in str(name)]
    if bad:
        raise UserError(f"{shown(path)}: a variant's name is that of a folder, and cannot be {bad[0]!r}")
    task = tasks.make(base)
    taken = {task.baseline_name, *(task.classical or ())[:1], "original", "held out"} & set(about["variants"])
    if taken:
        raise UserError(f"{shown(path)}: the report has other pictures called {taken.pop()!r}; rename the variant")
    found = Comparison(base, dict(about["variants"]), seeds, points, about["unit"])
    members(found, Path())
    return found


def _comparison_of(module):
    if "get_comparison" not in module:
        raise UserError("it must also define get_comparison(), see docs/comparing.md")
    about = module["get_comparison"]()
    wanted = {"variants": dict, "seeds": (tuple, list), "points": (tuple, list)}
    if not isinstance(about, dict) or set(about) - {"unit"} != set(wanted):
        raise UserError(f"get_comparison() must return a dict of {', '.join(wanted)}, and unit if it is not steps")
    for name, kind in wanted.items():
        if not isinstance(about[name], kind) or not about[name]:
            raise UserError(f"{name} must be a {'dict' if kind is dict else 'list'} with something in it")
    for name in ("seeds", "points"):
        if not all(type(value) is int for value in about[name]):
            raise UserError(f"{name} must be whole numbers")
    if about.get("unit", "steps") not in UNITS:
        raise UserError(f"unit must be one of {', '.join(UNITS)}, not {about['unit']!r}")
    return {"unit": "steps"} | about


def members(comparison: Comparison, workdir: Path) -> list[Member]:
    """The runs of a comparison, all variants of a seed before those of the next."""
    if comparison.unit == "steps":
        every = math.gcd(*comparison.points)
        ending = {"steps": comparison.points[-1], "epochs": None, "checkpoint.every": every}
        ending["checkpoint.keep"] = comparison.points[-1] // every
    else:
        # How many steps that will be is not known before, and the checkpoint of each point must stay.
        ending = {"steps": 0, "epochs": None, "checkpoint.keep": MOST}
    found = []
    for seed in comparison.seeds:
        for name, changes in comparison.variants.items():
            ours = {"seed": seed} | ending
            config = keys.nest(keys.flatten(comparison.base) | changes | ours)
            try:
                config = checks.validate(with_classes(config))
                found.append(Member(name, seed, config, workdir / "runs" / f"{name}-{seed}"))
            except UserError as error:
                raise UserError(f"variant {name}: {error}") from error
            if config.evaluation.whole:
                raise UserError(
                    "evaluation.whole: a comparison measures middle crops; evaluate its runs for whole pictures"
                )
            if config.checkpoint.directory is not None:
                raise UserError("checkpoint.directory: each run of a comparison has its checkpoints in its own workdir")
    return found


def runs(comparison: Comparison, workdir: Path) -> list[Member]:
    """`members`, whose `data.range` is what `data.percentile` asks for: one for all that have the same pictures.

    Raises UserError where there is no folder to measure.
    """
    found, ranges = members(comparison, workdir), {}
    for number, member in enumerate(found):
        data = member.config.data
        asked = data.folder, data.percentile, tuple(data.range)
        if asked not in ranges:
            ranges[asked] = with_range(member.config, member.workdir).data.range
        config = keys.nest(keys.flatten(member.config) | {"data.range": ranges[asked]})
        found[number] = member._replace(config=FrozenConfigDict(config))
    return found


def advance(comparison: Comparison, workdir: Path, train: Callable[[FrozenConfigDict, Path], None], console: Console):
    """Trains and measures what is left to do; the content of the result file.

    The variants of a seed are trained in turns, from one point to the next, so that a machine whose speed changes is as
    fast for all of them. A run that is trained, and a row that is measured, are not made again: after a stop, or when
    variants, seeds or points were added, only the rest is done.

    Args:
      train: trains a config in a workdir to its end, going on from where it is.
    """
    all_members, prepare = runs(comparison, workdir), _make_prepare(console)
    for member in all_members:
        measuring.check_learned(member.config.evaluation)
    journal, rows = workdir / "measured.jsonl", {}
    turns = [
        (member, point)
        for seed in comparison.seeds
        for point in comparison.points
        for member in all_members
        if member.seed == seed
    ]
    for number, (member, point) in enumerate(turns, 1):
        what = f"{member.variant}, seed {member.seed}, to {point} {comparison.unit}"
        console.print(f"{what}: turn {number} of {len(turns)}", markup=False)
        to = functools.partial(_train_to_step if comparison.unit == "steps" else _train_to_second, train)
        shows = point == comparison.points[-1]
        rows[member.variant, member.seed, point] = _measured(
            member, comparison.unit, point, shows, journal, to, prepare, console
        )
    config = all_members[0].config
    return {
        "protocol": "comparison",
        "variants": comparison.variants,
        "seeds": list(comparison.seeds),
        "points": list(comparison.points),
        "unit": comparison.unit,
        "time": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "config": config.to_dict(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "baselines": _baselines(config, prepare),
        "rows": [row for member in all_members for point in comparison.points for row in rows[*member[:2], point]],
    }


def _measured(member, unit, point, shows, journal, train_to, prepare, console):
    """The rows of a run at a point, measured where the journal lacks them; it is trained to it where any is lacking."""
    settings, finished = member.config.evaluation, read_rows(journal)
    jobs = [(sampler, steps) for sampler in settings.samplers for steps in settings.steps]
    named = {job: _key(member, unit, point, *job) for job in jobs}
    left = [job for job in jobs if named[job] not in finished]
    if left:
        check_same(member.workdir, member.config)
        step = train_to(member, point)
        for job, row in _measure(member, point, step, left, shows, prepare, console):
            add_row(journal, named[job], row)
        finished = read_rows(journal)
    return [finished[key] for key in named.values()]


def _train_to_step(train, member, point):
    """Trains a run to a step, if it has not gone there, and on, before; the step."""
    if not _is_saved(member, point):
        if _logged_step(member.workdir) > point:
            raise UserError(
                f"{member.workdir}: the run has gone beyond step {point} and has no checkpoint of it; points that are "
                "added must be later ones"
            )
        train(_ending(member.config, point), member.workdir)
    return point


def _is_saved(member, step):
    return (checkpoint_folder(member.workdir, member.config) / str(step)).is_dir()


def _train_to_second(train, member, point):
    """Trains a run until its steps have taken so many seconds; the step that it is at then.

    It goes there by its rate so far, in whole intervals of the log, and ends within 2% or half an interval.
    """
    path, every = member.workdir / "points.json", member.config.log_every
    reached = json.loads(path.read_text()) if path.exists() else {}
    while str(point) not in reached:
        step = _logged_step(member.workdir)
        seconds = seconds_of(member.workdir)(step)
        left = (point - seconds) * step / seconds if seconds else 2 * every
        # A run that was stopped may have logged more than it has saved.
        if left < max(0.02 * step, every / 2) and _is_saved(member, step):
            reached[str(point)] = step
            atomic.write_json(path, reached)
        else:
            # Short of the point by a tenth, in case that it goes on faster or slower.
            near = left if left < 0.2 * step else 0.9 * left
            train(_ending(member.config, step + every * max(1, round(near / every))), member.workdir)
            if _logged_step(member.workdir) <= step:
                raise UserError(f"{member.workdir}: timing.jsonl does not tell how long its steps took")
    return reached[str(point)]


def _logged_step(workdir):
    return max((line["step"] for line in run_log.timing(workdir)), default=0)


def _ending(config, step):
    return FrozenConfigDict(keys.nest(keys.flatten(config) | {"steps": step}))


def _make_prepare(console):
    """`experiment -> (Inputs, Measures, draw)`, which remembers what the next run can use.

    Most variants are measured in one way, and all runs of a variant are drawn from by one compiled function, see
    `drawing.make_draw`.
    """
    remembered, draws = {}, {}

    def prepare(experiment):
        config = keys.flatten(experiment.config)
        variant = json.dumps({name: value for name, value in config.items() if name not in _OF_A_RUN}, default=str)
        if variant not in draws:
            draws[variant] = drawing.make_draw(experiment, sharding.make_mesh())
        key = json.dumps({name: value for name, value in config.items() if name.startswith(_MEASURED_BY)}, default=str)
        if key not in remembered:
            remembered.clear()
            pictures = held_out.eval_pictures(experiment.config)
            inputs = make_inputs(experiment, pictures, classical=True, console=console)
            remembered[key] = inputs, measuring.load_measures(experiment, inputs)
        return *remembered[key], draws[variant]

    return prepare


def _measure(member, point, step, jobs, shows, prepare, console):
    """Yields (job, its row) of jobs (sampler, steps) at a point, by the checkpoint of a step."""
    experiment = build(member.config)
    settings, seconds = experiment.config.evaluation, seconds_of(member.workdir)(step)
    inputs, measures, draw = prepare(experiment)
    model = trained.load_weights(member.workdir, experiment, step=step)
    draw = measuring.make_drawer(model, inputs.given, draw)
    about = {"variant": member.variant, "seed": member.seed, "point": point, "step": step, "seconds": seconds}
    with drawing.progress_bar(console) as bar:
        for sampler, steps in bar.track(jobs, description=f"measuring {member.variant}"):
            drawn = draw(sampler, steps, settings.seeds[0])
            if shows and (sampler, steps) == (settings.samplers[0], max(settings.steps)):
                np.save(member.workdir / "shown.npy", drawn[:SHOWN])
            yield (sampler, steps), about | {"sampler": sampler, "steps": steps} | _values(measures, drawn)


def _key(member, unit, point, sampler, steps):
    config = keys.flatten(member.config)
    # What a run may go on with changes neither its weights nor what is measured.
    passing = "steps", "log_every", "checkpoint.", "samples.", "supervision.", "watch.", "evaluation.samplers"
    what = {key: value for key, value in config.items() if not key.startswith((*passing, "evaluation.steps"))}
    # So that a key that a later version has more of asks for nothing to be measured again.
    what = {key: value for key, value in what.items() if value != keys.KEYS[key].default}
    text = json.dumps([what, point, *([] if unit == "steps" else [unit]), sampler, steps], sort_keys=True, default=str)
    return f"{member.variant}-{member.seed}-{point}-{sampler}-{steps}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _values(measures, drawn):
    """{metric: its value for each picture, or one of the set}, of the one seed that is drawn."""
    of_one = {name: metric for name, metric in measures.metrics.items() if not metric.over_seeds}
    values = measuring.values_of(of_one, measures.compare(drawn, [drawn]))
    return {name: np.asarray(value, float).tolist() for name, value in values.items()}


def _baselines(config, prepare):
    inputs, measures, _ = prepare(build(config))
    return [{"name": name} | _values(measures, pictures) for name, pictures in inputs.baselines.items()]


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
