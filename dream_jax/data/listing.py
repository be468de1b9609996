"""Pictures on the disk by name, with what lies beside them: of folders, and of files that hold many."""

import collections
import contextlib
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dream_jax.data import archives
from dream_jax.errors import UserError, shown, some
from dream_jax.files import formats, images, picture_files
from dream_jax.files.picture import USUAL, Reading
from dream_jax.tasks.beside import BESIDE

# How names of low-resolution pictures end, with their scale, and names of originals.
_LOW = re.compile(r"(?:[_-]?LR(?:BI)?|[_-]lr)(?:[_-]?x?(?P<a>\d+))?$|[_-]?[xX](?P<b>\d+)[mdw]?$")
_HIGH = re.compile(r"[_-]?HR$|[_-]hr$")


class Entry(NamedTuple):
    """A picture: a file, or what lies in one.

    Attributes:
      picture: the original; beside: what lies beside it, None where nothing is asked for; of classes the number.
      problem: why there is none of those that are asked for.
    """

    picture: Path | archives.Member
    beside: Path | archives.Member | int | None = None
    problem: str | None = None


def several(where) -> list:
    """The folders and files that a text names: commas lie between them, unless the whole text is one."""
    if isinstance(where, Path) or "," not in where or Path(where).expanduser().exists():
        return [where]
    return [part.strip() for part in where.split(",") if part.strip()]


def pictures(where, beside=None, scale: int = 1, kind: str = "low") -> dict[str, Entry]:
    """{name: picture} of folders and files, each with its own of this kind where `beside` names as many of them.

    Names are paths within a folder, FILE/NAME within a file, and FOLDER/NAME where there are several. A picture that
    lies in two of the folders counts once.

    Raises UserError for what cannot be listed or has no pictures.
    """
    places, others = several(where), [None] if beside is None else several(beside)
    if beside is None:
        others *= len(places)
    if len(others) != len(places):
        key = BESIDE[kind].folder
        raise UserError(f"data.{key}: name one for each of the {len(places)} folders of data.folder, in their order")
    each = (None if other is None else _of_one(other) for other in others)
    return _joined(
        places, [_paired(_of_one(place), other, scale, kind) for place, other in zip(places, each, strict=True)]
    )


def labelled(where, classes: tuple[str, ...]) -> dict[str, Entry]:
    """`pictures`, each with the number of its class, the first folder of its name below the one that is listed.

    Raises UserError also for pictures of other classes, and of none: it names them.
    """
    places, numbers, without = several(where), {name: number for number, name in enumerate(classes)}, []

    def entries(place):
        named = {name: (item, class_of(name)) for name, item in _of_one(place).items()}
        without.extend(f"{shown(item)}: {_class_problem(kind)}" for item, kind in named.values() if kind not in numbers)
        return {name: Entry(item, numbers.get(kind)) for name, (item, kind) in named.items()}

    found = _joined(places, [entries(place) for place in places])
    if without:
        raise UserError(f"{len(without)} of {len(found)} pictures have no class: {first(without)}")
    return found


def class_of(name: str) -> str:
    """The class of a picture by its name within a folder: its first folder's; empty where it lies in none."""
    return shown(name.partition("/")[0]) if "/" in name else ""


def classes(where) -> tuple[str, ...]:
    """The classes of the pictures of folders and files, sorted.

    Raises UserError for pictures that lie in no folder of a class, which are named, and for fewer than two classes.
    """
    named = [(item, class_of(name)) for place in several(where) for name, item in _of_one(place).items()]
    if without := [f"{shown(item)}: {_class_problem(kind)}" for item, kind in named if not kind]:
        raise UserError(f"{len(without)} of {len(named)} pictures have no class: {first(without)}")
    found = tuple(sorted({kind for _, kind in named}))
    if len(found) < 2:
        raise UserError(f"data.folder: {shown(where)} has one class, {some(found)}; classes are the folders in it")
    return found


def _class_problem(kind):
    return f"{kind} is none of data.classes" if kind else "it lies in no folder of a class"


def _joined(places, each):
    """One {name: Entry} of those of each place, with the names of the places before their own."""
    found, seen = {}, set()
    for prefix, entries in zip(_prefixes(places), each, strict=True):
        new = {
            f"{prefix}{name}": e for name, e in entries.items() if len(places) == 1 or identity(e.picture) not in seen
        }
        seen |= {identity(entry.picture) for entry in new.values()} if len(places) > 1 else set()
        found |= new
    return found


