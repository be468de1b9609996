"""A trained model on a person's own pictures."""

import functools
import math
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from dream_jax.errors import UserError, shown
from dream_jax.experiment import Experiment
from dream_jax.files import images, tiff_tags
from dream_jax.files.numbers import of_bits
from dream_jax.files.picture import Picture
from dream_jax.inference import drawing, large, masks, observation, trained
from dream_jax.inference.groups import Group, Item, Wanted, groups_of
from dream_jax.inference.jobs import count_results, list_jobs, list_passed_over
from dream_jax.inference.memory import free_bytes, program_bytes
from dream_jax.inference.report import ENLARGING, RESTORING, Report
from dream_jax.inference.tile_plans import Planner, check_tiles, draw_observed

# Of every file, as it is.
ALL_PAGES = Wanted()
# Files that a message names.
_NAMED = 10
_KEEP_NUMBERS = ".png", ".tif", ".tiff"


def upscale(workdir, *arguments, **options) -> int:
    """`restore` with a super-resolution model; raises UserError for one of another task."""
    experiment = trained.open_experiment(workdir)
    name = experiment.config.task.name
    if experiment.task.paired and name != "super_resolution":
        raise UserError(f"{workdir}: this model enlarges nothing, its task is {name}; use restore")
    return restore(workdir, *arguments, **options)


def restore(
    workdir,
    sources,
    output,
    console: Console,
    sampler: str = "ddim",
    steps: int = 10,
    seed: int = 0,
    samples: int = 1,
    suffix: str | None = None,
    memory: float | None = None,
    tile: int | None = None,
    overwrite: bool = False,
    overrides=(),
    checkpoint: str = "latest",
    wanted: Wanted = ALL_PAGES,
    mask=None,
    scale: float | None = None,
) -> int:
    """Makes of pictures of any size what a trained model makes of what is observed, with its EMA weights.

    Args:
      sources, output, suffix: see `jobs.list_jobs`.
      sampler: a name in `sampling.SAMPLERS`.
      steps: network evaluations for each picture.
      seed, samples: each of the seeds seed .. seed + samples - 1 gives a result. A picture's noise depends on the seed
        and on the picture's name within the folder, on no other picture.
      memory: GiB that the program may take on each device, all in all; by default half of what is free once it runs.
        Pictures that need more are done in overlapping tiles, the largest that fit; TIFF files that need more even so,
        or have more pixels than are read whole, in windows.
      tile: side of the tiles in pixels of the result, instead of one found by memory.
      overrides: `--config.sampling.KEY=VALUE` arguments.
      checkpoint: latest, best or a step.
      wanted: of files: their pages, and what their numbers mean.
      mask: a file or a folder, see `masks.find`, of a task that takes masks.
      scale: how many times super-resolution enlarges, instead of as many as it was trained to.

    Returns the exit status: 0, or 1 where a picture could not be read, drawn or written; each is named on stderr at
    the end with its reason, and the others are done. Raises UserError, before anything is loaded or compiled, where
    nothing can be done at all.
    """
    experiment = _open(workdir, overrides, scale)
    wanted = wanted._replace(masks=_find_masks(workdir, experiment, mask))
    rows = drawing.make_rows(experiment, sampler, steps)
    _check_options(experiment, seed, samples, memory, tile)
    step = trained.step_of(workdir, experiment, checkpoint)
    jobs, there = list_jobs(sources, output, suffix, range(seed, seed + samples), overwrite)
    _check_results(experiment, wanted, jobs)
    _tell_passed_over(sources, console)
    _tell_scale(workdir, scale, console)
    already = f", {there} already there, however made" if there else ""
    if not jobs:
        console.print(f"nothing to do{already}; --overwrite makes them again", markup=False)
        return 0
    with drawing.progress_bar(console) as bar:
        times = f"{experiment.task.scale:g}x " if experiment.task.scale != 1 else ""
        report = Report(bar, count_results(jobs), ENLARGING if times else RESTORING)
        planner = _make_planner(workdir, experiment, step, rows, memory, tile, report)
        _restore(jobs, experiment, planner, rows, wanted, overwrite, report, console)
    return report.tell(console, len(jobs), f"{times}into {_place(jobs, output)}{already}")


