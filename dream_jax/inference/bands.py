"""Rows of pictures that are never there as a whole: enlarged, filled up, kept on the disk.

A picture here is a function `rows(start, stop) -> array [stop - start, W, C]`.
"""

import functools
import tempfile

import numpy as np

# Pixels of a result that are enlarged, or get their noise, together.
BLOCK = 64

# Low-resolution pixels around a block from which it is enlarged: more than any kernel of `resize` reaches.
_MARGIN = 4


def by_strips(strip, height: int):
    """The picture whose rows i * height and below are `strip(i)`; the last two strips are kept."""
    strip = functools.lru_cache(maxsize=2)(strip)

    def rows(start, stop):
        numbers = range(start // height, -(-stop // height))
        return np.concatenate([strip(i)[max(start - i * height, 0) : stop - i * height] for i in numbers])

    return rows


def enlarged(low_rows, low: tuple[int, int], scale: int, enlarge):
    """A picture of sides `low` enlarged `scale` times.

    Args:
      enlarge: `[n, h, w, C] -> [n, scale * h, scale * w, C']`, which is done block by block with enough around each, so
        that the result is that of the whole.
    """
    height, width = low
    block = max(BLOCK // scale, 1)
    window = tuple(min(block + 2 * _MARGIN, side) for side in low)

    def before(number, side, length):
        return min(max(number * block - _MARGIN, 0), side - length)

    lefts = [before(i, width, window[1]) for i in range(-(-width // block))]

    def strip(number):
        top, first = before(number, height, window[0]), number * block
        low_strip = low_rows(top, top + window[0])
        large = np.asarray(enlarge(np.stack([low_strip[:, left : left + window[1]] for left in lefts])))
        down = slice((first - top) * scale, (min(first + block, height) - top) * scale)
        across = [
            slice((i * block - left) * scale, (min((i + 1) * block, width) - left) * scale)
            for i, left in enumerate(lefts)
        ]
        return np.concatenate([part[down, columns] for part, columns in zip(large, across, strict=True)], 1)

    return by_strips(strip, block * scale)


def filled(rows, has: tuple[int, int], sides: tuple[int, int]):
    """A picture of sides `has` filled up to `sides` at the right and below, by reflection as in `np.pad`."""
    sources = np.pad(np.arange(has[0]), (0, sides[0] - has[0]), mode="reflect")

    def more(start, stop):
        source = sources[start:stop]
        found = rows(source.min(), source.max() + 1)[source - source.min()]
        return np.pad(found, [(0, 0), (0, sides[1] - has[1]), (0, 0)], mode="reflect")

    return more


class Rolling:
    """A picture read downwards: rows that two calls share are read once."""

    def __init__(self, rows):
        self._rows, self._start, self._kept = rows, 0, None

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """As `rows(start, stop)`; neither may be less than in the call before."""
        if self._kept is None:
            self._kept = self._rows(start, stop)
        else:
            end = self._start + len(self._kept)
            new = [self._rows(end, stop)] if stop > end else []
            self._kept = np.concatenate([self._kept[start - self._start :], *new])
        self._start = start
        return self._kept


class Scratch:
    """Named float32 pictures [H, W, C] in a temporary file in a folder.

    The file has no name, so that it is gone when it is closed, and when the process is killed. It is read and written,
    not mapped: mapped pages would count as memory of the process. Raises OSError.
    """

    def __init__(self, folder, names, shape: tuple[int, int, int]):
        self._slots, self._shape = {name: i for i, name in enumerate(names)}, shape
        self._row_bytes = 4 * shape[1] * shape[2]
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        rows = np.empty((stop - start, *self._shape[1:]), np.float32)
        self._seek(name, start)
        if self._file.readinto(rows.view(np.uint8).reshape(-1)) != rows.nbytes:
            raise OSError(f"rows {start} to {stop} of {name} are not in the temporary file")
        return rows

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        self._seek(name, start)
        self._file.write(np.ascontiguousarray(rows, np.float32))

    def _seek(self, name, row):
        self._file.seek((self._slots[name] * self._shape[0] + row) * self._row_bytes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
