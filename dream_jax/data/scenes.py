"""Made scenes of shapes before a wall, of which all is known: their depth, their classes, what they look like by night.

Nothing has to be downloaded for them, so that tasks with conditions, maps and labels can be tried at once.
"""

import functools
from typing import NamedTuple

import numpy as np

from dream_jax.data.indexed import Source
from dream_jax.errors import UserError
from dream_jax.files.picture import of_channels

SIDE = 160
# The kinds of shapes: a disc, and polygons of 3 sides and up.
NAMES = ("disc", "triangle", "square", "pentagon", "hexagon", "heptagon")
# How many there are, and the first of their numbers.
COUNTS = {"train": (2000, 0), "eval": (100, 10**6)}
_NEAREST, _SHAPES = 0.15, (4, 9)


class Scene(NamedTuple):
    """A scene: its picture, float [H, W, 3] in [0, 1]; depth, float [H, W, 1] in (0, 1]; classes, int [H, W, 1]."""

    picture: np.ndarray
    depth: np.ndarray
    classes: np.ndarray


def scenes(split: str, config) -> Source:
    """Scenes of split "train" or "eval" with what the task of a config needs, always the same.

    Conditions are pictures of scenes, for target picture in low light with noise. Classes of pixels are 0, the wall,
    and one for each kind of shape; for class_conditional there is one shape, and its kind is the label.

    Raises UserError for a task that has no use for them, and for channels that they have not.
    """
    task, data = config.task, config.data
    single = task.name == "class_conditional"
    if not (single or task.name == "paired"):
        raise UserError(f"data.bundled = 'scenes': they are for paired and class_conditional, not for {task.name}")
    kinds = len(data.classes) if single else task.num_classes - 1 if task.target == "classes" else len(NAMES)
    if not 0 < kinds <= len(NAMES):
        wall = "" if single else ", and the wall"
        raise UserError(
            f"task.num_classes = {task.num_classes}: scenes have {len(NAMES)} kinds of shapes at most{wall}"
        )
    for key in "channels", "condition_channels":
        if data[key] not in (1, 3):
            raise UserError(
                f"data.{key} = {data[key]}: scenes have three, or one as grey; name others with data.folder"
            )
    count, first = COUNTS[split]
    of = functools.partial(_made, kinds=kinds, single=single)

    def levels(picture, channels, bits=data.bits):
        white = 65535 if bits == 16 else 255
        return of_channels(np.floor(white * np.clip(picture, 0, 1) + 0.5).astype(f"uint{bits}"), channels)

    def read(i):
        scene = of(first + i)
        if single or task.target == "picture":
            return levels(scene.picture, data.channels)
        return levels(scene.depth, 1) if task.target == "depth" else scene.classes.astype(f"uint{data.bits}")

    def beside(i):
        if single:
            return np.full((1, 1, 1), (first + i) % kinds, np.uint16)
        picture = of(first + i).picture
        night = task.target == "picture"
        noise = np.random.default_rng((first + i, 1)).normal(0, 0.02, picture.shape)
        return levels(0.2 * picture + noise if night else picture, data.condition_channels, data.condition_bits)

    return Source(read, count, 1, lambda i: f"scene {first + i}", beside, kind="label" if single else "condition")


# What a picture and what lies beside it are made of is made once.
@functools.lru_cache(maxsize=16)
def _made(number: int, kinds: int, single: bool) -> Scene:
    rng = np.random.default_rng((number, 0))
    down, across = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    tilt = rng.uniform(-0.1, 0.1)
    depth = 0.85 + tilt * (across - 0.5)
    picture = _painted(rng, across, down)
    classes = np.zeros((SIDE, SIDE), np.int64)
    far_to_near = np.sort(rng.uniform(_NEAREST, 0.75, 1 if single else rng.integers(*_SHAPES)))[::-1]
    for distance in far_to_near:
        kind = number % kinds if single else rng.integers(kinds)
        # What is near is large.
        radius = 0.3 if single else 0.06 / (distance + 0.15) + 0.04
        x0, y0 = rng.uniform(0.3, 0.7, 2) if single else rng.random(2)
        # No shape reaches beyond its radius.
        near = np.s_[_within(y0, radius), _within(x0, radius)]
        x, y = across[near] - x0, down[near] - y0
        inside, edge = _inside(x / radius, y / radius, kind, rng.uniform(0, 2 * np.pi))
        bulge = np.sqrt(np.clip(1 - edge**2, 0, 1))
        light = 0.5 + 0.5 * np.clip(0.6 * bulge - 0.5 * (x + y) / radius, -0.5, 1)
        picture[near] = np.where(inside[..., None], _painted(rng, x, y) * light[..., None], picture[near])
        depth[near] = np.where(inside, distance - 0.05 * bulge, depth[near])
        classes[near] = np.where(inside, kind + 1, classes[near])
    # Haze: what is far is pale.
    haze = 0.6 * depth[..., None]
    return Scene(picture * (1 - haze) + 0.8 * haze, depth[..., None], classes[..., None])


def _within(centre, radius) -> slice:
    """The pixels of an axis that lie within a radius of a centre, both as parts of the side, and one more each way."""
    first, last = (int(np.floor(SIDE * (centre + reach))) for reach in (-radius, radius))
    return slice(max(first, 0), max(last + 2, 0))


def _inside(x, y, kind, turn):
    """(whether points lie in a shape of radius 1, how far out): a disc, a triangle, a square, ..."""
    distance, angle = np.hypot(x, y), np.arctan2(y, x) + turn
    if kind == 0:
        return distance <= 1, distance
    half = np.pi / (kind + 2)
    out = distance * np.cos(angle % (2 * half) - half) / np.cos(half)
    return out <= 1, out


def _painted(rng, x, y):
    """A colour with stripes [H, W, 3]."""
    turn, width = rng.uniform(0, np.pi), rng.uniform(20, 80)
    stripes = 0.85 + 0.15 * np.sin(width * (np.cos(turn) * x + np.sin(turn) * y))
    return rng.uniform(0.2, 1, 3) * stripes[..., None]
