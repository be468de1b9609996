"""A trained super-resolution model on a person's own pictures."""

import bisect
import functools
import math
import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image
from rich.console import Console

from dream_jax.errors import UserError, shown
from dream_jax.files import images
from dream_jax.files.names import check_folder
from dream_jax.inference import drawing, tiles, trained
from dream_jax.runtime import sharding

# Tiles overlap by a quarter of their side, but by no more pixels than this: what a network draws from its surroundings
# does not grow with the tile.
_WIDEST_OVERLAP = 64

# Beside what the compiler counts, convolutions take working space, and making cond leaves holes behind: measured on a
# CPU, a tenth and eight whole pictures are enough.
_SLACK, _SLACK_PICTURES = 1.1, 8


class Job(NamedTuple):
    """One picture: its file, its name (which its noise depends on), and the results to make: (seed, file) each."""

    picture: Path
    name: str
    results: tuple[tuple[int, Path], ...]


class Way(NamedTuple):
    """How pictures of one shape are drawn: `draw` of `draw.make_draw`, compiled for `batch` pictures laid out so.

    tile: side of the tiles, None where pictures are done whole; used: bytes that it takes on each device.
    """

    draw: Any
    batch: int
    layout: NamedSharding
    tile: int | None
    used: float


def upscale(
    workdir,
    source,
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
) -> int:
    """Enlarges low-resolution pictures of any size by the scale of a trained model, with its EMA weights.

    Args:
      source, output, suffix: see `plan`.
      sampler: a name in `sampling.SAMPLERS`.
      steps: network evaluations for each picture.
      seed, samples: each of the seeds seed .. seed + samples - 1 gives a result. A picture's noise depends on the seed
        and on the picture's name within the folder, on no other picture.
      memory: GiB that the program may take on each device, all in all; by default half of what is free once it runs.
        Pictures that need more are done in overlapping tiles, the largest that fit.
      tile: side of the tiles in pixels of the result, instead of one found by memory.
      overrides: `--config.sampling.KEY=VALUE` arguments.

    Returns the exit status: 0, or 1 where a picture could not be read, drawn or written; each is named on stderr at
    the end with its reason, and the others are done. Raises UserError, before anything is loaded or compiled, where
    nothing can be done at all.
    """
    experiment = trained.open_experiment(workdir, overrides, only_sampling=True)
    if experiment.task.condition is None:
        raise UserError(f"{workdir}: this model is unconditional, it makes pictures from nothing; choose another")
    scale, align, smallest = experiment.task.scale, _align(experiment), _smallest_tile(experiment)
    rows = drawing.make_rows(experiment, sampler, steps)
    _check_options(seed, samples, memory, tile, align, smallest)
    jobs, there = plan(source, output, suffix, range(seed, seed + samples), overwrite)
    already = f", {there} already there, however made" if there else ""
    if not jobs:
        console.print(f"nothing to do{already}; --overwrite makes them again", markup=False)
        return 0

    total = sum(len(job.results) for job in jobs)
    done, failures, notes, waiting = 0, {}, [], {}
    model = way_of = None
    pixels = seconds = 0.0
    with drawing.progress_bar(console) as bar:
        task = bar.add_task("enlarging", total=total)

        def fail(job, error, count=1):
            failures[job.picture] = str(error)
            bar.advance(task, count)

        def read(job):
            picture = images.read_picture(job.picture)
            for _, result in job.results:
                images.check_size(result, *(side * scale for side in picture.colours.shape[:2]))
            return picture

        def finish(shape, seed):
            nonlocal done, pixels, seconds
            group, way = waiting.pop((shape, seed)), way_of(*shape)
            before, start = bar.tasks[task].completed, time.monotonic()
            bar.update(task, description="enlarging" + (f" in tiles of {way.tile}" if way.tile else ""))
            named = [(job.name, picture) for job, picture, _ in group]
            try:
                drawn = draw_group(model, way, rows, seed, named, shape[0])
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                # Another program may have taken the memory that was free; the first line says what was asked for.
                bar.update(task, completed=before)
                for job, _, _ in group:
                    fail(job, f"{shown(job.picture)}: cannot be drawn ({str(error).partition(chr(10))[0]})")
                return
            seconds += time.monotonic() - start
            pixels += sum(colours[..., 0].size for colours in drawn)
            bar.update(task, completed=before, description=f"enlarging, {pixels / seconds / 1e6:.2g} Mpixel/s")
            for (job, picture, result), colours in zip(group, drawn, strict=True):
                try:
                    notes.extend(_write(result, colours, picture, overwrite))
                except UserError as error:
                    fail(job, error)
                else:
                    done += 1
                    bar.advance(task)

        for job in jobs:
            try:
                picture = read(job)
            except UserError as error:
                fail(job, error, len(job.results))
                continue
            bar.update(task, description="preparing")
            if model is None:
                model = trained.load_weights(workdir, experiment)
                way_of = make_ways(
                    model,
                    rows,
                    tiles.free_bytes(model.mesh.local_devices[0]) / 2 if memory is None else memory * 2**30,
                    tile,
                    lambda share: bar.advance(task, share / len(rows.alpha)),
                    0 if memory is None else tiles.program_bytes(),
                )
            low = picture.colours.shape[:2]
            # What is projected on a low-resolution picture is compiled for its own shape.
            own = low if experiment.config.sampling.project else ()
            shape = tuple(network_side(side * scale, align) for side in low), own
            try:
                way = way_of(*shape)
            except UserError as error:
                fail(job, f"{shown(job.picture)}: {error}", len(job.results))
                continue
            for number, result in job.results:
                group = waiting.setdefault((shape, number), [])
                group.append((job, picture, result))
                if len(group) == way.batch:
                    finish(shape, number)
        for shape, number in list(waiting):
            finish(shape, number)

    for note in notes:
        print(note, file=sys.stderr)
    said = f"{done} enlarged {scale}x into {shown(output)}{already}"
    if failures:
        print(f"error: {len(failures)} of {len(jobs)} pictures failed; {said}", file=sys.stderr)
        for reason in failures.values():
            print(f"  {reason}", file=sys.stderr)
        return 1
    console.print(said, markup=False)
    return 0


