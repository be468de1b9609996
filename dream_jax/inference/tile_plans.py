"""How pictures of each shape are drawn within a limit of memory: whole, or in the largest tiles that fit."""

import bisect
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dream_jax.errors import UserError
from dream_jax.experiment import Experiment
from dream_jax.inference import drawing, memory, tiles
from dream_jax.runtime import sharding
from dream_jax.sampling import Rows

# Tiles overlap by a quarter of their side, but by no more pixels than this: what a network draws from its surroundings
# does not grow with the tile.
_WIDEST_OVERLAP = 64

# A sample of a picture has so many crops along each axis: with fewer and larger ones it is less like the picture, with
# more and smaller ones it has too many edges.
_CROPS = 8

# Beside what the compiler counts, convolutions take working space, and making cond leaves holes behind: measured on a
# CPU, a tenth and eight whole pictures are enough.
_SLACK, _SLACK_PICTURES = 1.1, 8


class Shape(NamedTuple):
    """What pictures have in common that one program draws.

    sides: (H, W) that they are filled up to; observed: (h, w) of what is observed of them where results are projected
    on it, None otherwise; bits: 8 or 16, of their levels and those of the results.
    """

    sides: tuple[int, int]
    observed: tuple[int, int] | None = None
    bits: int = 8

    @property
    def levels(self) -> type:
        return np.uint16 if self.bits == 16 else np.uint8


class Plan(NamedTuple):
    """How pictures of one shape are drawn: `draw` of `drawing.make_draw`, compiled for `batch` pictures laid out so.

    tile: side of the tiles, None where pictures are done whole; used: bytes that it takes on each device.
    """

    draw: jax.stages.Compiled
    batch: int
    layout: NamedSharding
    tile: int | None
    used: float


class Told(NamedTuple):
    """A network that tells of each of its evaluations but those that measure."""

    network: drawing.Network | drawing.Guided
    tick: Callable[[], None]

    def __call__(self, *inputs):
        jax.debug.callback(self.tick)
        return self.network(*inputs)

    def measure(self, *inputs):
        return self.network.measure(*inputs)


