"""Masks of a folder: by name one for each picture, or any number of them, of which each example gets one."""

import sys
from collections.abc import Callable

import numpy as np

from dream_jax.data import listing
from dream_jax.errors import UserError
from dream_jax.files.picture import MASK, Reading

# Pictures, evenly spaced, of which the sizes are compared with those of their masks.
_LOOKED_AT = 8


def by_name(
    pictures, masks, paired: Callable[[], dict[str, listing.Entry]], reading: Reading, what: str
) -> dict[str, listing.Entry] | None:
    """The pictures with their own masks; None unless all have one of their name, and of their size.

    It says on the screen which it is.

    Args:
      pictures, masks: the places of both; there can be masks by name where these are as many.
      paired: `() -> pictures with the masks of their names`.
      reading: how the pictures are read.
      what: they are called.
    """
    found = paired() if len(listing.several(pictures)) == len(listing.several(masks)) else {}
    entries = list(found.values())
    named = [entry for entry in entries if entry.beside is not None]
    fits = len(named) == len(entries) > 0 and _some_fit(named, reading)
    said = "each picture has its own, by name"
    if not fits:
        partly = 0 < len(named) < len(entries)
        why = f" ({len(named)} of {len(entries)} pictures have one of their name)" if partly else ""
        said = f"each example gets any of {len(listing.pictures(masks))}, brought to its size{why}"
    print(f"masks of {what} from {listing.title(masks)}: {said}", file=sys.stderr)
    return found if fits else None


def _some_fit(entries, reading):
    # Where some fit and others do not, these are named when they are read.
    chosen = sorted(set(np.linspace(0, len(entries) - 1, _LOOKED_AT).astype(int).tolist()))
    return any(_fits(entries[i], reading) for i in chosen)


def _fits(entry, reading):
    try:
        return listing.read(entry.picture, reading).shape[:2] == listing.read(entry.beside, MASK).shape[:2]
    except UserError:
        return False
