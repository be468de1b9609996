"""The folder of what can be made or downloaded again: prepared pictures, compiled programs, metrics' weights."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from dream_jax.errors import UserError, shown


def root() -> Path:
    """DREAM_JAX_CACHE, else XDG_CACHE_HOME/dream_jax, else ~/.cache/dream_jax."""
    chosen = os.environ.get("DREAM_JAX_CACHE")
    if not chosen:
        chosen = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dream_jax"
    return Path(chosen).expanduser()


class Entry(NamedTuple):
    """A folder or file in the cache: its name, its size in bytes, and when it was last changed, in seconds of Unix."""

    name: str
    size: int
    changed: float


def entries() -> list[Entry]:
    """What lies in the cache, the largest first."""
    folder = root()
    paths = list(folder.iterdir()) if folder.is_dir() else []
    return sorted((Entry(path.name, size_of(path), _changed(path)) for path in paths), key=lambda entry: -entry.size)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links count for nothing."""
    total = 0
    for file in path.rglob("*") if path.is_dir() and not path.is_symlink() else (path,):
        # Another process may remove it meanwhile.
        with contextlib.suppress(OSError):
            total += 0 if file.is_symlink() or file.is_dir() else file.stat().st_size
    return total


def _changed(path):
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def remove(names: list[str]) -> int:
    """Removes entries by their names; returns the bytes that they took.

    Raises UserError, before anything is removed, for names that are none of the cache's.
    """
    there = {entry.name: entry for entry in entries()}
    for name in names:
        if name not in there:
            raise UserError(f"{shown(name)}: there is no such entry in {root()}: {', '.join(there) or 'it is empty'}")
    for name in names:
        path = root() / name
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            raise UserError(f"{path}: cannot be removed ({error.strerror or error})") from error
    return sum(there[name].size for name in names)
