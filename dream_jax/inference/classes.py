"""The classes of pictures that a model is asked for."""

import re
from collections.abc import Sequence

import numpy as np

from dream_jax.errors import UserError, shown, some
from dream_jax.experiment import Experiment
from dream_jax.inference import drawing
from dream_jax.tasks import Task


def parse(experiment: Experiment, wanted: str | None = None) -> list[int]:
    """The numbers of classes that are named, or numbered, in a list like A,B; all for None.

    Raises UserError for a class that the model does not have; of a model without classes for any.
    """
    number = experiment.task.classes
    if wanted is None or not number:
        if wanted is not None:
            raise UserError(f"--class {shown(wanted)[:100]}: this model knows no classes")
        return list(range(number))
    names = {name: i for i, name in enumerate(experiment.config.data.classes)}
    # A name may hold a comma itself.
    return [_number(name, names, number) for name in ([wanted] if wanted in names else wanted.split(","))]


def _number(name, names, number):
    found = int(name) if re.fullmatch(r"\d{1,6}", name, re.ASCII) else number
    found = names.get(name, found)
    if found >= number:
        known = f"{some(names)}, or " if names else ""
        raise UserError(f"--class {shown(name)[:100]}: choose {known}a number from 0 to {number - 1}")
    return found


def inputs_of(task: Task, numbers, sides: tuple[int, int], kinds: Sequence[int] = ()) -> dict:
    """What `drawing.draw_pictures` takes for pictures of these numbers, of the classes `kinds` in turn, else of all."""
    if not task.classes:
        return drawing.no_inputs(len(numbers), *sides)
    kinds = np.asarray(kinds if len(kinds) else range(task.classes), np.uint16)
    label = kinds[np.asarray(numbers) % len(kinds)]
    return {"cond": np.asarray(task.condition(label[:, None, None, None], sides))}


def listed(experiment: Experiment, numbers) -> str:
    """The classes of pictures of these numbers, where every class comes in turn; empty where there are no classes."""
    names = names_of(experiment)
    return ", ".join(names[number % len(names)] for number in numbers) if names else ""


def names_of(experiment: Experiment) -> list[str]:
    """What the classes of a model are called: numbers where they have no names; none where there are no classes."""
    return list(experiment.config.data.classes or map(str, range(experiment.task.classes)))