def _check_options(seed, samples, memory, tile, align, smallest):
    if samples < 1:
        raise UserError(f"--samples {samples}: it must be at least 1")
    if not 0 <= seed <= 2**32 - samples:
        raise UserError(f"--seed {seed}: seeds are whole numbers from 0 to 2^32 - 1")
    if memory is not None and not 0 < memory < math.inf:
        raise UserError(f"--memory {memory}: it must be a number of GiB greater than 0")
    if tile is not None and (tile < smallest or tile % align):
        raise UserError(f"--tile {tile}: it must be a multiple of {align}, and at least {smallest} as in training")


def plan(source, output, suffix=None, seeds=(0,), overwrite: bool = False) -> tuple[list[Job], int]:
    """What is to be done, and how many results are there already. Makes the output's folder.

    For a picture, output is a file, whose suffix says the format, or a folder. For a folder of pictures, output is a
    folder that gets the same sub-folders and names; pictures that lie in it are no input. suffix (".png", ...) is that
    of results in a folder, None for that of each picture. Of several seeds each is added to the name: NAME-seed3.png.

    Raises UserError where there is no input, an output cannot be written, is there already (of a single picture), would
    replace an input, or would be that of two pictures.
    """
    # Path forgets the slash at the end, by which a person says that the folder is still to be made.
    into_folder = str(output).endswith(("/", os.sep)) or Path(output).is_dir()
    source, output = Path(source), Path(output)
    folder = output
    if source.is_dir():
        if _is_within(source, output) and _is_within(output, source):
            raise UserError(f"{shown(output)}: the results need another folder than the pictures")
        pictures = images.list_pictures(source)
        if _is_within(output, source):
            pictures = [picture for picture in pictures if not _is_within(picture, output)]
        if not pictures:
            raise UserError(f"{shown(source)}: no pictures found but those in {shown(output)}, which are results")
        named = [(picture, picture.relative_to(source)) for picture in pictures]
    elif source.exists():
        named = [(source, Path(source.name))]
        if not into_folder:
            folder, named = output.parent, [(source, Path(output.name))]
            if suffix is not None and output.suffix.lower() != suffix:
                raise UserError(f"{shown(output)}: its suffix is not {suffix}, the format asked for; leave one out")
    else:
        raise UserError(f"{shown(source)}: there is no such picture or folder")

    def results_of(name):
        result = folder / (name if suffix is None else name.with_suffix(suffix))
        return tuple((s, result if len(seeds) == 1 else result.with_stem(f"{result.stem}-seed{s}")) for s in seeds)

    jobs = [Job(p, (name if source.is_dir() else Path(p.name)).as_posix(), results_of(name)) for p, name in named]
    makers, originals = {}, {os.path.realpath(job.picture) for job in jobs}
    for job in jobs:
        for _, result in job.results:
            if result in makers:
                raise UserError(
                    f"{shown(makers[result])} and {shown(job.picture)} would both become {shown(result)}; rename one"
                )
            makers[result] = job.picture
            if os.path.realpath(result) in originals:
                raise UserError(f"{shown(result)}: a result would replace this picture; choose another --output")
            if result.suffix.lower() not in images.SUFFIXES:
                raise UserError(
                    f"{shown(result)}: the suffix of --output must be one of {' '.join(images.SUFFIXES)}; or end it in "
                    "/ for a folder"
                )
    check_folder(folder)
    left = [job._replace(results=tuple(r for r in job.results if overwrite or not r[1].exists())) for job in jobs]
    left = [job for job in left if job.results]
    if not source.is_dir() and not left:
        raise UserError(f"{shown(jobs[0].results[0][1])}: exists already; name another file or pass --overwrite")
    return left, len(makers) - sum(len(job.results) for job in left)


