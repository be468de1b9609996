"""A person's pictures that are too large for memory: from TIFF to TIFF, in windows; see `out_of_core`."""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from dream_jax import sampling
from dream_jax.errors import UserError, shown, some
from dream_jax.experiment import Experiment
from dream_jax.files import limits, tiff_tags, windows
from dream_jax.files.names import check_folder
from dream_jax.files.numbers import of_bits
from dream_jax.inference import bands, drawing, masks, observation, out_of_core
from dream_jax.inference.groups import Wanted
from dream_jax.inference.jobs import Job
from dream_jax.inference.report import Report
from dream_jax.inference.tile_plans import Planner, shape_of
from dream_jax.tasks import resize

_SUFFIXES = (".tif", ".tiff")


def is_large(job: Job, experiment: Experiment, planner: Callable[[], Planner], page: int | None = None) -> bool:
    """Whether a picture is a TIFF that is to be done in windows: it has more pixels than are read whole, or its
    result does not fit into memory even in tiles. Of a later page, counted from 1, that is not asked: windows have the
    first one.
    """
    if page not in (None, 1) or not windows.is_tiff(job.picture):
        return False
    try:
        with windows.open_tiff(job.picture) as source:
            sides, levels = source.shape[:2], observation.result_levels(experiment, source.dtype)
    except UserError:
        return False
    if math.prod(sides) > limits.most_pixels():
        return True
    plan_of = planner()
    try:
        plan_of(shape_of(experiment, sides, levels))
    except UserError:
        return True
    return False


def restore_and_write(
    job: Job, planner: Planner, wanted: Wanted, overwrite: bool, report: Report, console: Console
) -> None:
    """Makes the results of a picture, one after the other; what fails is told to the report."""
    for seed, result in job.results:
        before = report.completed
        try:
            notes = _restore(job, seed, result, planner, wanted, overwrite, report, console)
        except (OSError, UserError, jax.errors.JaxRuntimeError, MemoryError) as error:
            said = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            reason = error if isinstance(error, UserError) else f"{shown(job.picture)}: cannot be {report.was} ({said})"
            report.go_back(before)
            report.failed(job, reason)
        else:
            report.go_back(before)
            report.written(notes)


def _restore(job, seed, result, planner, wanted, overwrite, report, console):
    if result.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{shown(result)}: a picture too large for memory becomes a TIFF; use .tif, or --format tif")
    model, task, name = planner.model, planner.model.experiment.task, shown(job.picture)
    _check_options(model.experiment, name)
    with (
        windows.open_tiff(job.picture) as source,
        masks.opened(wanted.masks, job, source.shape[:2]) as mask_rows,
    ):
        levels = observation.result_levels(model.experiment, source.dtype)
        _check_numbers(model.experiment, wanted, source, name)
        colours = source.shape[2] - source.alpha
        observation.check_bands(job.picture, colours, task.given_channels)
        shape = (*task.sides(source.shape[:2]), observation.result_bands(task, colours) + source.alpha)
        try:
            plan = _find_plan(planner, source, mask_rows, shape, levels)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        check_folder(result.parent)
        _check_disk(result, planner, plan, math.prod(shape) * levels.itemsize, name, report, console)
        tick = _ticker(report, len(planner.rows.alpha), math.prod(shape[:2]))
        key = drawing.make_key(seed)
        made = restore_in_windows(model, planner.rows, source, plan, job.number, key, result.parent, tick, mask_rows)
        extras = {**source.extras, "tags": tiff_tags.enlarged(source.extras["tags"], task.scale)}
        if shape[2] != source.shape[2]:
            # It is of other colours.
            extras.pop("icc_profile", None)
        windows.write_tiff(result, shape, levels, made, extras, source.alpha, overwrite)
        if observation.has_colours_unused(task, colours):
            report.note(observation.COLOURS_UNUSED)
        return _notes(source, mask_rows, name, result, report)


def _check_numbers(experiment, wanted, source, name):
    """Raises UserError for numbers that are not levels."""
    # 8 bits are levels whatever the range is.
    ranges = wanted.span is not None and source.dtype != np.uint8
    if ranges or (observation.is_of_condition(experiment.task) and experiment.config.data.range):
        options = "--range (or the data.range of the run)"
        raise UserError(f"{name}: too large for memory, and in windows there is no {options}")


