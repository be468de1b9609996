"""Where prepared pictures lie: in a folder named after what they are made of, and shared between crops where they can.

Training pictures longer than 4 * crop are cut, so that what is prepared depends on the crop. Where none is that long,
and none smaller than the crop, pictures are prepared alike for any crop: the folder of another one is taken.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dream_jax.data import listing
from dream_jax.data.beside import Beside
from dream_jax.files import atomic
from dream_jax.files.picture import USUAL, Reading

_NOTE = "prepared.json"


class Making(NamedTuple):
    """How pictures are read and prepared, see `folders.prepare_folder`; beside: what lies beside each."""

    crop: int
    resize: int | None
    skip_unreadable: bool
    whole: bool
    beside: Beside | None
    reading: Reading


class Place(NamedTuple):
    """What is prepared, and under which folder: title is the beginning of its name.

    splits: {split: {name: listing.Entry}}; version: of the format.
    """

    parent: Path
    title: str
    splits: dict
    making: Making
    version: str

    def find(self) -> Path:
        """The folder of exactly this, there or not; where it is not there, one of another crop that is the same."""
        own = self.parent / f"{self.title}-{self._digest(self.making.crop)}"
        if own.exists():
            return own
        crop, alike = self.making.crop, self._digest(None)
        for note in sorted(self.parent.glob(f"{self.title}-*/{_NOTE}")):
            # It may be damaged, or go meanwhile.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                about = json.loads(note.read_text())
                uncut = about["longest"] <= 4 * min(crop, about["crop"])
                if about["of"] == alike and uncut and about["shortest"] >= crop:
                    return note.parent
        return own

    def note(self, folder: Path, sides: Iterable[int] | None) -> None:
        """Writes into a prepared folder what other crops need to know; sides of its pictures, None where some miss."""
        if sides:
            about = {"of": self._digest(None), "crop": self.making.crop, "shortest": min(sides), "longest": max(sides)}
            atomic.write_json(folder / _NOTE, about)

    def _digest(self, crop):
        # What is appended came later: it leaves what was prepared before where it is.
        m = self.making
        settings = crop, m.resize, m.skip_unreadable, self.version
        more = *(["whole"] if m.whole else []), *(_about_beside(m.beside) if m.beside else [])
        more = *more, *(["read", *_about_reading(m.reading)] if m.reading != USUAL else [])
        digest = hashlib.sha256(repr((*settings, *more)).encode())
        for split, entries in self.splits.items():
            for name, entry in entries.items():
                digest.update(repr((split, name, *listing.state(entry.picture))).encode())
                if isinstance(entry.beside, int):
                    digest.update(repr(entry.beside).encode())
                elif entry.beside is not None:
                    digest.update(repr((Path(str(entry.beside)).name, *listing.state(entry.beside))).encode())
        return digest.hexdigest()[:16]


def _about_beside(beside):
    if beside.kind == "low":
        return ["pairs", beside.scale]
    return ["beside", beside.kind, *_about_reading(beside.reading or USUAL), *beside.classes]


def _about_reading(reading):
    later = [name for name in ("classes", "mask", "told") if getattr(reading, name)]
    return [reading.channels, reading.bits, reading.span, reading.clip, *later]
