"""Picture files: reading, with what is to be kept beside the pixels, and writing."""

import io
import math
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dream_jax.errors import UserError, shown
from dream_jax.files import atomic, decoding, encoding, formats, limits, quiet
from dream_jax.files.numbers import CLASSES, SIXTEEN, Numbers, of_bits
from dream_jax.files.picture import USUAL, Picture, Reading, as_wanted

quiet.silence()


def resize_shorter_side(picture, size):
    """Resize levels [H, W, C] on the host with Pillow's bicubic kernel; the proportions stay.

    Returns levels alike with min(H, W) == size. Raises UserError where that is more than `limits.most_pixels`.
    """
    height, width = picture.shape[:2]
    ratio = size / min(height, width)
    target = tuple(max(size, math.floor(side * ratio + 0.5)) for side in (width, height))
    most = limits.most_pixels()
    if math.prod(target) > most:
        raise UserError(f"{width}x{height} pixels with the shorter side made {size} are more than the {most} allowed")
    if target == (width, height):
        return picture
    if picture.dtype == np.uint8 and picture.shape[2] == 3:
        return np.array(Image.fromarray(picture).resize(target, Image.Resampling.BICUBIC))
    bands = [resize_band(np.ascontiguousarray(picture[..., band]), target) for band in range(picture.shape[2])]
    return np.stack(bands, -1)


def resize_nearest(levels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Levels [H, W, C] brought to other sides, each pixel that of the nearest place: no levels arise between."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), levels.shape[:2], strict=True)
    )
    return levels[rows[:, None], columns]