def _open(workdir, overrides, scale):
    experiment = trained.open_experiment(workdir, overrides, only_sampling=True, scale=scale)
    if not experiment.task.paired:
        made = f"it makes pictures from nothing ({experiment.config.task.name})"
        raise UserError(f"{workdir}: this model restores none, {made}; choose another, or use generate")
    return experiment


def _place(jobs, output):
    """Where the results lie: of one picture's several none has the name that was given."""
    first, *more = (result for job in jobs for _, result in job.results)
    within = Path(output).expanduser() in (first, *first.parents)
    return shown(output) if within else shown(first) + (f" and {len(more)} more" if more else "")


def _find_masks(workdir, experiment, place):
    takes, name = experiment.task.beside == "mask", experiment.config.task.name
    if takes and place is None:
        raise UserError(f"{workdir}: {name} needs --mask FILE_OR_FOLDER, white where there is to be painted")
    if not takes and place is not None:
        raise UserError(f"--mask {shown(place)}: {name} takes no masks")
    return masks.find(place) if takes else None


def _check_results(experiment, wanted, jobs):
    """Raises UserError for maps in files that change their numbers, and for results that would replace a mask."""
    if wanted.masks is not None:
        masks.check_results(wanted.masks, jobs)
    for result in (result for job in jobs for _, result in job.results):
        if observation.is_map(experiment.task) and result.suffix.lower() not in _KEEP_NUMBERS:
            raise UserError(
                f"{shown(result)}: a map's numbers are kept by {' '.join(_KEEP_NUMBERS)}; use one, or --format png"
            )


def _tell_scale(workdir, scale, console):
    low, high = trained.scales_of(workdir)
    if scale is not None and low == high != scale:
        console.print(f"{workdir}: trained to enlarge {low:g} times, used for {scale:g} times", markup=False)


def _make_planner(workdir, experiment, step, rows, memory, tile, report):
    """`() -> Planner`, which loads the weights when a first picture was read."""

    @functools.cache
    def planner():
        model = trained.load_weights(workdir, experiment, step)
        half = free_bytes(model.mesh.local_devices[0]) / 2
        limit, program = (half, 0) if memory is None else (memory * 2**30, program_bytes())
        return Planner(model, rows, limit, tile, lambda share: report.advance(share / len(rows.alpha)), program)

    return planner


def _restore(jobs, experiment, planner, rows, wanted, overwrite, report, console):
    """Makes the results of pictures that fit into memory, then of the others in windows."""
    data, too_large = experiment.config.data, []
    span = data.condition_range if experiment.task.beside == "condition" else data.range
    writer = Writer(experiment, overwrite, report)
    wanted = wanted._replace(span=wanted.span or tuple(span) or None, clip=wanted.clip or data.clip)

    def fits(job):
        if is_too_large := large.is_large(job, experiment, planner, wanted.page):
            too_large.append(job)
        return not is_too_large

    for group in groups_of(filter(fits, jobs), experiment, planner, report, wanted):
        draw_and_write(group, planner().model, rows, writer, report)
    for job in too_large:
        large.restore_and_write(job, planner(), wanted, overwrite, report, console)


def _tell_passed_over(sources, console):
    if others := list_passed_over(sources):
        named = ", ".join(map(shown, others[:_NAMED])) + (", ..." if len(others) > _NAMED else "")
        console.print(f"{len(others)} files are no pictures by their names, and are passed over: {named}", markup=False)


def _check_options(experiment, seed, samples, memory, tile):
    if samples < 1:
        raise UserError(f"--samples {samples}: it must be at least 1")
    if not 0 <= seed <= 2**32 - samples:
        raise UserError(f"--seed {seed}: seeds are whole numbers from 0 to 2^32 - 1")
    if memory is not None and not 0 < memory < math.inf:
        raise UserError(f"--memory {memory}: it must be a number of GiB greater than 0")
    check_tiles(experiment, tile)


