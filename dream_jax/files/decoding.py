"""Pictures from the bytes of files: with Pillow, and with `deep` what Pillow would cut down."""

import io
import itertools
import math
import os
import re

import numpy as np
from PIL import Image, ImageOps

from dream_jax.files import formats, limits, metadata
from dream_jax.files.numbers import CLASSES, RAW, Numbers, extremes, numbers_of, to_levels
from dream_jax.files.picture import Picture

# What is read, by Pillow's names; its other formats are old, or programs. WebP's decoder takes four times the picture.
READ = (*formats.FORMATS,)
_MEMORY = {"WEBP": 2}

# No sound file is read in more pieces, or has more scans: work and memory that others ask for.
_MOST_READS = 2**20
_MOST_SCANS = 100
_MOST_TEXT = 2**22
# Pixels of a picture in which the nearest of each is looked for.
_LARGE = 2**24
# What is written so is not read again to the bit, or need not be; TIFF's compressions by its numbers: of JPEG, old and
# new, JPEG 2000, WebP, JPEG XL.
_LOSSY = "JPEG", "MPO", "AVIF", "HEIF", "JPEG2000"
_COMPRESSION, _LOSSY_TIFF = 259, (6, 7, 33003, 33004, 33005, 34712, 34892, 50001, 50002)
_PILLOWS_LIMIT = Image.MAX_IMAGE_PIXELS


class Reader(io.BufferedReader):
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


def _check_claims(picture, file):
    """Raises ValueError where an opened picture says that it is too large, too costly, or deeper than can be kept."""
    width, height = picture.size
    allowed = limits.most_pixels() // _MEMORY.get(picture.format, 1)
    if width * height > allowed:
        raise ValueError(f"{width} x {height} pixels are more than the {allowed} allowed (DREAM_JAX_MAX_PIXELS)")
    if picture.format in ("JPEG", "MPO"):
        _check_scans(file)
    if picture.tile and picture.tile[0][0] == "ppm_plain" and file.seek(0, os.SEEK_END) > _MOST_TEXT:
        raise ValueError("its numbers are written as text, and too many")
    bits = picture.info.get("bit_depth", 8) if picture.format == "HEIF" else _bits_of_avif(picture, file)
    if bits > 8:
        raise ValueError(f"it has {bits} bits for each colour, of which 8 can be read here; save it as PNG or TIFF")


def _bits_of_avif(picture, file):
    """Of each colour, by the box of an AVIF file that says so (ISO 23008-12, 6.5.6)."""
    if picture.format != "AVIF":
        return 8
    file.seek(0)
    start = file.read(2**16)
    at = start.find(b"pixi")
    return start[at + 9] if 0 <= at < len(start) - 9 else 8


def _tile_arguments(picture):
    arguments = picture.tile[0].args if picture.tile else ()
    return (arguments,) if isinstance(arguments, str) else tuple(arguments or ())


def _read_deep(picture, file, span, clip):
    """The `deep.Deep` of an opened picture of which Pillow would give 8 bits of 16; None of others."""
    name, arguments = picture.format, _tile_arguments(picture)
    raw = arguments[0] if arguments and isinstance(arguments[0], str) else ""
    colours_16 = name == "PNG" and raw.endswith(";16B") and raw != "I;16B"
    ppm_16 = name == "PPM" and len(arguments) > 1 and isinstance(arguments[1], int) and arguments[1] > 255
    if not (colours_16 or ppm_16 or name == "JPEG2000"):
        return None
    from dream_jax.files import deep

    file.seek(0)
    data = file.read()
    if ppm_16:
        if picture.tile[0][0] != "ppm":
            raise ValueError("its numbers are written as text, and of more than 8 bits")
        shape = *picture.size[::-1], 3 if raw == "RGB" else 1
        return deep.read_ppm(data, picture.tile[0].offset, shape, arguments[1], span, clip)
    if colours_16:
        return deep.read_png(data, span, clip)
    return deep.read_jpeg2000(data, span, clip) if deep.bits_of_jpeg2000(data) > 8 else None


