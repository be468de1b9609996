"""What stands beside a picture's pixels and is written again with it: EXIF tags, colour profile, resolution."""

import io

import numpy as np
from PIL import ExifTags, Image, ImageCms

from dream_jax.files import tiff_tags

# Tags of a file's own making, wrong in another file: its layout, tables, thumbnails, profile and second copies of EXIF.
_LAYOUT_TAGS = (
    *range(254, 260),
    *(262, 266, 273, 277, 278, 279, 284, 288, 289, 290, 291, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330),
    *(332, 334, 336, 338, 339, 340, 341, 347, 513, 514, 529, 530, 531, 532, 700, 34377, 34675),
)
_DIMENSION_TAGS = (0xA002, 0xA003)


def of(picture: Image.Image) -> dict:
    """{exif: bytes, tags: as of `tiff_tags`, dpi: (across, down)} of an opened upright picture.

    Those that it has and that are sound. tags say where on Earth it lies: they are other ones when it is enlarged.
    """
    exif, tags = _kept_exif(picture)
    found = {"exif": exif, "tags": tags, "dpi": kept_dpi(picture.info.get("dpi"))}
    return {name: value for name, value in found.items() if value}


def with_tags(exif: bytes | None, tags: dict) -> bytes:
    """EXIF tags with others added, as bytes."""
    both = Image.Exif()
    if exif is not None:
        both.load(exif)
    both.update(tags)
    return both.tobytes()


def _kept_exif(picture):
    """(the EXIF tags of an upright picture that still hold for its enlarged copy, as bytes, or None; its place)."""
    try:
        exif = picture.getexif()
        for tag in (*_LAYOUT_TAGS, ExifTags.Base.Orientation):
            exif.pop(tag, None)
        for tag in _DIMENSION_TAGS:
            exif.get_ifd(ExifTags.IFD.Exif).pop(tag, None)
        exif.get_ifd(ExifTags.IFD.GPSInfo)
        place = {tag: exif.pop(tag) for tag in tiff_tags.PLACE if tag in exif}
        return exif.tobytes() if len(exif) else None, place
    except Exception:  # damaged tags raise almost anything, and are no reason to lose the picture
        return None, {}


def kept_dpi(dpi):
    """A resolution in pixels an inch, (across, down), that makes sense; None of others."""
    try:
        across, down = map(float, dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 1 <= across < 65536 and 1 <= down < 65536 else None


def colour_space(icc_profile):
    """RGB, GRAY, CMYK, ...; None of a damaged profile."""
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return None


def to_srgb(picture, icc_profile):
    """A Pillow picture in the colours of the profile as RGB in those of sRGB; as plain RGB where the profile fails."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB")
    except (OSError, ImageCms.PyCMSError):
        return picture.convert("RGB")


def orientation_of(picture: Image.Image) -> int:
    """How a picture lies, by its EXIF: 1 is upright."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as above
        return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, ...] turned as EXIF's orientation says (1 to 8; others are left as they are)."""
    turned = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a[:, ::-1].swapaxes(0, 1),
    }
    return np.ascontiguousarray(turned[orientation](pixels)) if orientation in turned else pixels
