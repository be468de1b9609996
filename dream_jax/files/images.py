"""Picture files: reading, with what is to be kept beside the pixels, and writing."""

import io
import itertools
import math
import os
import re
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from dream_jax.errors import UserError, shown
from dream_jax.files import atomic

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 2**26

# What is read, by Pillow's names; its other formats are old, or programs. WebP's decoder takes four times the picture.
_READ = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_MOST_PIXELS = {"WEBP": MAX_PIXELS // 2}

# No sound file of MAX_PIXELS is larger, is read in more pieces, or has more scans: work and memory that others ask for.
MOST_BYTES = 8 * MAX_PIXELS + 2**24
_MOST_READS = 2**20
_MOST_SCANS = 100
_MOST_TEXT = 2**22

# By Pillow's names: how each format is saved, the most pixels a side, and which of `Picture.extras` it can hold.
_OPTIONS = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
    "TIFF": {"compression": "tiff_adobe_deflate"},
    "BMP": {},
}
_LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383}
_HOLDS = {"WEBP": ("exif", "icc_profile"), "BMP": ("dpi",)}
_OPAQUE = ("JPEG", "BMP")
# What systems leave beside pictures; macOS also ._NAME, what it knows of the file NAME, on other systems' disks.
_SIDECARS = (".DS_Store", "Thumbs.db", "desktop.ini")
# Pixels of a picture in which the nearest of each is looked for.
_LARGE = 2**24
# Pillow's names of pictures with so many channels.
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

# Tags of a file's own making, wrong in another file: its layout, tables, thumbnails, profile and second copies of EXIF.
_LAYOUT_TAGS = (
    *range(254, 260),
    *(262, 266, 273, 277, 278, 279, 284, 288, 289, 290, 291, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330),
    *(332, 334, 336, 338, 339, 340, 341, 347, 513, 514, 529, 530, 531, 532, 700, 34377, 34675),
)
_DIMENSION_TAGS = (0xA002, 0xA003)
_SAMPLES = 277


class Picture(NamedTuple):
    """What a file holds: colours uint8 [H, W, 3], alpha uint8 [H, W] or None, and extras to be written again.

    extras: Pillow's options exif (bytes), icc_profile (bytes, one that fits the colours) and dpi, where there are any.
    grey: the file has one channel of colour, so that the three here are the same.
    more_pages: the file has others after this one: pages, or pictures of an animation.
    """

    colours: np.ndarray
    alpha: np.ndarray | None
    extras: dict
    grey: bool = False
    more_pages: bool = False


def resize_shorter_side(picture, size):
    """Resize a Pillow picture or uint8 [H, W, 3] on the host with Pillow's bicubic kernel; the proportions stay.

    Returns uint8 [H, W, 3] with min(H, W) == size. Raises UserError where that is more than MAX_PIXELS.
    """
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(np.asarray(picture))
    ratio = size / min(picture.size)
    target = tuple(max(size, math.floor(side * ratio + 0.5)) for side in picture.size)
    if math.prod(target) > MAX_PIXELS:
        width, height = picture.size
        raise UserError(
            f"{width}x{height} pixels with the shorter side made {size} are more than the {MAX_PIXELS} allowed"
        )
    picture = picture.convert("RGB")
    return np.array(picture if target == picture.size else picture.resize(target, Image.Resampling.BICUBIC))


def _reason(error):
    if isinstance(error, UnidentifiedImageError):
        return f"its bytes are no known picture format, none of {', '.join(_READ)}"
    if isinstance(error, MemoryError):
        return "not enough memory"
    return shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:300]


class _Reader(io.BufferedReader):
    """A file that ends the reading when that is done in more pieces than any sound file's: chunks without end."""

    def __init__(self, raw):
        super().__init__(raw)
        self._reads = 0

    def read(self, size=-1):
        self._reads += 1
        if self._reads > _MOST_READS:
            raise ValueError("it is in more pieces than any picture")
        return super().read(size)


_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")


def _check_scans(file):
    """Raises ValueError for a JPEG of more scans than any encoder makes, of which each takes as long as a picture."""
    before = file.tell()
    file.seek(0)
    data, at, scans, markers = file.read(), 2, 0, 0
    file.seek(before)
    while (marker := _JPEG_MARKER.search(data, at)) and marker[1] != b"\xd9":
        scans, markers = scans + (marker[1] == b"\xda"), markers + 1
        if scans > _MOST_SCANS or markers > _MOST_READS:
            raise ValueError(f"it has more than {_MOST_SCANS} scans")
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")


