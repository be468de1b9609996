"""A person's pictures, read one after the other and grouped by what can be drawn together."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dream_jax.errors import UserError, shown
from dream_jax.experiment import Experiment
from dream_jax.files import images
from dream_jax.inference.jobs import Job
from dream_jax.inference.report import Report
from dream_jax.inference.tile_plans import Plan, Planner, Shape, shape_of


class Item(NamedTuple):
    """A result to make."""

    job: Job
    picture: images.Picture
    result: Path


class Group(NamedTuple):
    """Results that are drawn together."""

    plan: Plan
    shape: Shape
    seed: int
    items: list[Item]


def groups_of(
    jobs: list[Job], experiment: Experiment, planner: Callable[[], Planner], report: Report
) -> Iterator[Group]:
    """Reads pictures and yields groups of results of one shape and seed, as large as their plan takes.

    planner: called when a picture was read, not before. Pictures that cannot be read or drawn go to the report.
    """
    waiting = {}
    for job in jobs:
        try:
            picture = _read(job, experiment.task.scale)
        except UserError as error:
            report.failed(job, error, len(job.results))
            continue
        report.say("preparing")
        plan_of, shape = planner(), shape_of(experiment, picture.colours.shape[:2])
        try:
            plan = plan_of(shape)
        except UserError as error:
            report.failed(job, f"{shown(job.picture)}: {error}", len(job.results))
            continue
        for seed, result in job.results:
            group = waiting.setdefault((shape, seed), Group(plan, shape, seed, []))
            group.items.append(Item(job, picture, result))
            if len(group.items) == plan.batch:
                yield waiting.pop((shape, seed))
    while waiting:
        yield waiting.pop(next(iter(waiting)))


def _read(job, scale):
    picture = images.read_picture(job.picture)
    for _, result in job.results:
        images.check_size(result, *(side * scale for side in picture.colours.shape[:2]))
    return picture
