"""How the numbers of a picture file become grey levels, and back."""

import math
from typing import NamedTuple

import numpy as np

# Floats of 0..255 have a number as large in any picture that is not black; those of 0..1 overshoot by less.
_LEAST_OF_255 = 2.0
# Rows are converted in bands of so many numbers: little is held twice.
_BAND = 2**20


class Numbers(NamedTuple):
    """The numbers of a file: numpy's name of their type, and those that mean black and white."""

    dtype: str = "uint8"
    low: float = 0.0
    high: float = 255.0

    @property
    def levels(self) -> np.dtype:
        """The type of the grey levels: uint8, 0..255, for files of 8 bits, uint16, 0..65535, for all others."""
        return np.dtype(np.uint8 if self.dtype == "uint8" else np.uint16)


EIGHT = Numbers()
SIXTEEN = Numbers("uint16", 0.0, 65535.0)

# Instead of a span: the numbers themselves are wanted, not levels.
OWN = "own"
# Of palettes their indices, too: numbers of classes.
CLASSES = "classes"
RAW = OWN, CLASSES


def numbers_of(dtype, lowest: float, highest: float, span=None, clip: bool = False) -> Numbers:
    """What the numbers of a file mean, from their type and the least and the greatest of them.

    Args:
      span: (low, high), black and white of files of more than 8 bits; by default 0..65535 of 16 bits, and 0..1 or
        0..255 of floats, whichever holds them; OWN and CLASSES leave the numbers as they are.
      clip: numbers outside are taken for black or white, instead of being refused.

    Raises ValueError for numbers outside, and for a type that has no usual span.
    """
    dtype = np.dtype(dtype)
    if dtype == np.uint8:
        return Numbers()
    if dtype.kind not in "uif":
        raise ValueError(f"its numbers are of the type {dtype}, which no picture has")
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError("it holds values that are not finite")
    if span in RAW:
        span = lowest, max(highest, np.nextafter(lowest, math.inf))
    elif span is None:
        span, said = _usual_span(dtype, highest)
        outside = lowest < span[0] or highest > span[1]
        if span[0] > span[1] or (outside and not clip):
            raise ValueError(
                f"{said}, found {lowest:g}..{highest:g}; say which mean black and white: --range LOW,HIGH, or "
                "data.range to train"
            )
    elif not clip and (lowest < span[0] or highest > span[1]):
        raise ValueError(
            f"its values, {lowest:g}..{highest:g}, lie outside the range {span[0]:g},{span[1]:g} (--range, or "
            "data.range to train); --clip, or data.clip=True to train, cuts them off there"
        )
    return Numbers(dtype.name, float(span[0]), float(span[1]))


def _usual_span(dtype, highest):
    if dtype == np.uint16:
        return (0.0, 65535.0), "numbers of 16 bits lie in 0..65535"
    if dtype.kind == "f" and not 1 < highest < _LEAST_OF_255:
        return (0.0, 1.0 if highest <= 1 else 255.0), "float values must lie in 0..1 or 0..255"
    # A little above 1 may be either; others have no usual black and white.
    return (math.inf, -math.inf), f"what its numbers ({dtype}) mean is not known"


def span_of_mask(values: np.ndarray) -> tuple[float, float] | None:
    """(black, white) of a mask's numbers, None of 8 and 16 bits: 0..1 where none is 2 or more, else 0..255 or more."""
    if values.dtype in (np.uint8, np.uint16):
        return None
    most = values.max()
    return 0.0, 1.0 if most < _LEAST_OF_255 else 255.0 if most <= 255 else 65535.0


def extremes(values: np.ndarray) -> tuple[float, float]:
    """(least, greatest) of an array; NaN where there is one."""
    return float(values.min()), float(values.max())


def levels_of(values: np.ndarray, span=None, clip: bool = False) -> tuple[np.ndarray, Numbers]:
    """(grey levels of a file's numbers, what they mean); arguments and errors as for `numbers_of`."""
    numbers = numbers_of(values.dtype, *extremes(values), span, clip)
    if span in RAW:
        return values, numbers
    return to_levels(values, numbers), numbers


def to_levels(values: np.ndarray, numbers: Numbers) -> np.ndarray:
    """Grey levels of a file's numbers, [H, ...]; those outside become black or white."""
    if numbers in (Numbers(), SIXTEEN) and values.dtype == numbers.levels:
        return values
    levels = np.empty(values.shape, numbers.levels)
    scale = 65535 / (numbers.high - numbers.low)
    for rows in _bands(values):
        scaled = (values[rows].astype(np.float64) - numbers.low) * scale
        levels[rows] = np.clip(np.floor(scaled + 0.5), 0, 65535)
    return levels


def from_levels(levels: np.ndarray, numbers: Numbers) -> np.ndarray:
    """A file's numbers of grey levels of its own type, [H, ...]; the inverse of `to_levels`."""
    if numbers in (Numbers(), SIXTEEN):
        return levels
    values = np.empty(levels.shape, numbers.dtype)
    scale = (numbers.high - numbers.low) / 65535
    for rows in _bands(levels):
        scaled = levels[rows].astype(np.float64) * scale + numbers.low
        if values.dtype.kind != "f":
            kind = np.iinfo(values.dtype)
            scaled = np.clip(np.floor(scaled + 0.5), kind.min, kind.max)
        values[rows] = scaled
    return values


def numbers_of_classes(values: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of classes [H, W, 1], uint8 or uint16, of a file's own [H, W, 1], or of three equal ones.

    Raises ValueError for colours, for numbers that are not whole, and for those that need more bits.
    """
    first = values[..., :1]
    if not np.array_equal(values, np.broadcast_to(first, values.shape)):
        raise ValueError(f"a map of classes has one number a pixel, and this has {values.shape[2]} different ones")
    least, most = extremes(first)
    if first.dtype.kind == "f" and not np.array_equal(first, np.floor(first)):
        raise ValueError("a map of classes holds whole numbers, and this has others")
    if not 0 <= least <= most < 2**bits:
        raise ValueError(
            f"its classes are numbered {least:g} to {most:g}, and data.bits = {bits} holds 0 to {2**bits - 1}"
        )
    return first.astype(np.uint16 if bits == 16 else np.uint8)


def of_bits(levels: np.ndarray, bits: int) -> np.ndarray:
    """Grey levels uint8 or uint16 [H, ...] as those of 8 or 16 bits, rounded to the nearest."""
    if bits == 16:
        return levels if levels.dtype == np.uint16 else levels.astype(np.uint16) * 257
    if levels.dtype == np.uint8:
        return levels
    rounded = np.empty(levels.shape, np.uint8)
    for rows in _bands(levels):
        rounded[rows] = (levels[rows].astype(np.uint32) + 128) // 257
    return rounded


def _bands(array):
    height = max(_BAND // max(math.prod(array.shape[1:]), 1), 1)
    return [slice(top, top + height) for top in range(0, len(array), height)]