def _read_values(picture, span, clip):
    """(levels [H, W, 1], Numbers) of a loaded Pillow picture of one channel in 16-bit, 32-bit or float values."""
    parts = list(_bands(picture))
    ends = [extremes(np.asarray(band)) for _, band in parts]
    # Pillow has no mode for the 16 bits of some formats but this.
    dtype = np.float32 if picture.mode == "F" else np.int32 if span == CLASSES else np.uint16
    numbers = numbers_of(dtype, min(low for low, _ in ends), max(high for _, high in ends), span, clip)
    levels = np.empty((*picture.size[::-1], 1), dtype if span in RAW else numbers.levels)
    for part, band in parts:
        levels[part] = (np.asarray(band) if span in RAW else to_levels(np.asarray(band), numbers))[..., None]
    return levels, numbers


def _check_lossless(picture, file):
    """Raises ValueError for an opened picture of a format, or compression, that need not keep numbers to the bit."""
    name = picture.format
    tiff = name == "TIFF" and picture.tag_v2.get(_COMPRESSION) in _LOSSY_TIFF
    if name in _LOSSY or tiff or (name == "WEBP" and _is_lossy_webp(file)):
        raise ValueError(
            f"{'lossy ' * (name in ('TIFF', 'WEBP'))}{name} does not keep the numbers of classes; save it as PNG"
        )


def _is_lossy_webp(file):
    """Whether a WebP file, or a frame of it, is lossy: by its chunks (RFC 9649, 2.5)."""
    before, at = file.tell(), 12
    try:
        while file.seek(at) == at and len(head := file.read(8)) == 8:
            if head[:4] == b"VP8 ":
                return True
            # A frame holds chunks after its own 16 bytes.
            size = int.from_bytes(head[4:], "little")
            at += 8 + (16 if head[:4] == b"ANMF" else size + size % 2)
        return False
    finally:
        file.seek(before)