class Writer:
    """Writes results as soon as all their pages are drawn."""

    def __init__(self, experiment: Experiment, overwrite: bool, report: Report):
        self._experiment, self._overwrite, self._report, self._waiting = experiment, overwrite, report, {}

    def add(self, item: Item, levels: np.ndarray) -> None:
        """A page's levels [h, w, C] as the model drew them."""
        drawn = self._waiting.setdefault(item.result, {})
        drawn[item.page] = _as_its_picture(item, self._experiment, levels)
        self._report.advance(1)
        if len(drawn) < item.pages:
            return
        pages = [page for _, page in sorted(self._waiting.pop(item.result).items())]
        try:
            lost = images.check_result(item.result, pages)
            images.write_pages(item.result, pages, self._overwrite)
        except UserError as error:
            self._report.failed(item.job, error, 0)
        else:
            notes = [f"{shown(item.result)}: without {loss}, which {item.result.suffix} cannot hold" for loss in lost]
            if item.picture.alpha is not None and observation.is_map(self._experiment.task):
                notes.append(f"{shown(item.result)}: without the picture's transparency, which a map does not have")
            if item.pages < item.picture.pages:
                left = item.picture.pages - item.pages
                notes.append(f"{shown(item.job.picture)}: {left} further pages are left out")
            self._report.written(notes)


def draw_and_write(group: Group, model: drawing.Model, rows, writer: Writer, report: Report) -> None:
    """Draws a group and gives its pages to the writer."""
    before, start = report.completed, time.monotonic()
    report.say(report.doing + (f" in tiles of {group.plan.tile}" if group.plan.tile else ""))
    try:
        drawn = draw_group(model, rows, group)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        # Another program may have taken the memory that was free; the first line says what was asked for.
        report.go_back(before)
        for item in group.items:
            reason = str(error).partition("\n")[0]
            report.failed(item.job, f"{shown(item.job.picture)}: cannot be drawn ({reason})")
        return
    report.go_back(before)
    report.drawn(sum(levels[..., 0].size for levels in drawn), time.monotonic() - start)
    for item, levels in zip(group.items, drawn, strict=True):
        writer.add(item, levels)


def draw_group(model: drawing.Model, rows, group: Group) -> list[np.ndarray]:
    """The results of a group, levels [h, w, C] each; the noise of each depends on its name and the seed.

    All pages of a file have one noise: an animation's then flickers no more than the network does.
    """
    observed = [item.observed for item in group.items]
    numbers = [item.job.number for item in group.items]
    return draw_observed(model, rows, group.plan, group.shape, observed, numbers, drawing.make_key(group.seed))


def _as_its_picture(item: Item, experiment: Experiment, levels) -> Picture:
    """A result with what is kept of its picture."""
    task, has = experiment.task, item.picture.colours.shape[2]
    levels = observation.with_bands(levels, observation.result_bands(task, has))
    alpha = item.picture.alpha
    if alpha is not None and alpha.shape != levels.shape[:2]:
        alpha = images.resize_band(alpha, levels.shape[1::-1])
    extras = dict(item.picture.extras)
    if levels.shape[2] != has:
        # It is of other colours.
        extras.pop("icc_profile", None)
    if "tags" in extras:
        down, across = (made / has for made, has in zip(levels.shape, item.observed.shape[:2], strict=False))
        extras["tags"] = tiff_tags.enlarged(extras["tags"], across, down)
    if not observation.is_of_condition(task):
        return item.picture._replace(colours=levels, alpha=alpha, extras=extras)
    levels, numbers = observation.with_numbers(experiment, levels)
    if observation.is_map(task):
        # A map is of no camera, and has no colours.
        extras = {name: value for name, value in extras.items() if name not in ("icc_profile", "exif")}
        alpha = None
    if alpha is not None:
        alpha = of_bits(alpha, 8 * levels.dtype.itemsize)
    return item.picture._replace(colours=levels, alpha=alpha, extras=extras, numbers=numbers)