def _notes(source, mask_rows, name, result, report):
    """What else is to be told of a result."""
    notes = {
        f"{name}: {observation.NOTHING_PAINTED}": mask_rows is not None and mask_rows.is_black,
        f"{name}: colours that nobody sees were {report.was} as they are in the file": source.alpha,
        f"{shown(result)}: without the picture's tags {some(source.left_out)}": source.left_out,
        f"{name}: only its first page was {report.was}; save the others as files of their own": source.more_pages,
    }
    return [note for note, applies in notes.items() if applies]


def _check_options(experiment, name):
    """Raises UserError for what needs the picture as a whole."""
    try:
        out_of_core.check_sampling(experiment.config.sampling)
        if observation.is_map(experiment.task):
            raise UserError("maps are not made in windows; give more --memory, or cut the picture")
        if experiment.task.scale % 1:
            raise UserError(
                f"in windows the scale is a whole number, not {experiment.task.scale:g}; use another --scale"
            )
    except UserError as error:
        raise UserError(f"{name}: too large for memory; {error}") from error


def _find_plan(planner, source, mask_rows, shape, levels):
    written = 4 * windows.TILE * shape[1] * shape[2] * levels.itemsize
    held = source.held_bytes + (0 if mask_rows is None else mask_rows.held_bytes)
    beside = planner.program + held + written
    return out_of_core.find_plan(planner.model, source.shape[:2], planner.limit, planner.tile, beside)


def _check_disk(result: Path, planner, plan, result_bytes, name, report, console):
    """Says what lies on the disk meanwhile; raises UserError where it is more than what is free."""
    taken = out_of_core.scratch_bytes(planner.model, planner.rows, plan)
    free = shutil.disk_usage(result.parent).free
    said = f"a temporary file of {taken / 2**30:.3g} GiB in {shown(result.parent)}" if taken else "no temporary file"
    if taken + result_bytes > free:
        raise UserError(
            f"{name}: {report.doing} it takes {said}, and the result up to {result_bytes / 2**30:.3g} GiB; "
            f"{free / 2**30:.3g} GiB are free there"
        )
    console.print(f"{name}: {report.was} in windows, in tiles of {plan.tile}, with {said}", markup=False)


def _ticker(report, evaluations, pixels):
    start, done = time.monotonic(), 0.0

    def tick(share):
        nonlocal done
        done += share / evaluations
        report.advance(share / evaluations)
        rate = done * pixels / (time.monotonic() - start) / 1e6
        report.say(f"{report.doing} in windows, {rate:.2g} Mpixel/s")

    return tick


def restore_in_windows(
    model: drawing.Model,
    rows: sampling.Rows,
    source: windows.Tiff,
    plan: out_of_core.Plan,
    number: int,
    key,
    folder,
    tick: Callable[[float], None] = lambda share: None,
    mask_rows: masks.Rows | None = None,
):
    """Yields the rows of a picture's result, from the top: [some rows, W, C], see `result_levels` and `result_bands`.

    A grey picture is given to the network as equal channels; transparency is enlarged bicubically. mask_rows are of a
    task that takes masks; the other arguments as for `out_of_core.draw`.

    Raises UserError where the source is damaged, or has other bands than the model takes.
    """
    task, scale = model.experiment.task, int(model.experiment.task.scale)
    levels = observation.result_levels(model.experiment, source.dtype)
    has, colours = source.shape[:2], source.shape[2] - source.alpha
    observation.check_bands(source.path, colours, task.given_channels)

    def observed_rows(start, stop):
        found = source.rows(start, stop)[..., :colours]
        found = np.repeat(found, task.given_channels, -1) if colours == 1 else found
        return observation.observed_of(task, found, None if mask_rows is None else mask_rows(start, stop))

    def alpha_of(start, stop):
        return source.rows(start, stop)[..., colours:]

    def enlarge_alpha(alpha):
        return of_bits(np.asarray(resize.resize(alpha, *task.sides(alpha.shape[1:3]))), 8 * levels.itemsize)

    sides, made_of = task.sides(has), observation.result_bands(task, colours)
    cond_rows = bands.filled(bands.enlarged(observed_rows, has, scale, task.condition), sides, plan.sides)
    alpha_rows = bands.enlarged(alpha_of, has, scale, enlarge_alpha) if source.alpha else None
    top = 0
    for strip in out_of_core.draw(model, rows, plan, cond_rows, number, key, folder, tick):
        bottom = min(top + len(strip), sides[0])
        if top < bottom:
            picture = np.asarray(task.to_levels(strip[: bottom - top, : sides[1]], levels))
            picture = observation.with_bands(picture, made_of)
            yield picture if alpha_rows is None else np.concatenate([picture, alpha_rows(top, bottom)], -1)
        top = bottom