def _is_within(path, folder):
    # Unlike Path.resolve, realpath takes links that lead in a circle.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def network_side(side: int, divisor: int) -> int:
    """The side that a picture is filled up to: one that divisor divides, larger by an eighth at most.

    There are eight between a side and its double, not all multiples: every shape is compiled.
    """
    step = divisor << max((side // divisor).bit_length() - 4, 0)
    return math.ceil(side / step) * step


def _align(experiment) -> int:
    """What sides of pictures and places of tiles divide by: the network's patches and the low-resolution pixels."""
    return math.lcm(experiment.network.divisor, experiment.task.scale)


def _smallest_tile(experiment) -> int:
    # A network knows what it was trained on: nothing smaller.
    return math.ceil(experiment.config.image_size / _align(experiment)) * _align(experiment)


def overlap_of(tile: int, align: int) -> int:
    """By how many pixels tiles overlap at least."""
    return min(max(min(tile // 4, _WIDEST_OVERLAP) // align, 1) * align, tile - align)


def tile_sides(smallest: int, align: int, longest: int) -> list[int]:
    """The sides of tiles to choose from, all but the last less than longest: two between a side and its double."""
    sides = (math.ceil(smallest * factor * 2**octave / align) * align for octave in range(32) for factor in (1, 1.5))
    return [*(side for side in sides if side < longest), longest]


def make_ways(
    model: drawing.Model, rows, limit: float, tile: int | None = None, tick=lambda share: None, program: float = 0
):
    """`way_of((H, W), low_shape=()) -> Way` of pictures filled up to H x W, found and compiled once for each shape.

    Chosen are the largest tiles with which no more than `limit` bytes are taken on each device, `program` of them
    before a picture is drawn, and whole pictures where these fit; `tile` overrides. What a program takes is known only
    when it is compiled; which are worth that is told by an estimate from the jaxpr, corrected by what the one before
    really took.

    tick: `share ->`, called as tiles are done with their share of a network evaluation of the picture.

    way_of raises UserError, which says how much is needed, where the limit is too small for the smallest tiles.
    """
    experiment, mesh = model.experiment, model.mesh
    align, smallest = _align(experiment), _smallest_tile(experiment)
    # On a CPU one tile at a time is as fast as several.
    largest_group = 1 if jax.default_backend() == "cpu" else 8
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    ratio, limit = None, limit - program

    def arguments(sides, low_shape, batch, layout):
        def shaped(*shape, dtype=jnp.float32):
            return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=layout)

        low = shaped(*low_shape, 3, dtype=np.uint8) if low_shape else None
        inputs = drawing.inputs_of(experiment, shaped(*sides, experiment.task.cond_channels), low)
        return model.params, inputs, np.zeros(batch, np.int32), rows, drawing.make_key(0)

    @functools.cache
    def picture_bytes(sides, low_shape):
        draw = drawing.make_draw(experiment, mesh, lambda predict: lambda x, cond, alpha: x)
        args = arguments(sides, low_shape, 1, NamedSharding(mesh, P()))
        return weights + tiles.live_bytes(draw.trace(*args).jaxpr.jaxpr)

    @functools.cache
    def network_bytes(*shape):
        x, cond = (jax.ShapeDtypeStruct((*shape, c), jnp.float32) for c in (3, experiment.task.cond_channels))
        alpha = jax.ShapeDtypeStruct(shape[:1], jnp.float32)
        return tiles.live_bytes(jax.make_jaxpr(experiment.predict)(model.params, x, cond, alpha).jaxpr)

    def estimate(sides, low_shape, side, each=1):
        network = network_bytes(each, *(min(side, length) for length in sides))
        return with_slack(picture_bytes(sides, low_shape) + network, sides)

    def compile_way(sides, low_shape, side, each):
        if side >= max(sides):
            wrap, batch, layout = None, mesh.size, NamedSharding(mesh, sharding.BATCH)
        else:
            wrap, batch, layout = functools.partial(in_tiles, sides, side, each), 1, NamedSharding(mesh, P())
        draw = drawing.make_draw(experiment, mesh, wrap)
        compiled = draw.lower(*arguments(sides, low_shape, batch, layout)).compile()
        counted = tiles.compiled_bytes(compiled)
        used = estimate(sides, low_shape, side, each) if counted is None else with_slack(counted, sides)
        return Way(compiled, batch, layout, side if wrap else None, used)

    def with_slack(counted, sides):
        return _SLACK * counted + _SLACK_PICTURES * 3 * 4 * math.prod(sides)

    def groups_of(sides, side, group):
        return math.ceil(tiles.count(*sides, side, overlap_of(side, align), align) / group)

    def in_tiles(sides, side, each, predict):
        share = 1 / groups_of(sides, side, each * mesh.size)

        def predict_and_tell(*tile_inputs):
            jax.debug.callback(lambda: tick(share))
            return predict(*tile_inputs)

        spread = functools.partial(jax.lax.with_sharding_constraint, shardings=NamedSharding(mesh, sharding.BATCH))
        return tiles.tiled(predict_and_tell, side, overlap_of(side, align), align, each * mesh.size, spread)

    @functools.cache
    def way_of(sides, low_shape=()):
        nonlocal ratio
        longest, best = max(sides), None
        choices = tile_sides(smallest, align, longest) if tile is None else [min(tile, longest)]

        def guess(side, each=1):
            return estimate(sides, low_shape, side, each) * (ratio or 1)

        while choices:
            likely = bisect.bisect_right(choices, limit, key=guess)
            if tile is not None or (ratio is None and best is None):
                likely = max(likely, 1)
            if not likely:
                break
            side, each = choices[likely - 1], 1
            while (
                2 * each <= largest_group
                and groups_of(sides, side, each * mesh.size) > 1
                and guess(side, 2 * each) <= limit
            ):
                each *= 2
            way = compile_way(sides, low_shape, side, each)
            ratio = way.used / estimate(sides, low_shape, side, each)
            if way.used <= limit or tile is not None:
                best, choices = way, choices[likely:]
            else:
                choices = choices[: likely - 1]
        if best is not None:
            return best
        needed = program + (guess(choices[0]) if choices else way.used)
        raise UserError(
            f"{sides[1]} x {sides[0]} pixels take {needed / 2**30:.3g} GiB even in the smallest tiles; give more "
            f"than --memory {(limit + program) / 2**30:.3g}, or a smaller picture"
        )

    return way_of


def draw_group(model: drawing.Model, way: Way, rows, seed: int, named, sides) -> list[np.ndarray]:
    """Draws up to way.batch pictures filled up to sides (H, W): uint8 [h, w, 3] each, enlarged.

    named: (name, images.Picture) of each; its noise depends on name and seed.
    """
    experiment = model.experiment
    # Filled up with its own last picture.
    chosen = [named[min(i, len(named) - 1)] for i in range(way.batch)]
    inputs = jax.device_put(_inputs_of(experiment, [picture.colours for _, picture in chosen], sides), way.layout)
    numbers = np.array([zlib.crc32(os.fsencode(name)) >> 1 for name, _ in chosen], np.int32)
    drawn = np.asarray(way.draw(model.params, inputs, numbers, rows, drawing.make_key(seed)))
    ends = ([side * experiment.task.scale for side in picture.colours.shape[:2]] for _, picture in named)
    return [picture[:height, :width] for picture, (height, width) in zip(drawn, ends, strict=False)]


def _inputs_of(experiment, lows, sides):
    # Filled up after enlarging, so that up to the picture's edges cond is what training makes of a low-resolution one.
    def filled(cond):
        missing = [(0, side - has) for side, has in zip(sides, cond.shape, strict=False)]
        return np.pad(cond, [*missing, (0, 0)], mode="reflect")

    cond = np.stack([filled(np.asarray(experiment.task.condition(low[None]))[0]) for low in lows])
    return drawing.inputs_of(experiment, cond, np.stack(lows) if experiment.config.sampling.project else None)


def _write(result, colours, picture, overwrite) -> list[str]:
    """Writes a result with what is kept of its picture; returns what is to be told of it."""
    notes = []
    if picture.alpha is not None and images.holds_alpha(result):
        height, width = colours.shape[:2]
        alpha = Image.fromarray(picture.alpha).resize((width, height), Image.Resampling.BICUBIC)
        colours = np.dstack([colours, np.asarray(alpha)])
    elif picture.alpha is not None:
        notes.append(f"{shown(result)}: without the picture's transparency, which {result.suffix} cannot hold")
    images.write(result, colours, overwrite, picture.extras)
    return notes
