"""TIFF files read and written in bands of rows, in bounded memory."""

import collections
import io
import math
import os
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from dream_jax.errors import UserError, shown
from dream_jax.files import atomic, formats, quiet, tiff_pages

quiet.silence()

# Of one strip or tile, and of all that lie beside each other: they are decoded as a whole.
_MOST_SEGMENT_BYTES = 2**30

_JPEG = (6, 7, 33007)
# Whose strips and tiles say their own size, by Pillow's names of the formats inside: JPEG 2000, PNG, WebP.
_PICTURES = (*_JPEG, 33003, 33004, 33005, 34712, 34933, 50001, 34927)
# Bytes that are decoded into a buffer of a given length: none, LZW, deflate, PackBits, LZMA, Zstandard.
_BYTES = (1, 5, 8, 32946, 32773, 34925, 50000, 34926)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6

TILE = 256
# Offsets of a TIFF file have 32 bits; what is not pixels takes the rest.
_MOST_CLASSIC_BYTES = 2**32 - 2**26


class Tiff:
    """An opened TIFF file: its first page, or the one of full resolution.

    shape: (H, W, C); dtype: uint8 or uint16; alpha: the last channel is transparency; more_pages: the file has others;
    held_bytes: the most that reading holds; extras: icc_profile and dpi, as in `images.Picture`, and tags, as of
    `tiff_tags.kept`; left_out: names of tags that are not kept.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        try:
            self._tiff = tifffile.TiffFile(self._file)
            numbers, more = tiff_pages.full_pages(self._tiff, most=2)
            self._page, self.more_pages = self._tiff.pages[numbers[0]], more or len(numbers) > 1
            _check_claims(self._page, self._file.seek(0, os.SEEK_END))
            page = self._page
            self.dtype = np.dtype(page.dtype).newbyteorder("=")
            self.shape = page.imagelength, page.imagewidth, page.samplesperpixel
            self.alpha = tiff_pages.ALPHA in page.extrasamples[-1:]
            self.extras = {"tags": {}, "left_out": []} | tiff_pages.beside(page)
            self.left_out = self.extras.pop("left_out")
            del self.extras["orientation"]
            self._height = page.tilelength if page.is_tiled else page.rowsperstrip
            self.held_bytes = 3 * _bytes_of_band(page)
            self._kept = collections.OrderedDict()
        except BaseException:
            self._file.close()
            raise

    def rows(self, start: int, stop: int) -> np.ndarray:
        """[stop - start, W, C] of the file's dtype. Raises UserError where the file is damaged there."""
        if not 0 <= start < stop <= self.shape[0]:
            raise ValueError(f"rows {start} to {stop} of {self.shape[0]}")
        try:
            bands = range(start // self._height, -(-stop // self._height))
            parts = [self._part(k, max(start - k * self._height, 0), stop - k * self._height) for k in bands]
        except Exception as error:  # decoders raise almost anything
            raise _unreadable(self.path, error) from error
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.iinfo(self.dtype).max - rows if self._page.photometric == _WHITE_IS_ZERO else rows

    def close(self) -> None:
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _part(self, band, start, stop):
        if _is_plain(self._page):
            return self._plain(band, start, min(stop, self._height, self.shape[0] - band * self._height))
        if band not in self._kept:
            self._kept[band] = self._decode(band)
            while len(self._kept) > 2 and sum(part.nbytes for part in self._kept.values()) > self.held_bytes // 3:
                self._kept.popitem(last=False)
        return self._kept[band][start:stop]

    def _plain(self, band, start, stop):
        """Rows of strips that are not compressed, which may be as high as the picture."""
        page, (_, width, channels) = self._page, self.shape
        planes = channels if page.planarconfig == 2 else 1
        item = np.dtype(f"{self._tiff.byteorder}{self.dtype.char}")
        size = (stop - start) * width * channels // planes * item.itemsize
        read = []
        for plane in range(planes):
            offset = page.dataoffsets[plane * _bands(page) + band] + size // (stop - start) * start
            read.append(np.frombuffer(self._read(offset, size), item).reshape(stop - start, width, -1))
        return np.concatenate(read, -1).astype(self.dtype)

    def _decode(self, band):
        page, (height, width, channels) = self._page, self.shape
        rows = min(self._height, height - band * self._height)
        across = -(-width // page.tilewidth) if page.is_tiled else 1
        planes = channels if page.planarconfig == 2 else 1
        picture = np.empty((rows, width, channels), self.dtype)
        for plane in range(planes):
            first = (plane * _bands(page) + band) * across
            for index in range(first, first + across):
                left = (index - first) * (page.tilewidth if page.is_tiled else width)
                right = min(left + (page.tilewidth if page.is_tiled else width), width)
                channel = slice(plane, plane + 1) if planes > 1 else slice(None)
                segment = self._segment(index)
                picture[:, left:right, channel] = page.nodata if segment is None else segment[:rows, : right - left]
        return picture

    def _segment(self, index):
        """A decoded strip or tile [h, w, c]; None of one that is not there and so holds the file's "no data"."""
        page, size = self._page, self._page.databytecounts[index]
        if not size:
            return None
        data, tables = self._read(page.dataoffsets[index], size), {}
        if page.compression in _PICTURES:
            most = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of sizes, which are compared here
                with Image.open(io.BytesIO(data)) as inner:
                    width, height = inner.size
            if width > most[0] or height > most[1]:
                raise ValueError(f"a strip or tile says that it is of {width} x {height} pixels")
        if page.compression in _JPEG:
            tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        decoded, _, _ = page.decode(data, index, **tables)
        if decoded.dtype != self.dtype:
            raise ValueError(f"a strip or tile holds {decoded.dtype}")
        return decoded[0]

    def _read(self, offset, size):
        self._file.seek(offset)
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            got = self._file.readinto(view[done:])
            if not got:
                raise ValueError("it is truncated")
            done += got
        return bytes(data)


def is_tiff(path) -> bool:
    """Whether a file begins as TIFF files do; False where it cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return formats.begins_as(file.read(4)) == "TIFF"
    except OSError:
        return False


def open_tiff(path) -> Tiff:
    """Opens a TIFF file of 8 or 16 bits to be read in bands of rows, without reading its pixels.

    Raises UserError for what is no such file, for one whose claims do not fit its bytes, and for strips or tiles that
    would take more than 1 GiB beside each other.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is not a file")
        return Tiff(path)
    except Exception as error:  # tags that lie raise almost anything
        raise _unreadable(path, error) from error


def _unreadable(path, error):
    reason = "not enough memory" if isinstance(error, MemoryError) else getattr(error, "strerror", None) or str(error)
    return UserError(f"{shown(path)}: cannot be read in windows ({shown(reason or type(error).__name__)[:300]})")


def _bands(page):
    """How many strips or tiles lie below each other."""
    return -(-page.imagelength // (page.tilelength if page.is_tiled else page.rowsperstrip))


def _bytes_of_band(page):
    """Of the strips or tiles beside each other, decoded; of one row of pixels where single rows can be read."""
    rows = 1 if _is_plain(page) else page.tilelength if page.is_tiled else page.rowsperstrip
    width = -(-page.imagewidth // page.tilewidth) * page.tilewidth if page.is_tiled else page.imagewidth
    return rows * width * page.samplesperpixel * np.dtype(page.dtype).itemsize


def _is_plain(page):
    return page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and not page.is_tiled


def _check_claims(page, file_bytes):
    """Raises ValueError for a page that cannot be read in windows, or whose claims do not fit the file."""
    kind = page.dtype and np.dtype(page.dtype)
    if kind not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16):
        raise ValueError(f"its values are {kind} of {page.bitspersample} bits; 8 or 16 without sign are needed")
    sides = page.imagelength, page.imagewidth, page.samplesperpixel, page.imagedepth
    if min(sides) < 1 or page.imagedepth != 1 or page.planarconfig not in (1, 2) or page.samplesperpixel > 2**12:
        raise ValueError(f"it says that it has {sides[0]} x {sides[1]} x {sides[3]} pixels of {sides[2]} samples")
    if page.is_tiled:
        if min(page.tilelength, page.tilewidth) < 1 or page.tiledepth != 1:
            raise ValueError(f"it says that its tiles have {page.tilelength} x {page.tilewidth} pixels")
    elif page.rowsperstrip < 1:
        raise ValueError("it says that its strips have no rows")
    if page.compression not in (*_BYTES, *_PICTURES):
        raise ValueError(f"its compression {page.compression} is not known here; save it with deflate")
    allowed = (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) + (_YCBCR,) * (page.compression in _JPEG)
    if page.photometric not in allowed or (page.is_subsampled and page.compression not in _JPEG):
        raise ValueError(f"its colours are {page.photometric!r}; save it as grey or RGB")
    if page.photometric == _WHITE_IS_ZERO and page.samplesperpixel != 1:
        raise ValueError("white is 0 in it, beside other channels; save it as grey or RGB")
    if tiff_pages.MULTIPLIED in page.extrasamples:
        raise ValueError("its colours are multiplied by its transparency; save it with a plain alpha channel")
    tag = page.tags.get(274)
    if tag is not None and tag.value != 1:
        raise ValueError("its pixels lie turned (its tag Orientation is not 1); save it upright")
    if _bytes_of_band(page) > _MOST_SEGMENT_BYTES:
        raise ValueError("its strips or tiles are too large to be decoded one by one; save it in tiles of 256 pixels")
    _check_segments(page, file_bytes)


def _check_segments(page, file_bytes):
    across = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1
    number = _bands(page) * across * (page.samplesperpixel if page.planarconfig == 2 else 1)
    if not len(page.dataoffsets) == len(page.databytecounts) == number:
        raise ValueError(f"it lists {len(page.dataoffsets)} strips or tiles; {number} make the picture")
    offsets, counts = (np.array(values, np.float64) for values in (page.dataoffsets, page.databytecounts))
    if (offsets < 0).any() or (counts < 0).any() or (offsets + counts > file_bytes).any():
        raise ValueError("it is truncated")
    if counts.max() > 2 * _MOST_SEGMENT_BYTES and not _is_plain(page):
        raise ValueError("its strips or tiles are too large to be decoded one by one; save it in tiles of 256 pixels")
    if _is_plain(page):
        rows = np.full(_bands(page), page.rowsperstrip)
        rows[-1] = page.imagelength - (len(rows) - 1) * page.rowsperstrip
        needed = np.tile(rows, number // len(rows)) * float(_bytes_of_band(page)) * len(rows) / number
        if (counts < needed).any():
            raise ValueError("its strips hold fewer bytes than their pixels take")


def write_tiff(path, shape, dtype, bands: Iterable[np.ndarray], extras=None, alpha=False, overwrite=False) -> None:
    """Writes a TIFF file of tiles from bands [any number of rows, W, C], in order; it appears whole or not at all.

    Args:
      shape: (H, W, C); dtype: uint8 or uint16.
      extras: as of `Tiff`; alpha: the last channel is transparency.

    Compressed with deflate; a BigTIFF where the pixels could take more than 4 GiB. Raises UserError for an existing
    file unless `overwrite`, and when the file cannot be written; what `bands` raises passes.
    """
    path, dtype = Path(path), np.dtype(dtype)
    if path.exists() and not overwrite:
        raise UserError(f"{shown(path)}: exists already; name another file or pass --overwrite")
    options = tiff_pages.write_options(shape[2], alpha, extras or {})
    options |= {"tile": (TILE, TILE), "compression": "zlib", "predictor": True}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=_is_big(shape, dtype)) as file:
            # One channel has no axis of its own for it.
            stored = shape[: 2 if shape[2] == 1 else 3]
            file.write(_tiles(bands, shape, dtype), shape=stored, dtype=dtype, **options)
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be written ({error.strerror or error})") from error


def _is_big(shape, dtype):
    return math.prod(shape) * dtype.itemsize > _MOST_CLASSIC_BYTES


def _tiles(bands, shape, dtype):
    """The tiles of a picture, row by row, filled up with zeros at the right and below."""
    height, width, channels = shape
    waiting, count, done = [], 0, 0
    for band in bands:
        if band.dtype != dtype or band.shape[1:] != (width, channels):
            raise ValueError(f"a band is {dtype} [., {width}, {channels}], not {band.dtype} {band.shape}")
        waiting, count, done = [*waiting, band], count + len(band), done + len(band)
        if count < TILE and done < height:
            continue
        rows = np.concatenate(waiting)
        while len(rows) >= TILE or (len(rows) and done == height):
            yield from _tiles_across(rows[:TILE])
            rows = rows[TILE:]
        waiting, count = [rows], len(rows)
    if done != height:
        raise ValueError(f"the bands have {done} rows, not {height}")


def _tiles_across(rows):
    for left in range(0, rows.shape[1], TILE):
        tile = np.zeros((TILE, TILE, rows.shape[2]), rows.dtype)
        part = rows[:, left : left + TILE]
        tile[: part.shape[0], : part.shape[1]] = part
        yield tile
