"""The picture files in a folder."""

import os
from pathlib import Path

from dream_jax.errors import UserError, shown
from dream_jax.files.formats import SUFFIXES, hint

# What systems leave beside pictures; macOS also ._NAME, what it knows of the file NAME, on other systems' disks.
_SIDECARS = (".DS_Store", "Thumbs.db", "desktop.ini")


def list_pictures(folder):
    """The picture files (by suffix, any case) in a folder and its subfolders, as a sorted list of paths.

    Links to folders are followed, each folder once. Files that systems leave beside pictures are none.
    Raises UserError if the folder is missing, is a file, cannot be listed or has no pictures.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        what = "it is a file, not a folder" if folder.exists() else "there is no such folder"
        raise UserError(f"{shown(folder)}: {what}")

    found = [path for path in _files(folder) if path.name.lower().endswith(SUFFIXES)]
    if not found:
        looked_for = f"files ending in {' '.join(SUFFIXES)} are looked for{hint(_files(folder))}"
        raise UserError(f"{shown(folder)}: no pictures found; {looked_for}")
    return found


def list_others(folder):
    """The files that `list_pictures` leaves out, but for those that systems leave there, as a sorted list of paths."""
    return [path for path in _files(folder) if not path.name.lower().endswith(SUFFIXES)]


def _files(folder):
    """The files in a folder and below, sorted; see `list_pictures`."""

    def refuse(error):
        raise UserError(f"{shown(error.filename)}: cannot be listed ({error.strerror})") from error

    found, seen = [], {os.path.realpath(folder)}

    def is_new(path):
        # A link may lead to a folder above itself, or two of them to one.
        real = os.path.realpath(path)
        return real not in seen and not seen.add(real)

    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in sorted(folders) if is_new(os.path.join(root, name))]
        found += [Path(root, name) for name in names if not name.startswith("._") and name not in _SIDECARS]
    return sorted(found)
