"""Drawing pictures larger than memory: what the sampler remembers of a picture lies on the disk.

For each row of the sampler's table, the network is shown a sample of the picture, by which it judges all tiles, see
`tiles`; then the picture is gone through from top to bottom. Tiles are cut out of x and cond, and the network's outputs
are blended with the weights of `tiles`. Rows that no later tile reaches then make the row's move. So the sampler sees
one whole picture, as in `tiles`, and no seam arises between what is done at different times.

The result is that of `sampling.run` with the network in tiles, but for rounding and for the noise, which cannot be
drawn whole here. The noise is drawn in blocks of BLOCK x BLOCK pixels: block (i, j) of the picture's noise for row r
has the key fold_in(fold_in(fold_in(fold_in(key, number), r), i), j), and thus depends on no tile and no other block.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dream_jax import sampling
from dream_jax.errors import UserError
from dream_jax.inference import drawing, memory, tile_plans, tiles
from dream_jax.inference.bands import BLOCK, Rolling, Scratch, by_strips
from dream_jax.runtime import compiler, sharding

# In larger tiles the network sees hardly more around each pixel; in smaller ones too little, so they are a last resort.
_LARGEST_TILE, _SMALL_TILE = 512, 128

# Beside what a jaxpr's values take: working space of convolutions; and the strips that a row's move is made of.
_SLACK, _STRIPS = 1.1, 24
_MOST_TILES = 8


class Plan(NamedTuple):
    """How a picture is drawn.

    sides: (H, W) that it is filled up to; tile, overlap, align as in `tiles.offsets`; group: tiles at once;
    used: bytes on each device, or of the program on a CPU; crop as in `tiles.sampled`, None for tiles that are judged
    by themselves.
    """

    sides: tuple[int, int]
    tile: int
    overlap: int
    align: int
    group: int
    used: float = 0.0
    crop: int | None = None

    @property
    def axes(self):
        """(places, weights) of tiles along both axes."""
        how = self.tile, self.overlap, self.align
        return [(tiles.offsets(side, *how), tiles.windows(side, *how)) for side in self.sides]


def check_sampling(options) -> None:
    """Raises UserError for options of `config.sampling` that need a picture as a whole."""
    for key, off in (("project", False), ("shift_window", 0.0)):
        if getattr(options, key) != off:
            raise UserError(
                f"sampling.{key} needs the picture as a whole; in windows use --config.sampling.{key}={off}"
            )
    if options.clip == "dynamic":
        raise UserError("sampling.clip = dynamic needs the picture as a whole; in windows use range or none")


def needed(rows: sampling.Rows, shows: bool = False) -> list[set[str]]:
    """What each row of a table needs of what was before it: names among y, base, h0, h1, ... and out.

    base stands for y too where they are the same: at first, and after a row whose look is base.
    """
    after, found = {"y"}, []
    for number in reversed(range(len(rows.alpha))):
        remember, move, look = (part[number] for part in (rows.remember, rows.move, rows.look))
        moves = "base" in after or look[0] != 0
        made = [f"h{i}" in after or look[1 + i] != 0 or (moves and move[1 + i] != 0) for i in range(sampling.HISTORY)]
        names = [("base", moves and move[0] != 0), ("h0", made[0] and remember[2] != 0), ("out", shows)]
        names += [(f"h{i - 1}", made[i]) for i in range(1, sampling.HISTORY)]
        alone = number > 0 and (rows.look[number - 1][0] != 1 or np.any(rows.look[number - 1][1:]))
        after = {name for name, is_needed in names if is_needed} | {"y"}
        found.append(after if alone else after - {"y"} | {"base"})
    return found[::-1]


def slots(rows: sampling.Rows, shows: bool) -> list[str]:
    """The names of the pictures that lie on the disk; none for one row, which begins with noise."""
    return sorted(set().union(*needed(rows, shows)[1:]))


def scratch_bytes(model: drawing.Model, rows: sampling.Rows, plan: Plan) -> int:
    """Of the temporary file."""
    experiment = model.experiment
    names = slots(rows, experiment.objective.self_conditions)
    return 4 * len(names) * math.prod(plan.sides) * experiment.task.x0_channels


def find_plan(
    model: drawing.Model, observed: tuple[int, int], limit: float, tile: int | None = None, beside: float = 0
) -> Plan:
    """The plan of a picture of which so many pixels are observed, (h, w), with tiles that fit into limit.

    Of these, from 128 pixels to 512, tiles are chosen for which the network takes the least memory for each pixel: the
    largest if it only convolves, smaller ones if it attends to whole tiles, which takes time too.

    Args:
      limit: bytes; tile: taken in any case.
      beside: bytes of the limit that are taken by the program and by files.

    Raises UserError, which says how much is needed, where the smallest tiles do not fit.
    """
    experiment, mesh = model.experiment, model.mesh
    divisor = drawing.divisor(experiment)
    sides = tuple(math.ceil(side / divisor) * divisor for side in experiment.task.sides(observed))
    choices = [tile]
    if tile is None:
        choices = tile_plans.tile_sides(tile_plans.smallest_tile(experiment), divisor, max(sides))
        choices = [side for side in choices if side <= _LARGEST_TILE] or choices[:1]
    # On a CPU one tile at a time is as fast as several.
    most = 1 if jax.default_backend() == "cpu" else _MOST_TILES
    found = []
    for side in choices:
        overlap, crop = tile_plans.overlap_of(side, divisor), tile_plans.crop_of(side, divisor)
        plan, network = Plan(sides, side, overlap, divisor, 0, crop=crop), _network_bytes(model, side)
        bands = beside + _bytes_of_bands(model, plan)
        each = min(most, max(int((limit - bands) // network), 1))
        cost = network / (side - plan.overlap) ** 2
        found.append(((side < _SMALL_TILE, cost), plan._replace(group=each * mesh.size, used=bands + each * network)))
    fitting = [pair for pair in found if pair[1].used <= limit or tile is not None]
    if not fitting:
        least = min(plan.used for _, plan in found)
        raise UserError(
            f"{sides[1]} x {sides[0]} pixels take {least / 2**30:.3g} GiB even in windows; give more than "
            f"--memory {limit / 2**30:.3g}, or a narrower picture"
        )
    return min(fitting, key=lambda pair: pair[0])[1]


def _network_bytes(model, side):
    """Of one tile on a device, and so of a sample: an estimate from the jaxpr, from above."""
    experiment = model.experiment
    shapes = ((1, side, side, channels) for channels in (experiment.task.x0_channels, experiment.cond_channels))
    x, cond = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    jaxpr = jax.make_jaxpr(experiment.predict)(model.params, x, cond, jax.ShapeDtypeStruct((1,), jnp.float32))
    return _SLACK * memory.live_bytes(jaxpr.jaxpr)


def _bytes_of_bands(model, plan):
    """Of the weights, and of the rows of a picture that are there at once."""
    experiment, (height, width) = model.experiment, plan.sides
    channels = experiment.task.x0_channels
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    # While rows are added, those that stay are there twice.
    rows = 2 * (min(plan.tile, height) + 2 * BLOCK) * (2 * channels + experiment.cond_channels)
    return weights + 4 * width * (rows + _STRIPS * BLOCK * channels)


def draw(model: drawing.Model, rows: sampling.Rows, plan: Plan, cond_rows, number: int, key, folder, tick=None):
    """Draws one picture; yields its strips of BLOCK rows [BLOCK or less, W, C] from the top, floats in [-1, 1].

    Args:
      cond_rows: `(start, stop) -> cond [stop - start, W, Cc]`, filled up to `plan.sides`.
      number: what the noise depends on besides the key, as `index` in `drawing.make_draw`.
      folder: where the temporary file lies, of `scratch_bytes`.
      tick: `share ->`, called as tiles are done with their share of a network evaluation of the picture.

    Raises OSError where the disk is full.
    """
    experiment, count = model.experiment, len(rows.alpha)
    shows, channels = experiment.objective.self_conditions, experiment.task.x0_channels
    noise_rows = _make_noise(experiment, number, key, plan.sides[1])
    ask, finish = _make_ask(model), _make_finish(experiment)
    parts, height = needed(rows, shows), plan.sides[0]
    with Scratch(folder, slots(rows, shows), (*plan.sides, channels)) as scratch:
        for i, names in enumerate(parts):
            row = jax.tree.map(lambda part, i=i: np.asarray(part[i], np.float32), rows._replace(start=None))
            kept = tuple(sorted(parts[i + 1])) if i + 1 < count else ()
            first = _times(rows.start, noise_rows(sampling.START, experiment.config.sampling.start_seed))
            fresh = noise_rows(i) if row.move[-1] != 0 else None
            read = functools.partial(_read, scratch, first if i == 0 else None)
            reads = [functools.partial(read, "y" if "y" in names else "base"), cond_rows]
            reads += [functools.partial(read, "out")] if shows else []
            levels = row.alpha, row.sigma
            found = [] if plan.crop is None else [ask(_measure, levels, [_sample(plan, read)[None] for read in reads])]
            evaluate = functools.partial(ask, _evaluate, levels, statistics=found)
            for top, blended, (y, cond, *_) in _strips(plan, channels, reads, evaluate, tick or (lambda share: None)):
                bottom = min(top + BLOCK, height)
                state = {"y": y} if "y" in names else {"y": y, "base": y}
                state |= {name: _padded(read(name, top, bottom)) for name in names - state.keys() - {"out"}}
                noise = None if fresh is None else fresh(top, top + BLOCK)
                made = finish(blended, cond, state, row, noise, kept)
                if i + 1 == count:
                    yield np.asarray(made["picture"])[: bottom - top]
                for name in kept:
                    scratch.write(name, top, np.asarray(made[name])[: bottom - top])


def _read(scratch, first, name, start, stop):
    """Of what a row needs; before the first row, base is noise and out is nothing."""
    if first is None:
        return scratch.read(name, start, stop)
    return first(start, stop) if name == "base" else np.zeros((stop - start, *first(0, 1).shape[1:]), np.float32)


def _times(factor, picture):
    return lambda start, stop: np.float32(factor) * picture(start, stop)


def _make_noise(experiment, number, key, width):
    """`(row, start_seed=None) -> a picture` of standard normal noise, see the module's text."""
    channels, across = experiment.task.x0_channels, -(-width // BLOCK)

    @jax.jit
    def strip(key, number, row, down):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, number), row), down)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(across))
        blocks = jax.vmap(lambda k: jax.random.normal(k, (BLOCK, BLOCK, channels), jnp.float32))(keys)
        return blocks.transpose(1, 0, 2, 3).reshape(BLOCK, across * BLOCK, channels)[:, :width]

    def noise_rows(row, start_seed=None):
        chosen = (key, number) if start_seed is None else (drawing.make_key(start_seed), 0)
        return by_strips(lambda down: np.asarray(strip(*chosen, row, down)), BLOCK)

    return noise_rows


