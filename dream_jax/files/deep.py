"""Pictures of more than 8 bits, or of more bands than colours and alpha: what Pillow would cut down or not know."""

import io
import math
import struct
from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile

from dream_jax.files import limits, tiff_pages
from dream_jax.files.numbers import RAW, Numbers, levels_of, to_levels

# Those whose decoders make no more bytes than they are asked for, by TIFF's numbers.
_COMPRESSIONS = (1, 5, 8, 32773, 32946, 34925, 50000)
_MINISWHITE, _MINISBLACK, _RGB = 0, 1, 2
_CODESTREAM = b"\xff\x4f\xff\x51"


class Deep(NamedTuple):
    """What a file holds: levels [H, W, C] uint8 or uint16, alpha alike [H, W] or None, and what its numbers mean."""

    colours: np.ndarray
    alpha: np.ndarray | None
    numbers: Numbers


def needs_tifffile(page) -> bool:
    """Whether Pillow would not give all of a page: deeper numbers, or bands that are neither colours nor alpha."""
    if page.photometric not in (_MINISWHITE, _MINISBLACK, _RGB):
        return False
    return page.dtype not in (np.uint8, np.bool_) or page.samplesperpixel - tiff_pages.alphas(page) not in (1, 3)


def read_tiff(page, span=None, clip: bool = False) -> Deep:
    """A page that `needs_tifffile`; span and clip as for `numbers_of`. Raises ValueError for what it cannot hold."""
    if page.dtype is None or page.photometric not in (_MINISWHITE, _MINISBLACK, _RGB):
        raise ValueError(f"its values are of a kind that is not supported ({page.photometric!r}, {page.dtype})")
    if page.compression not in _COMPRESSIONS:
        raise ValueError(f"its compression {page.compression!r} is not supported for more than 8 bits or 4 bands")
    if page.axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"its axes are {page.axes}, not rows, columns and bands")
    if math.prod(page.shape) * page.dtype.itemsize > limits.most_bytes():
        raise ValueError(f"its {page.shape} values take more than the {limits.most_bytes()} bytes allowed")
    if page.samplesperpixel > 1 and tiff_pages.alphas(page) > 1:
        raise ValueError(f"it has {tiff_pages.alphas(page)} bands of transparency")
    values = np.atleast_3d(page.asarray(maxworkers=1))
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    found = from_values(
        values, tiff_pages.alphas(page), span or _packed_span(page), clip, page.photometric == _MINISWHITE
    )
    return _divided_by_alpha(found) if tiff_pages.MULTIPLIED in page.extrasamples and span not in RAW else found


def _divided_by_alpha(deep: Deep) -> Deep:
    """Of colours that were multiplied by alpha."""
    top = np.iinfo(deep.colours.dtype).max
    alpha = np.maximum(deep.alpha, 1)[..., None].astype(np.float32)
    colours = np.minimum(np.floor(deep.colours * (top / alpha) + 0.5), top).astype(deep.colours.dtype)
    return deep._replace(colours=colours)


def _packed_span(page):
    """Of whole numbers of 9 to 15 bits, which have their own white."""
    bits = page.bitspersample
    return (0, 2**bits - 1) if isinstance(bits, int) and 8 < bits < 16 and page.dtype.kind == "u" else None


def from_values(values: np.ndarray, alphas: int = 0, span=None, clip: bool = False, inverted: bool = False) -> Deep:
    """Of numbers [H, W, C], the last of which may be alpha; inverted where the least is white."""
    levels, numbers = levels_of(np.ascontiguousarray(values[..., : values.shape[-1] - alphas]), span, clip)
    if inverted and span not in RAW:
        levels = np.iinfo(levels.dtype).max - levels
    alpha = None
    if alphas:
        alpha = to_levels(np.ascontiguousarray(values[..., -1]), alpha_numbers(values.dtype))
    return Deep(levels, alpha, numbers)


