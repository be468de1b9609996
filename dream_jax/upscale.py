"""A trained super-resolution model on a person's own pictures."""

import math
import os
import sys
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console

from dream_jax import config as configs
from dream_jax import draw as drawing
from dream_jax import experiment as experiments
from dream_jax import images, trained
from dream_jax.errors import UserError

_OPAQUE = (".jpg", ".jpeg", ".bmp")


class Job(NamedTuple):
    """One picture: its file, its name (which its noise depends on), and the file of the result."""

    picture: Path
    name: str
    result: Path


def upscale(
    workdir,
    source,
    output,
    console: Console,
    sampler: str = "ddim",
    steps: int = 10,
    seed: int = 0,
    eta: float = 0.0,
    overwrite: bool = False,
) -> int:
    """Enlarges low-resolution pictures of any size by the scale of a trained model, with its EMA weights.

    Args:
      source, output: see `plan`.
      sampler: a name in `sampling.SAMPLERS`.
      steps: network evaluations for each picture.
      eta: ddim's share of noise, 0 to 1.
      seed: a picture's noise depends on it and on the picture's name within the folder, on no other picture.

    Returns the exit status: 0, or 1 where a picture could not be read or written; it is named on stderr, and the others
    are done. Raises UserError, before anything is loaded or compiled, where nothing can be done at all.
    """
    experiment = experiments.build(configs.validate(configs.read(Path(workdir) / "config.json")))
    if experiment.task.condition is None:
        raise UserError(f"{workdir}: this model is unconditional, it makes pictures from nothing; choose another")
    rows = drawing.make_rows(experiment, sampler, steps)
    jobs, there = plan(source, output, overwrite)
    already = f", {there} already there" if there else ""
    if not jobs:
        console.print(f"nothing to do{already}; --overwrite makes them again", markup=False)
        return 0

    stderr, failed, model, waiting, compiled = sys.stderr, 0, None, {}, set()
    with drawing.progress_bar(console) as bar:
        task = bar.add_task("enlarging", total=len(jobs))

        def tell(message):
            # On a terminal sys.stderr is by now the bar's own, which writes above the bar.
            print(message, file=sys.stderr if stderr.isatty() else stderr, flush=True)

        def fail(error):
            nonlocal failed
            failed += 1
            tell(f"error: {error}")
            bar.advance(task)

        def finish(shape):
            group = waiting.pop(shape)
            if shape not in compiled:
                bar.update(task, description="compiling")
                compiled.add(shape)
            cond = np.stack([_pad(cond, shape) for _, cond, _ in group])
            numbers = np.array([zlib.crc32(job.name.encode()) >> 1 for job, _, _ in group])
            drawn = drawing.draw_pictures(
                draw, model.params, {"cond": cond}, rows, key, model.mesh, len(cond), numbers=numbers
            )
            bar.update(task, description="enlarging")
            for (job, cond, alpha), picture in zip(group, drawn, strict=True):
                picture = picture[: cond.shape[0], : cond.shape[1]]
                if alpha is not None and job.result.suffix.lower() in _OPAQUE:
                    tell(f"{job.result}: without the picture's transparency, which {job.result.suffix} cannot hold")
                elif alpha is not None:
                    picture = np.dstack([picture, _enlarge(alpha, picture.shape)])
                try:
                    images.write(job.result, picture, overwrite)
                except UserError as error:
                    fail(error)
                else:
                    bar.advance(task)

        for job in jobs:
            try:
                low, alpha = images.read_with_alpha(job.picture)
            except UserError as error:
                fail(error)
                continue
            if model is None:
                model = trained.load(workdir)
                draw, key = drawing.make_draw(experiment, model.mesh), drawing.make_key(seed)
                divisor = configs.network_divisor(experiment.config)
            cond = np.asarray(experiment.task.condition(low[None]))[0]
            shape = tuple(network_side(side, divisor) for side in cond.shape[:2])
            waiting.setdefault(shape, []).append((job, cond, alpha))
            # A batch takes as long as one picture: every device has one.
            if len(waiting[shape]) == model.mesh.size:
                finish(shape)
        for shape in list(waiting):
            finish(shape)

    done = f"{len(jobs) - failed} enlarged {experiment.task.scale}x into {output}{already}"
    if failed:
        print(f"error: {failed} of {len(jobs)} pictures failed; {done}", file=sys.stderr)
        return 1
    console.print(done, markup=False)
    return 0


def plan(source, output, overwrite: bool = False) -> tuple[list[Job], int]:
    """What is to be done, and how many results of a folder are there already. Makes the output's folder.

    For a picture, output is a file, whose suffix says the format, or a folder. For a folder of pictures, output is a
    folder that gets the same sub-folders and names, all with the suffix .png; pictures that lie in it are no input.

    Raises UserError where there is no input, an output cannot be written, is there already (of a single picture), would
    replace an input, or would be that of two pictures.
    """
    # Path forgets the slash at the end, by which a person says that the folder is still to be made.
    into_folder = str(output).endswith(("/", os.sep)) or Path(output).is_dir()
    source, output = Path(source), Path(output)
    if source.is_dir():
        if source.resolve() == output.resolve():
            raise UserError(f"{output}: the results need another folder than the pictures")
        jobs = [_job_of_folder(picture, source, output) for picture in images.list_pictures(source)]
        if output.resolve().is_relative_to(source.resolve()):
            jobs = [job for job in jobs if not job.picture.resolve().is_relative_to(output.resolve())]
        if not jobs:
            raise UserError(f"{source}: no pictures found but those in {output}, which are results")
    elif source.exists():
        jobs = [Job(source, source.name, output / source.name if into_folder else output)]
    else:
        raise UserError(f"{source}: there is no such picture or folder")

    makers = {}
    for job in jobs:
        if job.result in makers:
            raise UserError(f"{makers[job.result]} and {job.picture} would both become {job.result}; rename one")
        makers[job.result] = job.picture
    pictures = {job.picture.resolve() for job in jobs}
    for job in jobs:
        if job.result.resolve() in pictures:
            raise UserError(f"{job.result}: a result would replace this picture; choose another --output")
        if job.result.suffix.lower() not in images.SUFFIXES:
            raise UserError(
                f"{job.result}: the suffix of --output must be one of {' '.join(images.SUFFIXES)}; or end it in / for "
                "a folder"
            )
    folder = output if source.is_dir() else jobs[0].result.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder}: no results can be written there ({error.strerror or error})") from error
    left = [job for job in jobs if overwrite or not job.result.exists()]
    if not source.is_dir() and not left:
        raise UserError(f"{jobs[0].result}: exists already; name another file or pass --overwrite")
    return left, len(jobs) - len(left)


def _job_of_folder(picture, source, output):
    name = picture.relative_to(source)
    return Job(picture, name.as_posix(), output / name.with_suffix(".png"))


def network_side(side: int, divisor: int) -> int:
    """The side that a picture is filled up to: one that divisor divides, larger by an eighth at most.

    There are eight between a side and its double, not all multiples: every shape is compiled.
    """
    step = divisor << max((side // divisor).bit_length() - 4, 0)
    return math.ceil(side / step) * step


def _pad(cond, shape):
    # After enlarging, so that up to the picture's edges cond is what training makes of a low-resolution picture.
    missing = [(0, side - has) for side, has in zip(shape, cond.shape, strict=False)]
    return np.pad(cond, [*missing, (0, 0)], mode="reflect")


def _enlarge(alpha, shape):
    height, width = shape[:2]
    return np.asarray(Image.fromarray(alpha).resize((width, height), Image.Resampling.BICUBIC))
