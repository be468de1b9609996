"""The range of training pictures' numbers."""

from pathlib import Path

import numpy as np

from dream_jax.errors import UserError
from dream_jax.files.images import read_pages
from dream_jax.files.numbers import OWN

# Pictures, evenly spaced, and numbers of each that are looked at.
_PICTURES, _NUMBERS = 256, 2**16


def measure(settings) -> tuple[float, float]:
    """(low, high) of the numbers in the training pictures of `config.data`: `percentile` per cent lie below high.

    As many lie above low. Raises UserError where there are no files to measure.
    """
    from dream_jax.data import folders

    folder, percentile = settings.folder, settings.percentile
    if folder is None:
        raise UserError("data.percentile: it is measured on the files of data.folder; name one, or give data.range")
    splits = folders.split_files(folder, settings.eval_folder, settings.eval_percent)
    files = [entry.picture for entry in splits["train"].values() if isinstance(entry.picture, Path)]
    if not files:
        raise UserError(f"data.percentile: {folder} holds no picture files; give data.range")
    chosen = sorted(set(np.linspace(0, len(files) - 1, min(len(files), _PICTURES)).astype(int).tolist()))
    found = []
    for file in (files[i] for i in chosen):
        try:
            (picture,) = read_pages(file, 0, OWN)
        except UserError:
            if not settings.skip_unreadable:
                raise
            continue
        numbers = picture.colours.ravel()
        found.append(numbers[:: -(-len(numbers) // _NUMBERS)].astype(np.float64))
    if not found:
        raise UserError(f"data.percentile: no picture of {folder} can be read")
    low, high = np.percentile(np.concatenate(found), (100 - percentile, percentile))
    if not low < high:
        raise UserError(f"data.percentile: the numbers of {folder} are all {low:g}; give data.range")
    return float(low), float(high)