def _bands(picture):
    """((rows, columns), that part of a Pillow picture), of a million pixels at most: little is held twice."""
    width, height = picture.size
    across = min(width, 2**20)
    down = 2**20 // across
    for top, left in itertools.product(range(0, height, down), range(0, width, across)):
        bottom, right = min(top + down, height), min(left + across, width)
        yield (slice(top, bottom), slice(left, right)), picture.crop((left, top, right, bottom))


def _grey_scale(picture):
    """`values -> whole grey levels` uint8, for a Pillow picture of one channel in 16-bit, 32-bit or float values."""
    ranges = []
    for _, band in _bands(picture):
        values = np.asarray(band)
        if not np.isfinite(values).all():
            raise ValueError("it holds values that are not finite")
        ranges += [values.min(), values.max()]
    low, high = min(ranges), max(ranges)
    if picture.mode == "F":
        if low < 0 or high > 255:
            raise ValueError(f"float values must lie in 0..1 or 0..255, found {low:g}..{high:g}")
        return lambda values: np.floor(values * (255 if high <= 1 else 1) + 0.5).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ValueError(f"whole numbers must lie in 0..65535, found {low}..{high}")
    return lambda values: ((values.astype(np.int32) + 128) // 257).astype(np.uint8)


def _kept_exif(picture):
    """The EXIF tags of an upright picture that still hold for its enlarged copy, as bytes, or None."""
    try:
        exif = picture.getexif()
        for tag in (*_LAYOUT_TAGS, ExifTags.Base.Orientation):
            exif.pop(tag, None)
        for tag in _DIMENSION_TAGS:
            exif.get_ifd(ExifTags.IFD.Exif).pop(tag, None)
        exif.get_ifd(ExifTags.IFD.GPSInfo)
        return exif.tobytes() if len(exif) else None
    except Exception:  # damaged tags raise almost anything, and are no reason to lose the picture
        return None


def _kept_dpi(dpi):
    try:
        across, down = map(float, dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 1 <= across < 65536 and 1 <= down < 65536 else None


def _colour_space(icc_profile):
    """RGB, GRAY, CMYK, ...; None of a damaged profile."""
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return None


def _to_srgb(picture, icc_profile):
    """A Pillow picture in the colours of the profile as RGB in those of sRGB; as plain RGB where the profile fails."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB")
    except (OSError, ImageCms.PyCMSError):
        return picture.convert("RGB")


def _check_claims(picture, file):
    """Raises ValueError where an opened picture says that it is too large, too costly, or of bands that none has."""
    width, height = picture.size
    allowed = _MOST_PIXELS.get(picture.format, MAX_PIXELS)
    if width * height > allowed:
        raise ValueError(f"{width} x {height} pixels are more than the {allowed} allowed")
    if picture.format in ("JPEG", "MPO"):
        _check_scans(file)
    if picture.tile and picture.tile[0][0] == "ppm_plain" and file.seek(0, os.SEEK_END) > _MOST_TEXT:
        raise ValueError("its numbers are written as text, and too many")
    # Pillow leaves out what is beyond colours and alpha.
    bands = picture.tag_v2.get(_SAMPLES, 0) if picture.format == "TIFF" else 0
    if bands > len(picture.getbands()):
        raise ValueError(f"it has {bands} bands; colours and alpha are {len(picture.getbands())} of them")


def _decode(file, managed):
    """A Picture; where managed, with extras, and grey and CMYK colours by their profiles."""
    with Image.open(file, formats=_READ) as picture:
        _check_claims(picture, file)
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        profile = picture.info.get("icc_profile")
        space = _colour_space(profile) if managed and profile else None
        extras = {}
        if managed:
            extras = {"exif": _kept_exif(picture), "dpi": _kept_dpi(picture.info.get("dpi"))}
        deep = picture.mode.startswith("I;16") or picture.mode in ("I", "F")
        grey = deep or picture.mode in ("1", "L", "LA", "La")
        if space == "RGB" and picture.mode != "CMYK" and not grey:
            extras["icc_profile"] = profile
        grey_levels = _grey_scale(picture) if deep else None
        colours = np.empty((*picture.size[::-1], 3), np.uint8)
        alpha = np.empty(colours.shape[:2], np.uint8) if picture.has_transparency_data and not deep else None
        for part, band in _bands(picture):
            if deep:
                band = Image.fromarray(grey_levels(np.asarray(band)))
            if band.mode == "La":
                band = band.convert("LA")
            if alpha is not None:
                pixels = np.asarray(band.convert("RGBA"))
                colours[part], alpha[part] = pixels[..., :3], pixels[..., 3]
            if (space, band.mode) in (("GRAY", "L"), ("GRAY", "LA"), ("CMYK", "CMYK")):
                colours[part] = _to_srgb(band.getchannel("L") if space == "GRAY" else band, profile)
            elif alpha is None:
                colours[part] = band.convert("RGB")
        if alpha is not None:
            _hide(colours, alpha == 0)
        kept = {name: value for name, value in extras.items() if value}
        return Picture(colours, alpha, kept, grey, managed and _has_more(picture))


def _has_more(picture):
    try:
        picture.seek(1)
    except (EOFError, AttributeError):
        return False
    except Exception:  # as in reading: something follows that is damaged
        return True
    return True


def _hide(colours, unseen):
    """Gives pixels that nobody sees the colours of the nearest seen one, in place: what lies there may be anything."""
    if not unseen.any() or unseen.all():
        colours[unseen] = 0
        return
    # Here, as most pictures need no second that this takes.
    from scipy import ndimage

    if unseen.size <= _LARGE:
        nearest = ndimage.distance_transform_edt(unseen, return_distances=False, return_indices=True)
        colours[unseen] = colours[tuple(axis[unseen] for axis in nearest)]
    else:
        # Where the nearest ones take too much memory, those of the mean.
        colours[unseen] = np.floor(colours[~unseen].mean(0, dtype=np.float64) + 0.5)


def _read(path, managed):
    name = "picture" if isinstance(path, bytes) else shown(path)
    try:
        if isinstance(path, bytes):
            return _decode(_Reader(io.BytesIO(path)), managed)
        about = os.stat(path)
        # A named pipe would block the reader for ever.
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is not a file")
        if about.st_size > MOST_BYTES:
            raise ValueError(f"{about.st_size} bytes are more than the {MOST_BYTES} allowed")
        with _Reader(open(path, "rb", buffering=0)) as file:
            return _decode(file, managed)
    except Exception as error:  # Pillow's decoders raise almost any kind of exception on damaged files.
        raise UserError(f"{name}: cannot be read as a picture ({_reason(error)})") from error


def claimed_pixels(path) -> int:
    """How many pixels a picture file says it has; 0 where it is none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return 0
        with _Reader(open(path, "rb", buffering=0)) as file, Image.open(file, formats=_READ) as picture:
            return math.prod(picture.size)
    except Exception:  # as in reading
        return 0


def read_picture(path) -> Picture:
    """Read a picture file with what is to be kept beside its pixels; like `read_with_alpha` otherwise.

    The pixels are upright, so that the EXIF tags are without orientation, and without thumbnail and dimensions. Grey
    and CMYK pictures with a colour profile are turned into sRGB; a profile of RGB colours is kept, any other is not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged tags, which are left out
        return _read(path, managed=True)


def read_with_alpha(path):
    """Read a picture file, upright as its EXIF says: (uint8 [H, W, 3], alpha uint8 [H, W] or None).

    `path` may also be the file's bytes. Colours are as stored, not multiplied by alpha, but for pixels that nobody sees
    (alpha 0): these have the colours of the nearest one that is seen, and are black where none is. Grey pictures of 16
    bits are divided by 257; float ones are taken to span 0..1 if nothing exceeds 1, and 0..255 otherwise. Of several
    pages the first is read. Raises UserError for whatever cannot be read whole or is no PNG, JPEG, WebP, BMP, TIFF, GIF
    or PPM file, for more bands than colours and alpha, above MAX_PIXELS pixels (WebP: half of them), and for files that
    ask for more work than any of that size.
    """
    return _read(path, managed=False)[:2]


def read(path):
    """Read a picture file as uint8 [H, W, 3]: the colours of `read_with_alpha`."""
    return read_with_alpha(path)[0]


def list_pictures(folder):
    """The picture files (by suffix, any case) in a folder and its subfolders, as a sorted list of paths.

    Links to folders are followed, each folder once. Files that systems leave beside pictures are none.
    Raises UserError if the folder is missing, is a file, cannot be listed or has no pictures.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        what = "it is a file, not a folder" if folder.exists() else "there is no such folder"
        raise UserError(f"{shown(folder)}: {what}")

    found = [path for path in _files(folder) if path.name.lower().endswith(SUFFIXES)]
    if not found:
        raise UserError(f"{shown(folder)}: no pictures found; files ending in {' '.join(SUFFIXES)} are looked for")
    return found


def list_others(folder):
    """The files that `list_pictures` leaves out, but for those that systems leave there, as a sorted list of paths."""
    return [path for path in _files(folder) if not path.name.lower().endswith(SUFFIXES)]


def _files(folder):
    """The files in a folder and below, sorted; see `list_pictures`."""

    def refuse(error):
        raise UserError(f"{shown(error.filename)}: cannot be listed ({error.strerror})") from error

    found, seen = [], {os.path.realpath(folder)}

    def is_new(path):
        # A link may lead to a folder above itself, or two of them to one.
        real = os.path.realpath(path)
        return real not in seen and not seen.add(real)

    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in sorted(folders) if is_new(os.path.join(root, name))]
        found += [Path(root, name) for name in names if not name.startswith("._") and name not in _SIDECARS]
    return sorted(found)


def format_of(path) -> str:
    """Pillow's name of the format that a file's suffix stands for; raises UserError for others than SUFFIXES."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{shown(path)}: the suffix must be one of {' '.join(SUFFIXES)}")
    return Image.registered_extensions()[suffix]


def check_size(path, height, width):
    """Raises UserError where the format of a file cannot hold a picture of this size."""
    longest = _LONGEST_SIDE.get(format_of(path), math.inf)
    if max(height, width) > longest:
        raise UserError(f"{shown(path)}: {width} x {height} pixels; {format_of(path)} holds at most {longest} a side")


def holds_alpha(path) -> bool:
    """Whether the format that a file's suffix stands for can hold transparency."""
    return format_of(path) not in _OPAQUE


def write(path, picture, overwrite=False, extras=None):
    """Write uint8 [H, W, C] to a file whose suffix names the format, making its folders.

    C is 1 (grey), 2 (grey with alpha), 3 (RGB) or 4 (RGBA).

    The file appears whole or not at all. PNG, BMP, TIFF and WebP are lossless, JPEG has quality 95 without chroma
    subsampling. extras are those of a `Picture`, as far as the format can hold them; where it has no place for a
    colour profile, colours are turned into sRGB. Raises UserError for an existing file unless `overwrite`, an unknown
    suffix, alpha in a format without it, and when the file cannot be written.
    """
    path, picture = Path(path), np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in _MODES:
        raise ValueError(f"a picture is uint8 [H, W, 1 to 4], not {picture.dtype} {picture.shape}")
    image_format = format_of(path)
    if picture.shape[2] in (2, 4) and not holds_alpha(path):
        raise UserError(f"{shown(path)}: {path.suffix.lower()} cannot hold transparency; use .png, .webp or .tif")
    check_size(path, *picture.shape[:2])
    try:
        if path.exists() and not overwrite:
            raise UserError(f"{shown(path)}: exists already; name another file or pass --overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, _encode(picture, image_format, extras or {}))
    except (OSError, ValueError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown(path)}: cannot be written ({_reason(error)})") from error


def _encode(picture, image_format, extras):
    """The bytes of a file."""
    if image_format == "WEBP" and picture.shape[2] < 3:
        # WebP has colours only.
        picture = np.concatenate([*[picture[..., :1]] * 3, picture[..., 1:]], -1)
    size, mode = picture.shape[1::-1], _MODES[picture.shape[2]]
    picture, options = Image.frombytes(mode, size, picture.tobytes()), dict(_OPTIONS[image_format])
    held = {name: extras[name] for name in _HOLDS.get(image_format, extras) if name in extras}
    if "icc_profile" in extras and "icc_profile" not in held:
        picture = _to_srgb(picture, extras["icc_profile"])
    if image_format == "TIFF" and "exif" in held:
        exif = Image.Exif()
        exif.load(held["exif"])
        if any(tag in exif for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)):
            # libtiff, which compresses, cannot write these tags of tags.
            options = {}
    with io.BytesIO() as file:
        picture.save(file, image_format, **options, **held)
        return file.getvalue()
