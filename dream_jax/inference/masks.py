"""A person's masks: which pixels of their pictures are to be painted."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from dream_jax.errors import UserError, shown
from dream_jax.files import images, listings, windows
from dream_jax.files.picture import of_channels
from dream_jax.inference.jobs import Job
from dream_jax.tasks import value_range


class Masks(NamedTuple):
    """One file for all pictures, or a folder with `files` by their names within it, without suffix."""

    place: Path
    files: dict[str, list[Path]] | None = None


def find(place) -> Masks:
    """The masks of --mask; raises UserError where there are none."""
    place = Path(place).expanduser()
    if not place.is_dir():
        if not place.exists():
            raise UserError(f"--mask {shown(place)}: there is no such mask or folder")
        return Masks(place)
    files = {}
    for path in listings.list_pictures(place):
        files.setdefault(_stem(path.relative_to(place)), []).append(path)
    return Masks(place, files)


def check_results(masks: Masks, jobs: list[Job]) -> None:
    """Raises UserError where a result would replace a mask."""
    there = [masks.place] if masks.files is None else [path for paths in masks.files.values() for path in paths]
    there = set(map(os.path.realpath, there))
    for result in (result for job in jobs for _, result in job.results):
        if os.path.realpath(result) in there:
            raise UserError(f"{shown(result)}: a result would replace this mask; choose another --output")


def file_of(masks: Masks, job: Job) -> Path:
    """The file of a picture's mask; raises UserError where there is none, or several."""
    if masks.files is None:
        return masks.place
    found = masks.files.get(_stem(PurePath(job.name)), [])
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{shown(job.picture)}: it has no mask in {shown(masks.place)}, where one has its name")
    raise UserError(f"{shown(job.picture)}: {shown(found[0])} and {shown(found[1])} are both its mask; remove one")


def mask_of(masks: Masks, job: Job, sides: tuple[int, int]) -> np.ndarray:
    """The mask of a picture of these sides, uint8 [H, W, 1]: 255 is to be painted, 0 is known.

    Raises UserError for a mask of other sides, with transparency or with several pages, and where there is none.
    """
    path = file_of(masks, job)
    colours, alpha, *_, pages = images.read_picture(path)
    is_transparent = alpha is not None and alpha.min() < value_range.white(alpha.dtype)
    _check(path, job, colours.shape[:2], sides, is_transparent, pages)
    return painted(path, colours)


class Rows:
    """The rows of a mask's file, as of `painted`. is_black: whether all that were read are black."""

    def __init__(self, file: windows.Tiff):
        self._file, self.held_bytes, self.is_black = file, file.held_bytes, True

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """[stop - start, W, 1]; errors as of `windows.Tiff.rows`."""
        found = painted(self._file.path, self._file.rows(start, stop))
        self.is_black = self.is_black and not found.any()
        return found


@contextlib.contextmanager
def opened(masks: Masks | None, job: Job, sides: tuple[int, int]) -> Iterator[Rows | None]:
    """The mask of a picture that is too large for memory, which must be a TIFF file too; None without masks.

    Errors as in `mask_of`.
    """
    if masks is None:
        yield None
        return
    path = file_of(masks, job)
    if not windows.is_tiff(path):
        raise UserError(f"{shown(path)}: the mask of a picture too large for memory must be a TIFF file too")
    with windows.open_tiff(path) as file:
        _check(path, job, file.shape[:2], sides, file.alpha, 1 + file.more_pages)
        yield Rows(file)


def painted(path, colours: np.ndarray) -> np.ndarray:
    """Of the levels [H, W, C] of a mask's file: 255 where they are at least half of white, 0 elsewhere, [H, W, 1]."""
    try:
        grey = of_channels(colours, 1)
    except ValueError:
        raise UserError(f"{shown(path)}: a mask is grey or RGB; it has {colours.shape[2]} bands") from None
    return np.where(2 * grey.astype(np.uint32) >= value_range.white(colours.dtype), np.uint8(255), np.uint8(0))


def _check(path, job, has, sides, is_transparent, pages):
    if has != sides:
        raise UserError(
            f"{shown(job.picture)}: it has {sides[1]} x {sides[0]} pixels, and its mask {shown(path)} has "
            f"{has[1]} x {has[0]}"
        )
    if is_transparent:
        raise UserError(f"{shown(path)}: a mask is black and white; it has transparency, save it without")
    if pages > 1:
        raise UserError(f"{shown(path)}: a mask has one page, for all pages of its picture; it has several")


def _stem(name):
    return name.with_suffix("").as_posix()