def read_png(data: bytes, span=None, clip: bool = False) -> Deep:
    """A PNG of 16 bits; its size was checked."""
    values = np.atleast_3d(imagecodecs.png_decode(data))
    return from_values(values, 1 - values.shape[-1] % 2, span, clip)


def read_ppm(data: bytes, offset: int, shape: tuple[int, int, int], most: int, span=None, clip: bool = False) -> Deep:
    """A PPM or PGM [H, W, 3 or 1], whose numbers of two bytes from 0 to `most` begin at an offset."""
    values = np.frombuffer(data, ">u2", math.prod(shape), offset).reshape(shape)
    return from_values(values.astype(np.uint16), 0, span or (0, most), clip)


def bits_of_jpeg2000(data: bytes) -> int:
    """How many bits a JPEG 2000 codestream has for each colour, by its header (ISO 15444-1, A.5.1)."""
    at = data.find(_CODESTREAM)
    size = at + 4 + 2 + 2 + 32 + 2
    return 8 if at < 0 or size >= len(data) else (data[size] & 0x7F) + 1


def read_jpeg2000(data: bytes, span=None, clip: bool = False) -> Deep:
    """A JPEG 2000 picture of more than 8 bits; its size was checked."""
    values, bits = np.atleast_3d(imagecodecs.jpeg2k_decode(data)), bits_of_jpeg2000(data)
    return from_values(values, 1 - values.shape[-1] % 2, span or (0, 2**bits - 1), clip)


def encode_png(values: np.ndarray, extras: bytes) -> bytes:
    """A PNG of uint16 [H, W, 1 to 4]. extras: a PNG whose chunks between header and pixels are taken over."""
    shape = values.shape if values.shape[2] > 1 else values.shape[:2]
    encoded = imagecodecs.png_encode(np.ascontiguousarray(values.reshape(shape)), level=6)
    after_header = 8 + 12 + 13
    return encoded[:after_header] + b"".join(_ancillary(extras)) + encoded[after_header:]


def _ancillary(png):
    at = 8
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        # A small letter: a chunk that a reader may leave out.
        if kind[:1].islower() and kind not in (b"tRNS", b"bKGD", b"sBIT", b"hIST"):
            yield png[at : at + 12 + length]
        at += 12 + length


def encode_ppm(values: np.ndarray) -> bytes:
    """A PPM of uint16 [H, W, 3], or a PGM of [H, W, 1]."""
    height, width, channels = values.shape
    return b"P%d %d %d 65535\n" % (5 if channels == 1 else 6, width, height) + values.astype(">u2").tobytes()


def encode_jpeg2000(values: np.ndarray) -> bytes:
    """A lossless JPEG 2000 file of uint16 [H, W, 1 to 4]."""
    shape = values.shape if values.shape[2] > 1 else values.shape[:2]
    return imagecodecs.jpeg2k_encode(np.ascontiguousarray(values.reshape(shape)), level=0, codecformat="jp2")


def encode_tiff(pages: list[tuple[np.ndarray, np.ndarray | None, dict]]) -> bytes:
    """A TIFF of pages of (numbers [H, W, C], alpha or None, icc_profile, dpi and tags as far as there are any)."""
    with io.BytesIO() as file:
        with tifffile.TiffWriter(file) as writer:
            for values, alpha, extras in pages:
                stacked = values if alpha is None else np.dstack([values, alpha])
                options = tiff_pages.write_options(stacked.shape[2], alpha is not None, extras)
                predictor = values.dtype.kind != "f"
                stacked = stacked if stacked.shape[2] > 1 else stacked[..., 0]
                writer.write(stacked, compression="adobe_deflate", predictor=predictor, **options)
        return file.getvalue()


def alpha_numbers(dtype) -> Numbers:
    """What alpha's numbers mean in a file of this type."""
    dtype = np.dtype(dtype)
    return Numbers(dtype.name, 0.0, 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max))
