"""The range of training pictures' numbers."""

from pathlib import Path

import numpy as np

from dream_jax.data import listing
from dream_jax.errors import UserError
from dream_jax.files.images import read_pages
from dream_jax.files.numbers import OWN, from_levels

# Pictures, evenly spaced, and numbers of each that are looked at.
_PICTURES, _NUMBERS = 256, 2**16


def measure(folder, percentile: float) -> tuple[float, float]:
    """(low, high) of the numbers in picture files: so many per cent lie below high, and as many above low."""
    if folder is None:
        raise UserError("data.percentile: it is measured on the files of data.folder; name one, or give data.range")
    files = [entry.picture for entry in listing.pictures(folder).values() if isinstance(entry.picture, Path)]
    if not files:
        raise UserError(f"data.percentile: {folder} holds no picture files; give data.range")
    chosen = sorted(set(np.linspace(0, len(files) - 1, min(len(files), _PICTURES)).astype(int).tolist()))
    found = []
    for file in (files[i] for i in chosen):
        (picture,) = read_pages(file, 0, OWN)
        numbers = from_levels(picture.colours, picture.numbers).ravel()
        found.append(numbers[:: -(-len(numbers) // _NUMBERS)].astype(np.float64))
    low, high = np.percentile(np.concatenate(found), (100 - percentile, percentile))
    if not low < high:
        raise UserError(f"data.percentile: the numbers of {folder} are all {low:g}; give data.range")
    return float(low), float(high)
