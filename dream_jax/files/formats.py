"""The formats that results are written in: what each can hold."""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from PIL import Image, features

from dream_jax.errors import UserError, shown


class Format(NamedTuple):
    """What a format can hold.

    Attributes:
      suffixes: of its files; the first is the usual one.
      options: how Pillow saves it.
      longest: the most pixels a side.
      extras: which of `Picture.extras` it can hold.
      alpha: whether it holds transparency.
      bits: the most for each colour; 32 are floats.
      grey: whether it holds pictures of one channel, without which grey is written as three.
      bands: the most channels of colour.
      pages: "pages" of any size, "frames" of one size, or none.
    """

    suffixes: tuple[str, ...]
    options: Mapping = MappingProxyType({})
    longest: float = math.inf
    extras: tuple[str, ...] = ("exif", "icc_profile", "dpi")
    alpha: bool = True
    bits: int = 8
    grey: bool = True
    bands: int = 3
    pages: str | None = None


# By Pillow's names.
FORMATS = {
    "PNG": Format((".png",), bits=16, pages="frames"),
    "JPEG": Format((".jpg", ".jpeg"), {"quality": 95, "subsampling": 0}, longest=65500, alpha=False),
    "WEBP": Format(
        (".webp",),
        {"lossless": True, "exact": True},
        longest=16383,
        extras=("exif", "icc_profile"),
        grey=False,
        pages="frames",
    ),
    "BMP": Format((".bmp",), extras=("dpi",), alpha=False),
    "TIFF": Format((".tif", ".tiff"), {"compression": "tiff_adobe_deflate"}, bits=32, bands=2**10, pages="pages"),
    "GIF": Format((".gif",), longest=65535, extras=(), grey=False, pages="frames"),
    "PPM": Format((".ppm", ".pgm", ".pnm"), extras=(), alpha=False, bits=16),
}
if features.check("jpg_2000"):
    FORMATS["JPEG2000"] = Format((".jp2",), extras=(), bits=16)
if features.check("avif"):
    FORMATS["AVIF"] = Format((".avif",), {"quality": 95}, longest=65536, extras=("exif", "icc_profile"), grey=False)
if importlib.util.find_spec("pillow_heif") is not None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS["HEIF"] = Format((".heic", ".heif"), {"quality": 95}, extras=("exif", "icc_profile"), grey=False)

# Files with these endings, in any case, are looked for.
SUFFIXES = tuple(suffix for kind in FORMATS.values() for suffix in kind.suffixes)

# How files begin, by format; ? is any byte.
_BEGINNINGS = {
    **{b"\x89PNG\r\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"RIFF????WEBP": "WebP", b"BM": "BMP"},
    **{b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF", b"\0\0\0\x0cjP  ": "JPEG 2000"},
    **{b"\xff\x4f\xff\x51": "JPEG 2000", b"????ftypavi": "AVIF", b"????ftyphei": "HEIC", b"????ftypmif1": "HEIC"},
}

# Of what is read otherwise.
NEEDED = {".heic": "pip install pillow-heif", ".heif": "pip install pillow-heif"}


def name_of(path) -> str:
    """Pillow's name of the format that a file's suffix stands for; raises UserError for others than SUFFIXES."""
    suffix = Path(path).suffix.lower()
    for name, kind in FORMATS.items():
        if suffix in kind.suffixes:
            return name
    raise UserError(f"{shown(path)}: the suffix must be one of {' '.join(SUFFIXES)}{hint([path])}")


def begins_as(start: bytes) -> str | None:
    """The format that a file's first bytes are of, None where they are of none that is known."""
    for beginning, name in _BEGINNINGS.items():
        if all(wanted in (ord("?"), found) for wanted, found in zip(beginning, start, strict=False)):
            return name if len(start) >= len(beginning) else None
    return None


def hint(paths) -> str:
    """The end of a message about files, where a reader that can be installed would read some of them."""
    suffixes = sorted({Path(path).suffix.lower() for path in paths} & NEEDED.keys())
    return f"; for {suffixes[0]} install its reader: {NEEDED[suffixes[0]]}" if suffixes else ""


def of(path) -> Format:
    """The format that a file's suffix stands for; errors as in `name_of`."""
    return FORMATS[name_of(path)]


def mode_of(channels: int) -> str:
    """Pillow's name of 8-bit pictures with so many channels, from 1 to 4: an even number has alpha."""
    return {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]


def has_pages(picture: Image.Image) -> int:
    """How many pages or frames an opened Pillow picture has."""
    return int(getattr(picture, "n_frames", 1))