def _read_classes(picture, raw, white):
    """A loaded Pillow picture's own numbers [H, W, 1 or 3] uint8.

    raw: Pillow's name of how the file holds them; white: the file's own, which Pillow makes 255.
    """
    if picture.mode in ("PA", "LA", "La"):
        picture = picture.getchannel(0)
    picture = picture if picture.mode in ("1", "L", "P") else picture.convert("RGB")
    numbers = np.atleast_3d(np.asarray(picture)).astype(np.uint8)
    if white < 255:
        # What Pillow rounded to is at least 1 apart.
        return ((numbers.astype(np.uint16) * white + 127) // 255).astype(np.uint8)
    # Pillow spreads grey of few bits over 0..255.
    return numbers // {"L;2": 85, "L;4": 17}.get(raw, 1)


def _read_colours(picture, space, profile):
    """(colours [H, W, 1 or 3], alpha [H, W] or None) uint8 of a loaded Pillow picture, by the profile of a space."""
    channels = 1 if picture.mode in ("1", "L", "LA", "La") else 3
    colours = np.empty((*picture.size[::-1], channels), np.uint8)
    alpha = np.empty(colours.shape[:2], np.uint8) if picture.has_transparency_data else None
    for part, band in _bands(picture):
        if band.mode == "La":
            band = band.convert("LA")
        if alpha is not None:
            pixels = np.asarray(band.convert("RGBA"))
            colours[part], alpha[part] = pixels[..., :channels], pixels[..., 3]
        if (space, band.mode) in (("GRAY", "L"), ("GRAY", "LA"), ("CMYK", "CMYK")):
            managed = metadata.to_srgb(band.getchannel("L") if space == "GRAY" else band, profile)
            colours[part] = np.asarray(managed)[..., :channels]
        elif alpha is None:
            colours[part] = np.asarray(band.convert("L" if channels == 1 else "RGB")).reshape(*band.size[::-1], -1)
    return colours, alpha


def _of_pillow(picture, file, managed, span, clip, among_others):
    """The Picture of an opened Pillow picture, or of the page that it stands at, which is left as it is."""
    if span == CLASSES:
        _check_lossless(picture, file)
    found = _read_deep(picture, file, span, clip)
    raw, *more = _tile_arguments(picture) or ("",)
    white = more[0] if picture.format == "PPM" and more else 255
    original, orientation = picture, 1 if found is None else metadata.orientation_of(picture)
    if found is None:
        picture.load()
        if among_others:
            picture = ImageOps.exif_transpose(picture)
        else:
            ImageOps.exif_transpose(picture, in_place=True)
    kept = metadata.of(original) if managed else {}
    profile = picture.info.get("icc_profile")
    space = metadata.colour_space(profile) if managed and profile else None
    numbers = Numbers()
    if found is not None:
        colours, alpha = (a if a is None else metadata.upright(a, orientation) for a in (found.colours, found.alpha))
        numbers = found.numbers
    elif picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        (colours, numbers), alpha = _read_values(picture, span, clip), None
    elif span == CLASSES:
        colours, alpha = _read_classes(picture, raw, white), None
    else:
        colours, alpha = _read_colours(picture, space, profile)
    grey = colours.shape[2] == 1
    # A grey picture of 8 bits is in sRGB by now; one of more keeps its own curve.
    fits = {"RGB": not grey and picture.mode != "CMYK", "GRAY": grey and numbers.levels != np.uint8}
    if fits.get(space):
        kept["icc_profile"] = profile
    if managed:
        kept |= {name: picture.info[name] for name in ("duration", "loop") if name in picture.info}
    return _hidden(Picture(colours, alpha, kept, numbers))


def _hidden(picture):
    if picture.alpha is not None:
        _hide(picture.colours, picture.alpha == 0)
    return picture


def decode(file, managed, which, span, clip) -> list[Picture]:
    """The pages that are wanted, all for None."""
    # Pillow's own limit, which it holds frames against, too.
    Image.MAX_IMAGE_PIXELS = max(_PILLOWS_LIMIT, limits.most_pixels())
    start = file.read(4)
    file.seek(0)
    if formats.begins_as(start) != "TIFF":
        return _decode_with_pillow(file, managed, which, span, clip)
    # Here, as tifffile is imported for such files alone.
    from dream_jax.files import deep, tiff_pages

    tiff = tiff_pages.open_pages(file)
    numbers, more = tiff_pages.full_pages(tiff)
    chosen = [tiff.pages[numbers[number]] for number in _chosen(which, len(numbers), more)]
    _check_sum(page.imagelength * page.imagewidth for page in chosen)
    if not any(deep.needs_tifffile(page) for page in chosen):
        return _decode_with_pillow(file, managed, which, span, clip, numbers, more)
    return [_of_deep_page(page, len(numbers) + more, span, clip) for page in chosen]


def _of_deep_page(page, pages, span, clip):
    from dream_jax.files import deep, tiff_pages

    found, extras = deep.read_tiff(page, span, clip), tiff_pages.beside(page)
    orientation = extras.pop("orientation", 1)
    colours, alpha = (a if a is None else metadata.upright(a, orientation) for a in (found.colours, found.alpha))
    return _hidden(Picture(colours, alpha, extras, found.numbers, pages))


def _decode_with_pillow(file, managed, which, span, clip, numbers=None, more=False):
    """Pages as of `decode`; numbers: which of the file's count as pages, where that is known; more: others follow."""
    file.seek(0)
    with Image.open(file, formats=READ) as picture:
        known = numbers is not None
        if not known:
            _check_claims(picture, file)
            # The others of an MPO are previews, or for the other eye. Who wants the first page needs no others.
            first = which == 0 or picture.format == "MPO"
            numbers = [0] if first else list(range(formats.has_pages(picture)))
        pixels, pictures = [], []
        for number in _chosen(which, len(numbers), more):
            if numbers[number]:
                picture.seek(numbers[number])
            if numbers[number] or known:
                _check_claims(picture, file)
            pixels.append(math.prod(picture.size))
            _check_sum(pixels)
            pictures.append(_of_pillow(picture, file, managed, span, clip, len(numbers) > 1))
        pages = len(numbers) + more if known or not first else _count(picture, managed)
        return [page._replace(pages=pages) for page in pictures]


def _count(picture, exactly):
    """How many pages or frames an opened picture has, or 2 for any more than one."""
    try:
        if exactly:
            return formats.has_pages(picture)
        picture.seek(1)
    except (EOFError, AttributeError):
        return 1
    except Exception:  # something follows that is damaged
        return 2
    return 2


def _check_sum(pixels):
    most = limits.most_pixels()
    pixels = list(pixels)
    if sum(pixels) > most:
        raise ValueError(f"its {len(pixels)} pages have more than the {most} pixels allowed; take one with --page")


def _chosen(which, count, more):
    if which is None:
        if more:
            raise ValueError(f"what follows its page {count} is damaged; take one with --page")
        return range(count)
    if not 0 <= which < count:
        raise ValueError(f"it has {count} pages, and none of number {which + 1}")
    return (which,)


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
