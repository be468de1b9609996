"""A person's pictures, read one after the other and grouped by what can be drawn together."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dream_jax.errors import UserError, shown
from dream_jax.experiment import Experiment
from dream_jax.files import images
from dream_jax.files.picture import Picture, of_channels
from dream_jax.inference.jobs import Job
from dream_jax.inference.report import Report
from dream_jax.inference.tile_plans import Plan, Planner, Shape, shape_of


class Wanted(NamedTuple):
    """What is wanted of a person's files.

    page: of those with several, counted from 1; all by default. span and clip: see `numbers_of`.
    """

    page: int | None = None
    span: tuple[float, float] | None = None
    clip: bool = False


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
            pages = _read(job, experiment.task, wanted)
        except UserError as error:
            report.failed(job, error, len(job.results))
            continue
        report.say("preparing")
        report.expect((len(pages) - 1) * len(job.results))
        plan_of, shapes = planner(), [shape_of(experiment, seen.shape[:2], seen.dtype) for _, seen in pages]
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


def _read(job, task, wanted):
    """[(page, levels [h, w, C] for the model)] of a picture, all of whose results can be written."""
    page = None if wanted.page is None else wanted.page - 1
    pages = images.read_pages(job.picture, page, wanted.span, wanted.clip)
    for _, result in job.results:
        images.check_result(result, pages, task.scale)
    return [(picture, _for_model(job, picture, task.given_channels)) for picture in pages]


def _for_model(job, picture, channels):
    check_bands(job.picture, picture.colours.shape[2], channels)
    return of_channels(picture.colours, channels)


def check_bands(path, has: int, channels: int) -> None:
    """Raises UserError for a file with bands of colour that a model of `channels` cannot be given."""
    if has == 1 and channels not in (1, 3):
        raise UserError(f"{shown(path)}: it is grey, and the model was trained on {channels} bands")
    if has not in (1, channels):
        raise UserError(f"{shown(path)}: it has {has} bands of colour, and the model was trained on {channels}")
