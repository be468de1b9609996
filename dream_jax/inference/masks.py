"""A person's masks: which pixels of their pictures are to be painted."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from dream_jax.errors import UserError, shown
from dream_jax.files import images, picture_files, windows
from dream_jax.files.picture import MASK, as_mask, greatest
from dream_jax.inference.jobs import Job

# Rows of a mask that are looked through at once.
_AT_ONCE = 64


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
    for path in picture_files.list_pictures(place):
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

    Read as in training, see `picture.as_mask`. Raises UserError for a mask of other sides or with several pages, and
    where there is none.
    """
    path = file_of(masks, job)
    # All that can be noted of a mask is that it has further pages.
    mask, notes = images.read_noting(path, MASK)
    _check(path, job, mask.shape[:2], sides, has_pages=bool(notes))
    return mask


class Rows:
    """The rows of a mask's file, read as in `mask_of`. is_black: whether all that were read are black.

    Raises UserError for a damaged file, and for one that is not grey or RGB.
    """

    def __init__(self, file: windows.Tiff):
        self._file, self.held_bytes, self.is_black = file, file.held_bytes, True
        self._most = self._greatest()

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """[stop - start, W, 1]."""
        try:
            found = as_mask(*self._levels(start, stop), self._most)
        except ValueError as error:
            raise UserError(f"{shown(self._file.path)}: {error}") from None
        self.is_black = self.is_black and not found.any()
        return found

    def _levels(self, start, stop):
        rows = self._file.rows(start, stop)
        return (rows[..., :-1], rows[..., -1]) if self._file.alpha else (rows, None)

    def _greatest(self):
        """Of all levels, or some level above 1: none further tells more."""
        height, most = self._file.shape[0], 0
        for start in range(0, height, _AT_ONCE):
            most = max(most, greatest(*self._levels(start, min(start + _AT_ONCE, height))))
            if most > 1:
                break
        return most


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
        _check(path, job, file.shape[:2], sides, file.more_pages)
        yield Rows(file)


def _check(path, job, has, sides, has_pages):
    if has != sides:
        raise UserError(
            f"{shown(job.picture)}: it has {sides[1]} x {sides[0]} pixels, and its mask {shown(path)} has "
            f"{has[1]} x {has[0]}"
        )
    if has_pages:
        raise UserError(f"{shown(path)}: a mask has one page, for all pages of its picture; it has several")


def _stem(name):
    return name.with_suffix("").as_posix()