def _sample(plan, read):
    """A sample of a picture, see `tiles.sampled`, of which only rows of crops are read."""
    rows, columns = (tiles.sampled(side, plan.tile, plan.crop, plan.align) for side in plan.sides)
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return np.concatenate([read(run[0], run[-1] + 1)[:, columns] for run in runs])


def _evaluate(network, x, *inputs):
    return network(x, *inputs).astype(x.dtype)


def _measure(network, *inputs):
    return network.measure(*inputs)


def _make_ask(model):
    """`(what, (alpha, sigma), [tiles of y, of cond, and of out where it is shown], statistics=()) -> its result`.

    What is asked is `_evaluate` or `_measure`; statistics, one at most, are what the latter found.
    """
    experiment, mesh = model.experiment, model.mesh

    @functools.partial(jax.jit, static_argnums=0, compiler_options=compiler.options(experiment.config.deterministic))
    def answer(what, params, levels, y, cond, *previous, statistics):
        said = []

        def listen(network):
            return lambda *inputs: said.append(what(network, *inputs, *statistics)) or jnp.zeros_like(inputs[0])

        # What follows from the output is for the blended one.
        drawing.make_denoise(experiment, params, {"cond": cond}, listen)(y, *levels, *previous)
        return said[0]

    def ask(what, levels, parts, statistics=()):
        layout = NamedSharding(mesh, sharding.BATCH if what is _evaluate else P())
        return answer(what, model.params, levels, *jax.device_put(parts, layout), statistics=statistics)

    return ask