class Planner:
    """Finds the plan of each shape, and compiles it once.

    Chosen are the largest tiles with which no more than `limit` bytes are taken on each device, `program` of them
    before a picture is drawn, and whole pictures where these fit; `tile` overrides. What a program takes is known only
    when it is compiled. Which tiles are worth that is told by an estimate from the jaxpr, corrected by what the program
    compiled before really took. `overlap` is by how many pixels tiles overlap, that of `overlap_of` by default; where
    it is given, tiles are judged by themselves, as in papers that tell it.

    tick: `share ->`, called as tiles are done with their share of a network evaluation of the picture.
    """

    def __init__(
        self,
        model: drawing.Model,
        rows: Rows,
        limit: float,
        tile: int | None = None,
        tick: Callable[[float], None] = lambda share: None,
        program: float = 0,
        overlap: int | None = None,
    ):
        self.model, self.rows = model, rows
        self.limit, self.program, self.tile, self._tick = limit, program, tile, tick
        self._overlap = overlap
        self._divisor = drawing.divisor(model.experiment)
        # Tiles begin where pixels of what is observed do, as crops do in training.
        self._align = self._divisor if overlap is None else model.experiment.task.divisor
        self._estimate = make_estimate(model, rows)
        self._correction = None
        self._plans = {}

    def __call__(self, shape: Shape) -> Plan:
        """Raises UserError, which says how much is needed, where the limit is too small for the smallest tiles."""
        if shape not in self._plans:
            self._plans[shape] = self._find(shape)
        return self._plans[shape]

    def _find(self, shape):
        def guess(side, each=1):
            return self.program + self._estimate(shape, side, each) * (self._correction or 1)

        choices, best = self._sides_of_tiles(shape), None
        while choices:
            fitting = bisect.bisect_right(choices, self.limit, key=guess)
            if self.tile is not None or self._correction is None:
                # The tile that was asked for is taken, and an estimate alone rules nothing out.
                fitting = max(fitting, 1)
            if not fitting:
                break
            side = choices[fitting - 1]
            each = self._tiles_at_once(shape, side, guess)
            plan = self._compile(shape, side, each)
            self._correction = plan.used / self._estimate(shape, side, each)
            if self.program + plan.used <= self.limit or self.tile is not None:
                best, choices = plan, choices[fitting:]
            else:
                choices = choices[: fitting - 1]
        if best is not None:
            return best
        needed = guess(choices[0]) if choices else self.program + plan.used
        height, width = shape.sides
        raise UserError(
            f"{width} x {height} pixels take {needed / 2**30:.3g} GiB even in the smallest tiles; give more than "
            f"--memory {self.limit / 2**30:.3g}, or a smaller picture"
        )

    def _sides_of_tiles(self, shape):
        longest = max(shape.sides)
        if self.tile is not None:
            return [min(self.tile, longest)]
        return tile_sides(smallest_tile(self.model.experiment), self._divisor, longest)

    def _tiles_at_once(self, shape, side, guess):
        # On a CPU one tile at a time is as fast as several.
        each, most = 1, 1 if jax.default_backend() == "cpu" else 8
        while 2 * each <= most and self._groups_of_tiles(shape, side, each) > 1 and guess(side, 2 * each) <= self.limit:
            each *= 2
        return each

    def _groups_of_tiles(self, shape, side, each):
        count = tiles.count(*shape.sides, side, self._overlap_of(side), self._align)
        return math.ceil(count / (each * self.model.mesh.size))

    def _overlap_of(self, side):
        # A picture may be smaller than the tile that was asked for.
        return overlap_of(side, self._divisor) if self._overlap is None else min(self._overlap, side - self._align)

    def _compile(self, shape, side, each):
        mesh = self.model.mesh
        tiled = side < max(shape.sides)
        wrap = functools.partial(self._in_tiles, shape, side, each) if tiled else None
        batch, layout = (1, NamedSharding(mesh, P())) if tiled else (mesh.size, NamedSharding(mesh, sharding.BATCH))
        sides = _sides_within(shape, self.model.experiment.task)
        draw = drawing.make_draw(self.model.experiment, mesh, wrap, shape.levels, sides)
        compiled = draw.lower(*_arguments(self.model, self.rows, shape, batch, layout)).compile()
        counted = memory.compiled_bytes(compiled)
        used = self._estimate(shape, side, each) if counted is None else _with_slack(counted, shape)
        return Plan(compiled, batch, layout, side if tiled else None, used)

    def _in_tiles(self, shape, side, each, network):
        mesh = self.model.mesh
        told = Told(network, functools.partial(self._tick, 1 / self._groups_of_tiles(shape, side, each)))
        spread = functools.partial(jax.lax.with_sharding_constraint, shardings=NamedSharding(mesh, sharding.BATCH))
        crop = crop_of(side, self._divisor) if self._overlap is None else None
        return tiles.tiled(told, side, self._overlap_of(side), self._align, each * mesh.size, spread, crop)


def shape_of(experiment: Experiment, observed: tuple[int, int], levels=np.uint8) -> Shape:
    """The shape of a picture from the sides of what is observed of it, and the type of its levels."""
    divisor = drawing.divisor(experiment)
    sides = tuple(network_side(side, divisor) for side in experiment.task.sides(observed))
    # What is projected on what was observed is compiled for its own shape.
    return Shape(sides, tuple(observed) if experiment.config.sampling.project else None, 8 * np.dtype(levels).itemsize)


def _sides_within(shape, task):
    """(height, width) of the pictures that are filled up to a shape, where that is known."""
    return shape.observed and task.sides(shape.observed)


def draw_observed(
    model: drawing.Model, rows: Rows, plan: Plan, shape: Shape, observed, numbers, key
) -> list[np.ndarray]:
    """Results [h, w, C], levels, of pictures of one shape of which so much is observed, at most `plan.batch` of them.

    Args:
      observed: levels [h, w, .] each; numbers: int, what each one's noise depends on, besides the key.
    """
    experiment = model.experiment
    # Filled up with the last one.
    chosen = [min(i, len(observed) - 1) for i in range(plan.batch)]
    inputs = _inputs_of(experiment, [observed[i] for i in chosen], shape.sides)
    numbers = np.array([numbers[i] for i in chosen], np.int32)
    drawn = np.asarray(plan.draw(model.params, jax.device_put(inputs, plan.layout), numbers, rows, key))
    ends = (experiment.task.sides(levels.shape[:2]) for levels in observed)
    return [picture[:height, :width] for picture, (height, width) in zip(drawn, ends, strict=False)]


