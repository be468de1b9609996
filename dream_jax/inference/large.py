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
from dream_jax.inference import bands, drawing, out_of_core
from dream_jax.inference.groups import Wanted, check_bands
from dream_jax.inference.jobs import Job
from dream_jax.inference.report import Report
from dream_jax.inference.tile_plans import Planner, shape_of
from dream_jax.tasks import resize

_SUFFIXES = (".tif", ".tiff")


def is_large(job: Job, experiment: Experiment, planner: Callable[[], Planner], page: int | None = None) -> bool:
    """Whether a picture is a TIFF that is to be enlarged in windows: it has more pixels than are read whole, or its
    result does not fit into memory even in tiles. Of a later page, counted from 1, that is not asked: windows have the
    first one.
    """
    if page not in (None, 1) or not windows.is_tiff(job.picture):
        return False
    try:
        with windows.open_tiff(job.picture) as source:
            sides, levels = source.shape[:2], source.dtype
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


def enlarge_and_write(
    job: Job, planner: Planner, wanted: Wanted, overwrite: bool, report: Report, console: Console
) -> None:
    """Makes the results of a picture, one after the other; what fails is told to the report."""
    for seed, result in job.results:
        before = report.completed
        try:
            notes = _enlarge(job, seed, result, planner, wanted, overwrite, report, console)
        except (OSError, UserError, jax.errors.JaxRuntimeError, MemoryError) as error:
            said = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            reason = error if isinstance(error, UserError) else f"{shown(job.picture)}: cannot be enlarged ({said})"
            report.go_back(before)
            report.failed(job, reason)
        else:
            report.go_back(before)
            report.written(notes)


def _enlarge(job, seed, result, planner, wanted, overwrite, report, console):
    if result.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{shown(result)}: a picture too large for memory becomes a TIFF; use .tif, or --format tif")
    model, name = planner.model, shown(job.picture)
    try:
        out_of_core.check_sampling(model.experiment.config.sampling)
    except UserError as error:
        raise UserError(f"{name}: too large for memory; {error}") from error
    with windows.open_tiff(job.picture) as source:
        if wanted.span is not None and source.dtype != np.uint8:
            # 8 bits are levels whatever the range is.
            options = "--range (or the data.range of the run)"
            raise UserError(f"{name}: too large for memory, and in windows there is no {options}")
        check_bands(job.picture, source.shape[2] - source.alpha, model.experiment.task.given_channels)
        try:
            plan = _find_plan(planner, source)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        check_folder(result.parent)
        shape = (*(side * model.experiment.task.scale for side in source.shape[:2]), source.shape[2])
        _check_disk(result, model, planner.rows, plan, math.prod(shape) * source.dtype.itemsize, name, console)
        tick = _ticker(report, len(planner.rows.alpha), math.prod(shape[:2]))
        key = drawing.make_key(seed)
        made = enlarge_in_windows(model, planner.rows, source, plan, job.number, key, result.parent, tick)
        extras = {**source.extras, "tags": tiff_tags.enlarged(source.extras["tags"], model.experiment.task.scale)}
        windows.write_tiff(result, shape, source.dtype, made, extras, source.alpha, overwrite)
        notes = []
        if source.alpha:
            notes.append(f"{name}: colours that nobody sees were enlarged as they are in the file")
        if source.left_out:
            notes.append(f"{shown(result)}: without the picture's tags {some(source.left_out)}")
        if source.more_pages:
            notes.append(f"{name}: only its first page was enlarged; save the others as files of their own")
        return notes


def _find_plan(planner, source):
    written = 4 * windows.TILE * source.shape[1] * planner.model.experiment.task.scale * source.shape[2]
    beside = planner.program + source.held_bytes + written * source.dtype.itemsize
    return out_of_core.find_plan(planner.model, source.shape[:2], planner.limit, planner.tile, beside)


def _check_disk(result: Path, model, rows, plan, result_bytes, name, console):
    """Says what lies on the disk meanwhile; raises UserError where it is more than what is free."""
    taken = out_of_core.scratch_bytes(model, rows, plan)
    free = shutil.disk_usage(result.parent).free
    said = f"a temporary file of {taken / 2**30:.3g} GiB in {shown(result.parent)}" if taken else "no temporary file"
    if taken + result_bytes > free:
        raise UserError(
            f"{name}: enlarging it takes {said}, and the result up to {result_bytes / 2**30:.3g} GiB; "
            f"{free / 2**30:.3g} GiB are free there"
        )
    console.print(f"{name}: enlarged in windows, in tiles of {plan.tile}, with {said}", markup=False)


def _ticker(report, evaluations, pixels):
    start, done = time.monotonic(), 0.0

    def tick(share):
        nonlocal done
        done += share / evaluations
        report.advance(share / evaluations)
        rate = done * pixels / (time.monotonic() - start) / 1e6
        report.say(f"enlarging in windows, {rate:.2g} Mpixel/s")

    return tick


def enlarge_in_windows(
    model: drawing.Model,
    rows: sampling.Rows,
    source: windows.Tiff,
    plan: out_of_core.Plan,
    number: int,
    key,
    folder,
    tick: Callable[[float], None] = lambda share: None,
):
    """Yields the rows of a picture enlarged, from the top: [some rows, W * scale, C] of the source's dtype and C.

    A grey picture is given to the network as equal channels, and the mean of these is what it becomes; transparency is
    enlarged bicubically. The other arguments as for `out_of_core.draw`.

    Raises UserError where the source is damaged, or has other bands than the model takes.
    """
    task, scale = model.experiment.task, model.experiment.task.scale
    low, colours = source.shape[:2], source.shape[2] - source.alpha
    check_bands(source.path, colours, task.given_channels)

    def low_colours(start, stop):
        found = source.rows(start, stop)[..., :colours]
        return np.repeat(found, task.given_channels, -1) if colours == 1 else found

    def low_alpha(start, stop):
        return source.rows(start, stop)[..., colours:]

    def enlarge_alpha(levels):
        return np.asarray(resize.resize(levels, *(side * scale for side in levels.shape[1:3])))

    sides = tuple(side * scale for side in low)
    cond_rows = bands.enlarged(low_colours, low, scale, task.condition)
    cond_rows = bands.filled(cond_rows, sides, plan.sides)
    alpha_rows = bands.enlarged(low_alpha, low, scale, enlarge_alpha) if source.alpha else None
    top = 0
    for strip in out_of_core.draw(model, rows, plan, cond_rows, number, key, folder, tick):
        bottom = min(top + len(strip), sides[0])
        if top < bottom:
            picture = np.asarray(task.to_levels(strip[: bottom - top, : sides[1]], source.dtype))
            if colours == 1:
                picture = np.floor(picture.mean(-1, keepdims=True) + 0.5).astype(source.dtype)
            yield picture if alpha_rows is None else np.concatenate([picture, alpha_rows(top, bottom)], -1)
        top = bottom