def _make_finish(experiment):
    """`(blended, cond, state, row, fresh, kept) -> {name: strip}`, a row's move: of what is kept, or else picture."""

    @functools.partial(jax.jit, static_argnames="kept")
    def finish(blended, cond, state, row, fresh, kept):
        inputs = {"cond": cond[None]}
        denoise = drawing.make_denoise(experiment, None, inputs, lambda predict: lambda *_: blended[None])
        shows = [state["y"][None]] if experiment.objective.self_conditions else []
        out = denoise(state["y"][None], row.alpha, row.sigma, *shows)[0]
        nothing = jnp.zeros_like(out)
        history = [state.get(f"h{i}", nothing) for i in range(sampling.HISTORY)]
        base, fresh = state.get("base", nothing), nothing if fresh is None else fresh
        base, y, history = sampling.advance(row, base, state["y"], history, out, fresh)
        if not kept:
            return {"picture": experiment.task.to_picture(y, cond)}
        made = {"base": base, "y": y, "out": out} | {f"h{i}": part for i, part in enumerate(history)}
        return {name: made[name] for name in kept}

    return finish


def _padded(rows):
    missing = BLOCK - len(rows)
    return np.pad(rows, [(0, missing), (0, 0), (0, 0)]) if missing else rows


def _strips(plan, channels, reads, evaluate, tick):
    """The strips of BLOCK rows, from the top, of one network evaluation: (first row, outputs blended, inputs).

    reads: the pictures that tiles are cut from; the inputs are their strips. The last one is filled up with zeros.
    """
    (starts, down), (lefts, across) = plan.axes
    height, width = plan.sides
    rolling = [Rolling(read) for read in reads]
    top, blended = 0, np.zeros((0, width, channels), np.float32)
    down, across = down.astype(np.float32), across.astype(np.float32)
    # Rows above the next tiles are done.
    for start, rise, done in zip(starts.tolist(), down, [*starts[1:].tolist(), height], strict=True):
        bottom = start + len(rise)
        inputs = [roll(top, bottom) for roll in rolling]
        missing = np.zeros((bottom - top - len(blended), width, channels), np.float32)
        blended = np.concatenate([blended, missing])
        band = blended[start - top :]
        for i, output in _outputs(plan, [part[start - top :] for part in inputs], lefts, evaluate):
            band[:, lefts[i] : lefts[i] + across.shape[1]] += output * rise[:, None, None] * across[i][:, None]
            tick(1 / (len(starts) * len(lefts)))
        first = top
        while top < done and (top + BLOCK <= done or done == height):
            rows = slice(top - first, top - first + BLOCK)
            yield top, _padded(blended[rows]), [_padded(part[rows]) for part in inputs]
            top += BLOCK
        blended = blended[top - first :]


def _outputs(plan, inputs, lefts, evaluate):
    """(number, output) of the tiles beside each other; one group is on its way while the one before it is blended."""
    waiting = []
    for first in range(0, len(lefts), plan.group):
        numbers = [min(first + i, len(lefts) - 1) for i in range(plan.group)]
        batch = [np.stack([part[:, lefts[i] : lefts[i] + plan.tile] for i in numbers]) for part in inputs]
        waiting.append((range(first, min(first + plan.group, len(lefts))), evaluate(batch)))
        if len(waiting) > 1:
            yield from _unpacked(waiting.pop(0))
    yield from _unpacked(waiting.pop())


def _unpacked(group):
    numbers, outputs = group
    return zip(numbers, np.asarray(outputs), strict=False)
