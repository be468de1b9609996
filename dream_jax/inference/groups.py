"""A person's pictures, read one after the other and grouped by what can be drawn together."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dream_jax.errors import UserError, shown
from dream_jax.experiment import Experiment
from dream_jax.files import images
from dream_jax.files.picture import Picture
from dream_jax.inference import observation
from dream_jax.inference.jobs import Job
from dream_jax.inference.masks import Masks, mask_of
from dream_jax.inference.report import Report
from dream_jax.inference.tile_plans import Plan, Planner, Shape, shape_of


class Wanted(NamedTuple):
    """What is wanted of a person's files.

    page: of those with several, counted from 1; all by default. span and clip: see `numbers_of`. masks: of tasks that
    take them.
    """

    page: int | None = None
    span: tuple[float, float] | None = None
    clip: bool = False
    masks: Masks | None = None


class Item(NamedTuple):
    """A page of a result to make: that of `page`, counted from 0, of `pages`, and what is observed of it."""

    job: Job
    picture: Picture
    observed: np.ndarray
    result: Path
    page: int = 0
    pages: int = 1


class Group(NamedTuple):
    """Pages that are drawn together."""

    plan: Plan
    shape: Shape
    seed: int
    items: list[Item]


def groups_of(
    jobs: list[Job], experiment: Experiment, planner: Callable[[], Planner], report: Report, wanted: Wanted
) -> Iterator[Group]:
    """Reads pictures and yields groups of results of one shape and seed, as large as their plan takes.

    planner: called when a picture was read, not before. Pictures that cannot be read or drawn go to the report.
    """
    waiting = {}
    for job in jobs:
        try:
            pages = _read(job, experiment.task, wanted, report)
        except UserError as error:
            report.failed(job, error, len(job.results))
            continue
        report.say("preparing")
        report.expect((len(pages) - 1) * len(job.results))
        plan_of = planner()
        shapes = [
            shape_of(experiment, seen.shape[:2], observation.result_levels(experiment, seen.dtype)) for _, seen in pages
        ]
        try:
            plans = {shape: plan_of(shape) for shape in shapes}
        except UserError as error:
            report.failed(job, f"{shown(job.picture)}: {error}", len(pages) * len(job.results))
            continue
        for seed, result in job.results:
            for number, ((picture, observed), shape) in enumerate(zip(pages, shapes, strict=True)):
                group = waiting.setdefault((shape, seed), Group(plans[shape], shape, seed, []))
                group.items.append(Item(job, picture, observed, result, number, len(pages)))
                if len(group.items) == plans[shape].batch:
                    yield waiting.pop((shape, seed))
    while waiting:
        yield waiting.pop(next(iter(waiting)))


def _read(job, task, wanted, report):
    """[(page, what is observed of it [h, w, .], levels)] of a picture, all of whose results can be written."""
    page = None if wanted.page is None else wanted.page - 1
    pages = images.read_pages(job.picture, page, wanted.span, wanted.clip)
    for _, result in job.results:
        images.check_result(result, pages, task.sides)
    if observation.has_colours_unused(task, pages[0].colours.shape[2]):
        report.note(observation.COLOURS_UNUSED)
    return [(picture, _observed(job, picture, task, wanted.masks, report)) for picture in pages]


def _observed(job, picture, task, found, report):
    levels = observation.for_model(job.picture, picture, task.given_channels)
    mask = None if found is None else mask_of(found, job, levels.shape[:2])
    if mask is not None and not mask.any():
        report.note(f"{shown(job.picture)}: {observation.NOTHING_PAINTED}")
    return observation.observed_of(task, levels, mask)
