"""Which pictures are to be restored, and which files they become."""

import os
import zlib
from pathlib import Path
from typing import NamedTuple

from dream_jax.errors import UserError, shown
from dream_jax.files import formats, picture_files
from dream_jax.files.names import check_folder


class Job(NamedTuple):
    """One picture: its file, its name (which its noise depends on), and the results to make: (seed, file) each."""

    picture: Path
    name: str
    results: tuple[tuple[int, Path], ...]

    @property
    def number(self) -> int:
        """What its noise depends on, besides the seed."""
        return zlib.crc32(os.fsencode(self.name)) >> 1


def list_jobs(sources, output, suffix=None, seeds=(0,), overwrite: bool = False) -> tuple[list[Job], int]:
    """What is to be done, and how many results are there already. Makes the output's folder.

    For one picture, output is a file, whose suffix says the format, or a folder. For several, or folders of pictures,
    output is a folder that gets the same names, and sub-folders of each folder; pictures that lie in it are no input.
    suffix (".png", ...) is that of results in a folder, None for that of each picture. Of several seeds each is added
    to the name: NAME-seed3.png.

    Raises UserError where there is no input, an output cannot be written, is there already (of a single picture), would
    replace an input, or would be that of two pictures.
    """
    # Path forgets the slash at the end, by which a person says that the folder is still to be made.
    into_folder = str(output).endswith(("/", os.sep)) or Path(output).expanduser().is_dir()
    sources, output = [Path(source).expanduser() for source in sources], Path(output).expanduser()
    alone = len(sources) == 1 and not sources[0].is_dir()
    named = [pair for source in sources for pair in _named(source, output)]
    if alone and not into_folder:
        folder = output.parent
        if suffix is not None and output.suffix.lower() != suffix:
            raise UserError(f"{shown(output)}: its suffix is not {suffix}, the format asked for; leave one out")
        jobs = [Job(sources[0], sources[0].name, _results(output, None, seeds))]
    else:
        folder = output
        jobs = [Job(path, name.as_posix(), _results(folder / name, suffix, seeds)) for path, name in named]
    _check_results(jobs)
    check_folder(folder)
    left = [job._replace(results=tuple(r for r in job.results if overwrite or not r[1].exists())) for job in jobs]
    left = [job for job in left if job.results]
    if alone and not left:
        raise UserError(f"{shown(jobs[0].results[0][1])}: exists already; name another file or pass --overwrite")
    return left, count_results(jobs) - count_results(left)


def _named(source, output):
    """(picture, its name) of a picture, or of those in a folder."""
    if source.is_dir():
        return [(path, path.relative_to(source)) for path in _pictures_of(source, output)]
    if not source.exists():
        raise UserError(f"{shown(source)}: there is no such picture or folder")
    return [(source, Path(source.name))]


def list_passed_over(sources) -> list[Path]:
    """The files in folders that are no picture files by their suffix, but for those that systems leave there."""
    folders = [Path(source).expanduser() for source in sources]
    return [path for folder in folders if folder.is_dir() for path in picture_files.list_others(folder)]


def count_results(jobs: list[Job]) -> int:
    return sum(len(job.results) for job in jobs)


def _pictures_of(source, output):
    """The pictures in a folder but for those in the output, which are results."""
    if _is_within(source, output) and _is_within(output, source):
        raise UserError(f"{shown(output)}: the results need another folder than the pictures")
    pictures = picture_files.list_pictures(source)
    if _is_within(output, source):
        pictures = [picture for picture in pictures if not _is_within(picture, output)]
    if not pictures:
        raise UserError(f"{shown(source)}: no pictures found but those in {shown(output)}, which are results")
    return pictures


def _results(file, suffix, seeds):
    file = file if suffix is None else file.with_suffix(suffix)
    return tuple((seed, file if len(seeds) == 1 else file.with_stem(f"{file.stem}-seed{seed}")) for seed in seeds)


def _check_results(jobs):
    """Raises UserError where a result has no format, would replace a picture or would be that of two."""
    makers, originals = {}, {os.path.realpath(job.picture) for job in jobs}
    for picture, result in ((job.picture, result) for job in jobs for _, result in job.results):
        if result in makers:
            raise UserError(
                f"{shown(makers[result])} and {shown(picture)} would both become {shown(result)}; rename one"
            )
        makers[result] = picture
        if os.path.realpath(result) in originals:
            raise UserError(f"{shown(result)}: a result would replace this picture; choose another --output")
        if result.suffix.lower() not in formats.SUFFIXES:
            raise UserError(
                f"{shown(result)}: the suffix of --output must be one of {' '.join(formats.SUFFIXES)}; or end it in "
                f"/ for a folder{formats.hint([result])}"
            )


def _is_within(path, folder):
    # Unlike Path.resolve, realpath takes links that lead in a circle.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