def resize_band(levels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Levels uint8 or uint16 [H, W] resized to (width, height) with Pillow's bicubic kernel."""
    if levels.dtype == np.uint8:
        return np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC))
    # Pillow resizes 16 bits as floats.
    resized = np.asarray(Image.fromarray(levels.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    return np.clip(np.floor(resized + 0.5), 0, 65535).astype(levels.dtype)


def _reason(error, path):
    if isinstance(error, UnidentifiedImageError):
        start = _start_of(path)
        begins_as = formats.begins_as(start)
        if not start:
            return "it is empty, which is no known picture format"
        if begins_as == "HEIC" and "HEIF" not in formats.FORMATS:
            return f"its reader is not installed: {formats.NEEDED['.heic']}"
        if begins_as:
            return f"it begins as {begins_as}, and is damaged or of a kind that is not read here"
        return f"its bytes are no known picture format, none of {', '.join(decoding.READ)}"
    if isinstance(error, MemoryError):
        return "not enough memory"
    return shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:300]


def _start_of(path):
    if isinstance(path, bytes):
        return path[:16]
    with open(path, "rb") as file:
        return file.read(16)


def _read(path, managed, which=0, span=None, clip=False, said=str):
    name = "picture" if isinstance(path, bytes) else shown(path)
    try:
        if isinstance(path, bytes):
            return decoding.decode(decoding.Reader(io.BytesIO(path)), managed, which, span, clip)
        about = os.stat(path)
        # A named pipe would block the reader for ever.
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is not a file")
        if about.st_size > limits.most_bytes():
            raise ValueError(f"{about.st_size} bytes are more than the {limits.most_bytes()} allowed")
        with decoding.Reader(open(path, "rb", buffering=0)) as file:
            return decoding.decode(file, managed, which, span, clip)
    except Exception as error:  # Decoders raise almost any kind of exception on damaged files.
        raise UserError(f"{name}: cannot be read as a picture ({said(_reason(error, path))})") from error


def claimed_pixels(path) -> int:
    """How many pixels a picture file says it has; 0 where it is none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return 0
        with decoding.Reader(open(path, "rb", buffering=0)) as file, Image.open(file, formats=decoding.READ) as picture:
            return math.prod(picture.size)
    except Exception:  # as in reading
        return 0


def read_pages(path, page: int | None = None, span=None, clip: bool = False) -> list[Picture]:
    """Read a picture file with what is to be kept beside its pixels: all its pages, or one, from 0.

    The pixels are upright, so that the EXIF tags are without orientation, and without thumbnail and dimensions. Grey
    pictures of 8 bits and CMYK ones with a colour profile are turned into sRGB; a profile that fits is kept, any other
    is not. Errors as in `read_with_alpha`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged tags, which are left out
        return _read(path, True, page, span, clip)


def read_picture(path) -> Picture:
    """The first of `read_pages`."""
    return read_pages(path, 0)[0]


def read_with_alpha(path, reading: Reading = USUAL):
    """Read a picture file, upright as its EXIF says: (levels [H, W, channels], alpha [H, W] or None), of its `bits`.

    `path` may also be the file's bytes. Colours are as stored, not multiplied by alpha, but for pixels that nobody sees
    (alpha 0): these have the colours of the nearest one that is seen, and are black where none is. Of several pages the
    first is read. Raises UserError for whatever cannot be read whole or is in none of `formats.FORMATS`, for numbers
    that need a range (`numbers_of`), for other channels than the reading's, above `limits.most_pixels` pixels (WebP:
    half of them), and for files that ask for more work than any of that size.
    """
    colours, picture = _read_as_wanted(path, reading)
    return colours, None if picture.alpha is None else of_bits(picture.alpha, 8 * colours.dtype.itemsize)


def _read_as_wanted(path, reading):
    span = CLASSES if reading.classes else reading.span
    (picture,) = _read(path, False, 0, span, reading.clip, reading.said)
    try:
        reading.check(picture.numbers.dtype)
        return as_wanted(picture.colours, reading, picture.numbers, picture.alpha), picture
    except ValueError as error:
        name = "picture" if isinstance(path, bytes) else shown(path)
        raise UserError(f"{name}: {reading.said(str(error))}") from None


def read_noting(path, reading: Reading = USUAL) -> tuple[np.ndarray, list[str]]:
    """(the colours of `read_with_alpha`, what they leave out of the file, as ends of sentences about several)."""
    colours, picture = _read_as_wanted(path, reading)
    notes = {
        "have several pages or frames, of which the first is used": picture.pages > 1,
        "have transparency, which is not used": picture.alpha is not None and not reading.mask,
        "have more than 8 bits, and are rounded (data.bits=16 keeps them)": picture.colours.dtype != colours.dtype
        and reading.bits == 8
        and not (reading.classes or reading.mask),
    }
    return colours, [reading.said(note) for note, applies in notes.items() if applies]


def read(path, reading: Reading = USUAL):
    """Read a picture file: the colours of `read_with_alpha`."""
    return read_with_alpha(path, reading)[0]


def check_result(path, pages: list[Picture], sides=tuple) -> list[str]:
    """What is lost of pictures in a file whose suffix names the format, for a person.

    sides: `(H, W) of a picture -> (H, W)` of what is to be written of it.

    Raises UserError where the format cannot hold them at all.
    """
    kind, name = formats.of(path), formats.name_of(path)
    for page in pages:
        height, width = sides(page.colours.shape[:2])
        if max(height, width) > kind.longest:
            raise UserError(f"{shown(path)}: {width} x {height} pixels; {name} holds at most {kind.longest} a side")
        if page.colours.shape[2] > kind.bands:
            raise UserError(f"{shown(path)}: {name} cannot hold {page.colours.shape[2]} bands; use --format tif")
    sizes = {page.colours.shape[:2] for page in pages}
    deep = any(page.colours.dtype == np.uint16 for page in pages) and kind.bits >= 16
    if len(pages) > 1 and (kind.pages is None or (kind.pages == "frames" and (deep or len(sizes) > 1))):
        raise UserError(
            f"{shown(path)}: {name} cannot hold {len(pages)} pages; use --format tif, or take one with --page"
        )
    return list(dict.fromkeys(loss for page in pages for loss in encoding.losses(page, name)))


def write(path, picture, overwrite=False):
    """Write levels uint8 or uint16 [H, W, C] to a file whose suffix names the format, making its folders.

    C is 1 (grey), 2 (grey with alpha), 3 (RGB) or 4 (RGBA). Raises UserError also for alpha in a format without it;
    otherwise as `write_pages`.
    """
    picture = np.asarray(picture)
    if picture.dtype not in (np.uint8, np.uint16) or picture.ndim != 3 or picture.shape[2] not in range(1, 5):
        raise ValueError(f"a picture is uint8 or uint16 [H, W, 1 to 4], not {picture.dtype} {picture.shape}")
    has_alpha = picture.shape[2] % 2 == 0
    if has_alpha and not formats.of(path).alpha:
        suffix = Path(path).suffix.lower()
        raise UserError(f"{shown(path)}: {suffix} cannot hold transparency; use .png, .webp or .tif")
    numbers = Numbers() if picture.dtype == np.uint8 else SIXTEEN
    colours, alpha = (picture[..., :-1], picture[..., -1]) if has_alpha else (picture, None)
    write_pages(path, [Picture(colours, alpha, numbers=numbers)], overwrite)


def write_pages(path, pages: list[Picture], overwrite: bool = False) -> None:
    """Write pictures as the pages of a file whose suffix names the format, making its folders.

    The file appears whole or not at all. All but JPEG (quality 95 without chroma subsampling), AVIF, HEIF and GIF (256
    colours) are lossless. Extras are written as far as the format can hold them; where it has no place for a colour
    profile, colours are turned into sRGB. Raises UserError for an existing file unless `overwrite`, for what
    `check_result` refuses, and when the file cannot be written.
    """
    path = Path(path)
    check_result(path, pages)
    try:
        if path.exists() and not overwrite:
            raise UserError(f"{shown(path)}: exists already; name another file or pass --overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, encoding.encode(pages, formats.name_of(path)))
    except UserError:
        raise
    except (OSError, ValueError, MemoryError) as error:
        raise UserError(f"{shown(path)}: cannot be written ({_reason(error, path)})") from error
