"""What a person's picture tells of its result, and what of the picture the result keeps."""

import numpy as np

from dream_jax.errors import UserError, shown
from dream_jax.experiment import Experiment
from dream_jax.files.numbers import SIXTEEN, Numbers, of_bits
from dream_jax.files.picture import Picture, of_channels
from dream_jax.tasks import Task

# What is to be told of results.
NOTHING_PAINTED = "its mask is black, so that there was nothing to paint"
COLOURS_UNUSED = "colours that pictures have are not looked at: only their luminance is, and new ones are made"


def check_bands(path, has: int, channels: int) -> None:
    """Raises UserError for a file with bands of colour that a model of `channels` cannot be given."""
    if has == 1 and channels not in (1, 3):
        raise UserError(f"{shown(path)}: it is grey, and the model was trained on {channels} bands")
    if has not in (1, channels):
        raise UserError(f"{shown(path)}: it has {has} bands of colour, and the model was trained on {channels}")


def for_model(path, picture: Picture, channels: int) -> np.ndarray:
    """The levels [h, w, channels] of a file's page; errors as in `check_bands`."""
    check_bands(path, picture.colours.shape[2], channels)
    return of_channels(picture.colours, channels)


def observed_of(task: Task, levels: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """What is observed of a picture [h, w, C], and of its mask [h, w, 1], levels of the picture's type."""
    return np.asarray(task.given(levels[None], None if mask is None else mask[None]))[0].astype(levels.dtype)


def result_bands(task: Task, has: int) -> int:
    """How many bands of colour a result has: a grey picture stays grey, unless the task makes colours of grey."""
    return 1 if has == 1 and task.observed_channels >= task.channels else task.channels


def result_levels(experiment: Experiment, has: np.dtype) -> np.dtype:
    """The type of a result's levels: a picture's own, but of what is made of conditions that which was trained on."""
    if is_of_condition(experiment.task):
        return np.dtype(np.uint16 if experiment.config.data.bits == 16 else np.uint8)
    return np.dtype(has)


def is_of_condition(task: Task) -> bool:
    """Whether results have bits and numbers of their own, whatever those of the files are that they are made of."""
    return task.beside == "condition"


def is_map(task: Task) -> bool:
    """Whether results are no pictures, but numbers that a file must keep."""
    return task.measured_as != "picture"


def with_numbers(experiment: Experiment, levels: np.ndarray) -> tuple[np.ndarray, Numbers]:
    """(a result's levels, the numbers that they are written as): those of the range, whole or floats, else levels.

    Of what is made of conditions; classes are their levels.
    """
    span = tuple(experiment.config.data.range)
    if experiment.task.measured_as != "classes" and span:
        # Whole numbers up to 255 are too coarse for what 16 bits hold.
        dtype = "uint16" if span[0] >= 0 and 255 < span[1] <= 65535 else "float32"
        return of_bits(levels, 16), Numbers(dtype, *map(float, span))
    return levels, Numbers() if levels.dtype == np.uint8 else SIXTEEN


def with_bands(levels: np.ndarray, bands: int) -> np.ndarray:
    """What a model drew [h, w, C], of 1 band as the mean: a network of three may tint grey by a level or two."""
    if levels.shape[2] == bands:
        return levels
    return np.floor(levels.mean(-1, keepdims=True) + 0.5).astype(levels.dtype)


def has_colours_unused(task: Task, has: int) -> bool:
    """Whether the colours of a picture of so many bands are not what is observed of it."""
    return has > 1 and task.observed_channels < task.given_channels
