"""A picture as a file holds it, and as models and measures want it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from dream_jax.files.numbers import EIGHT, Numbers, numbers_of_classes, of_bits, to_levels


class Picture(NamedTuple):
    """What a file holds, upright.

    Attributes:
      colours: grey levels uint8 [H, W, C] of files of 8 bits, uint16 of all others; C is 1 (grey), 3 (RGB), or what
        the file has.
      alpha: the same [H, W], or None.
      extras: what is to be written again, as options of Pillow: exif (bytes), icc_profile (bytes, one that fits the
        colours), dpi; of frames also duration and loop; of TIFF files tags, and left_out, see `tiff_tags.kept`.
      numbers: what the file's own numbers mean.
      pages: how many pages or frames the file has.
    """

    colours: np.ndarray
    alpha: np.ndarray | None = None
    extras: Mapping = MappingProxyType({})
    numbers: Numbers = Numbers()
    pages: int = 1

    @property
    def grey(self) -> bool:
        return self.colours.shape[2] == 1


class Reading(NamedTuple):
    """How pictures are read for a model or a measure.

    Attributes:
      channels: of the array: grey becomes three equal ones, colours become their luma, n bands stay as they are; None
        are the file's own.
      bits: 8 or 16; None are the file's own.
      span: (low, high), the numbers that mean black and white in files of more than 8 bits; see `numbers_of`.
      clip: numbers outside are cut off there, instead of being refused.
      classes: numbers are those of classes, read as they are: grey values, and the indices of palettes.
      mask: levels are 0 or 255, see `as_mask`; what is transparent is 0.
      told: floats need a span, as the numbers of one file do not tell those of others: 0.9 may be 0.9 of 1 or of 255.
      prefix: how the names of a config's keys for this begin, for messages: data.{prefix}range.
    """

    channels: int | None = 3
    bits: int | None = 8
    span: tuple[float, float] | None = None
    clip: bool = False
    classes: bool = False
    mask: bool = False
    told: bool = False
    prefix: str = ""

    def said(self, problem: str) -> str:
        """What is wrong with a file, with the keys that help where it is read so."""
        if self.mask and "data." in problem:
            return problem.partition(";")[0].replace(" (data.channels)", "") + "; save the mask as a PNG of 0 and 255"
        for key in "channels", "bits", "range":
            problem = problem.replace(f"data.{key}", f"data.{self.prefix}{key}")
        return problem

    def check(self, dtype) -> None:
        """Raises ValueError for floats that need a span, and have none."""
        if self.told and self.span is None and np.dtype(dtype).kind == "f":
            raise ValueError("floats: say which mean black and white, data.range=LOW,HIGH")


USUAL = Reading()
MASK = Reading(1, 8, mask=True)


def as_wanted(
    levels: np.ndarray, reading: Reading, numbers: Numbers = EIGHT, alpha: np.ndarray | None = None
) -> np.ndarray:
    """Levels [H, W, C] with the channels and bits of a reading; errors as in `of_channels`.

    numbers, alpha: for masks, what the file's numbers mean, and [H, W] what is seen.
    """
    if reading.classes:
        return numbers_of_classes(levels, reading.bits or 16)
    if reading.mask:
        one = to_levels(np.ones((1, 1), numbers.dtype), numbers).item()
        return as_mask(levels, alpha, one=one)
    bits, channels = reading.bits or 8 * levels.dtype.itemsize, reading.channels or levels.shape[2]
    return of_channels(of_bits(levels, bits), channels)


def as_mask(levels: np.ndarray, alpha: np.ndarray | None = None, most: int | None = None, one: int = 1) -> np.ndarray:
    """0 or 255 [H, W, 1] of grey levels [H, W, C], which count as much as alpha [H, W] lets them be seen.

    Half of white is white, and so is the number 1, whose level is `one`, where no level that is seen is greater. That
    is `most`, which `greatest` tells, where these are but some rows of a mask. Raises ValueError for other bands than
    grey or RGB.
    """
    if levels.shape[2] not in (1, 3):
        raise ValueError(
            f"a mask is grey or RGB, and this has {levels.shape[2]} bands; save the mask as a PNG of 0 and 255"
        )
    most = greatest(levels, alpha) if most is None else most
    # Before levels of 16 bits become those of 8, where 1 would be black.
    ones = most == one < np.iinfo(levels.dtype).max
    levels = np.where(levels == one, np.uint8(255), np.uint8(0)) if ones else of_bits(levels, 8)
    seen = of_channels(levels, 1)
    if alpha is not None:
        seen = (seen.astype(np.uint16) * of_bits(alpha, 8)[..., None] + 127) // 255
    return np.where(seen >= 128, np.uint8(255), np.uint8(0))


def greatest(levels: np.ndarray, alpha: np.ndarray | None = None) -> int:
    """The greatest of grey levels [H, W, C] that are seen; 0 where none is."""
    return int((levels if alpha is None else levels[alpha > 0]).max(initial=0))


def of_channels(colours: np.ndarray, channels: int) -> np.ndarray:
    """Levels [..., C] with so many channels: grey as three equal ones, three as their luma (ITU-R BT.601).

    Raises ValueError, which counts them, for all others.
    """
    has = colours.shape[2]
    if has == channels:
        return colours
    if (has, channels) == (1, 3):
        return np.repeat(colours, 3, -1)
    if (has, channels) == (3, 1):
        weights = np.array([19595, 38470, 7471], np.uint32)
        return ((colours @ weights + 2**15) >> 16).astype(colours.dtype)[..., None]
    raise ValueError(f"it has {has} bands, and {channels} are asked for (data.channels)")