def _inputs_of(experiment, observed, sides):
    # Filled up after enlarging, so that up to the picture's edges cond is what training makes of what is observed.
    def filled(cond):
        missing = [(0, side - has) for side, has in zip(sides, cond.shape, strict=False)]
        return np.pad(cond, [*missing, (0, 0)], mode="reflect")

    cond = np.stack([filled(np.asarray(experiment.task.condition(levels[None]))[0]) for levels in observed])
    return drawing.inputs_of(experiment, cond, np.stack(observed) if experiment.config.sampling.project else None)


def make_estimate(model: drawing.Model, rows: Rows):
    """`estimate(shape, side, each=1) -> bytes` on each device, for `each` tiles at once, from jaxprs alone."""
    experiment, mesh = model.experiment, model.mesh
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))

    @functools.cache
    def picture_bytes(shape):
        # All but the network.
        sides = _sides_within(shape, experiment.task)
        draw = drawing.make_draw(experiment, mesh, lambda predict: lambda x, cond, alpha: x, sides=sides)
        arguments = _arguments(model, rows, shape, 1, NamedSharding(mesh, P()))
        return weights + memory.live_bytes(draw.trace(*arguments).jaxpr.jaxpr)

    @functools.cache
    def network_bytes(*shape):
        channels = experiment.task.x0_channels, experiment.cond_channels
        x, cond = (jax.ShapeDtypeStruct((*shape, c), jnp.float32) for c in channels)
        alpha = jax.ShapeDtypeStruct(shape[:1], jnp.float32)
        return memory.live_bytes(jax.make_jaxpr(experiment.predict)(model.params, x, cond, alpha).jaxpr)

    def estimate(shape, side, each=1):
        network = network_bytes(each, *(min(side, length) for length in shape.sides))
        return _with_slack(picture_bytes(shape) + network, shape)

    return estimate


def _with_slack(counted, shape):
    return _SLACK * counted + _SLACK_PICTURES * 3 * 4 * math.prod(shape.sides)


def _arguments(model, rows, shape, batch, layout):
    """What `draw` is compiled for."""

    def shaped(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=layout)

    task = model.experiment.task
    observed = shape.observed and shaped(*shape.observed, task.observed_channels, dtype=shape.levels)
    inputs = drawing.inputs_of(model.experiment, shaped(*shape.sides, task.cond_channels), observed)
    return model.params, inputs, np.zeros(batch, np.int32), rows, drawing.make_key(0)


def network_side(side: int, divisor: int) -> int:
    """The side that a picture is filled up to: one that divisor divides, larger by an eighth at most.

    There are eight between a side and its double, not all multiples: every shape is compiled.
    """
    step = divisor << max((side // divisor).bit_length() - 4, 0)
    return math.ceil(side / step) * step


def smallest_tile(experiment: Experiment) -> int:
    """The side of the smallest tiles: a network knows what it was trained on, and nothing smaller."""
    divisor = drawing.divisor(experiment)
    return math.ceil(experiment.config.image_size / divisor) * divisor


def check_tiles(experiment: Experiment, tile: int | None, overlap: int | None = None, key: str = "--tile") -> None:
    """Raises UserError for tiles that the network does not take, or that begin within a pixel of what is observed.

    key: what the person calls the side; the overlap has its name with "overlap" in the place of "tile".
    """
    divisor, smallest, scale = drawing.divisor(experiment), smallest_tile(experiment), experiment.task.divisor
    if tile is not None and (tile < smallest or tile % divisor):
        raise UserError(f"{key} {tile}: it must be a multiple of {divisor}, and at least {smallest} as in training")
    if overlap is not None and (overlap % scale or overlap >= (tile or smallest)):
        most = tile or smallest
        raise UserError(f"{key.replace('tile', 'overlap')} {overlap}: a multiple of {scale} below {most} is needed")


def tile_sides(smallest: int, divisor: int, longest: int) -> list[int]:
    """The sides of tiles to choose from, all but the last less than longest: two between a side and its double."""
    sides = (
        math.ceil(smallest * factor * 2**octave / divisor) * divisor for octave in range(32) for factor in (1, 1.5)
    )
    return [*(side for side in sides if side < longest), longest]


def overlap_of(tile: int, divisor: int) -> int:
    """By how many pixels tiles overlap at least."""
    return min(max(min(tile // 4, _WIDEST_OVERLAP) // divisor, 1) * divisor, tile - divisor)


def crop_of(tile: int, divisor: int) -> int:
    """The side of the crops of which a sample of a picture is put together, see `tiles.sampled`."""
    return max(tile // _CROPS // divisor, 1) * divisor