def title(where) -> str:
    """What folders and files are called together: the name of the first, and how many more there are."""
    first, *more = (archives.file_of(place).resolve().name for place in several(where))
    return f"{shown(first)}-and-{len(more)}-more" if more else shown(first)


def read(item: Path | archives.Member, reading: Reading = USUAL) -> np.ndarray:
    """The picture, levels [H, W, C]; raises UserError."""
    return images.read(item, reading) if isinstance(item, Path) else item.read(reading)


def read_noting(item: Path | archives.Member, reading: Reading) -> tuple[np.ndarray, list[str]]:
    """`read`, and what that leaves out, see `images.read_noting`."""
    return images.read_noting(item, reading) if isinstance(item, Path) else (item.read(reading), [])


def identity(item: Path | archives.Member) -> tuple:
    """Equal for the same file or place in one, whatever its name."""
    return (os.path.realpath(item),) if isinstance(item, Path) else (os.path.realpath(item.file), item.place)


def state(item: Path | archives.Member) -> tuple:
    """The size and time of a picture file, or those of the file that it lies in and the place there.

    None and None of what cannot be one: links to nowhere or in a circle, pipes, folders.
    """
    path, place = (item, ()) if isinstance(item, Path) else (item.file, (item.place,))
    with contextlib.suppress(OSError):
        about = path.stat()
        if stat.S_ISREG(about.st_mode):
            return about.st_size, about.st_mtime_ns, *place
    return None, None, *place


def first(lines: list[str], most: int = 10) -> str:
    """The first lines of a list for a message, and how many more there are."""
    more = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return "".join(f"\n  {line}" for line in [*lines[:most], *more])


def _prefixes(places):
    if len(places) == 1:
        return [f"{archives.file_of(places[0]).name}/" if archives.is_archive(places[0]) else ""]
    # As many of the last parts of each path as tell it from the others.
    parts = [archives.file_of(place).resolve().parts for place in places]
    # Arrays of one file are told apart by their keys.
    keys = [
        archives.key_of(place) if parts.count(path) > 1 else None for place, path in zip(places, parts, strict=True)
    ]
    parts = [path if key is None else (*path[:-1], f"{path[-1]}:{key}") for path, key in zip(parts, keys, strict=True)]
    if len(set(parts)) < len(parts):
        raise UserError(f"data.folder: {', '.join(map(shown, places))} names one folder twice")

    def ending(path):
        depths = range(1, len(path))
        alike = (depth for depth in depths if sum(path[-depth:] == other[-depth:] for other in parts) == 1)
        return "/".join(path[-next(alike, len(path)) :])

    return [f"{ending(path)}/" for path in parts]


def _of_one(place) -> dict:
    if archives.is_archive(place):
        return archives.members(place)
    folder = Path(place).expanduser()
    return {path.relative_to(folder).as_posix(): path for path in picture_files.list_pictures(folder)}


def _paired(originals, others, scale, kind):
    if others is None:
        return {name: Entry(item) for name, item in originals.items()}
    by_name, by_stem = {_without_suffix(name): item for name, item in others.items()}, collections.defaultdict(list)
    for name, item in by_name.items():
        by_stem[_LOW.sub("", name)].append((_scale_of(name), item))
    return {
        name: _entry(item, _without_suffix(name), by_name, by_stem, scale, kind) for name, item in originals.items()
    }


def _entry(item, name, by_name, by_stem, scale, kind):
    if name in by_name:
        return Entry(item, by_name[name])
    found = by_stem.get(_HIGH.sub("", name), [])
    if len(found) > 1:
        # Several folders of scales may lie in one, told apart by the names' ends alone.
        found = [(number, low) for number, low in found if number == scale]
    if len(found) == 1:
        return Entry(item, found[0][1])
    why = f"several {BESIDE[kind].nouns}" if found else f"no {BESIDE[kind].noun}"
    return Entry(item, problem=f"{shown(item)}: {why} of its name")


def _without_suffix(name):
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.rpartition(".")
    return f"{folder}{slash}{stem if dot and f'.{suffix}'.lower() in formats.SUFFIXES else last}"


def _scale_of(name):
    match = _LOW.search(name)
    number = match and (match["a"] or match["b"])
    return int(number) if number else None
