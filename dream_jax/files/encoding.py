"""The bytes of picture files."""

import io

import numpy as np
from PIL import ExifTags, Image

from dream_jax.errors import some
from dream_jax.files import formats, metadata, tiff_tags
from dream_jax.files.numbers import from_levels, of_bits


def encode(pages: list, name: str) -> bytes:
    """A file of `images.Picture` pages in a format of Pillow's name; what it cannot hold is left out, see `losses`."""
    kind = formats.FORMATS[name]
    if name == "TIFF" and any(_is_deep(page) for page in pages):
        return _deep_tiff(pages)
    if kind.bits >= 16 and pages[0].colours.dtype == np.uint16:
        return _sixteen_bits(pages[0], name)
    frames = [_pillow(page, kind) for page in pages]
    options = _options(pages[0], name)
    if len(frames) > 1:
        options |= {"save_all": True, "append_images": frames[1:]}
        if kind.pages == "pages":
            # Each page has its own; Pillow takes them from here.
            for frame, page in zip(frames, pages, strict=True):
                frame.encoderinfo = _options(page, name)
        if kind.pages == "frames":
            options |= {"duration": [page.extras.get("duration", 100) for page in pages]}
            options |= {"loop": pages[0].extras["loop"]} if "loop" in pages[0].extras else {}
    if name == "GIF":
        options["disposal"] = 2
    with io.BytesIO() as file:
        frames[0].save(file, name, **options)
        return file.getvalue()


def _options(page, name):
    """What Pillow is given beside a page's pixels."""
    kind = formats.FORMATS[name]
    held = {key: value for key, value in page.extras.items() if key in kind.extras}
    if name == "TIFF" and "tags" in page.extras:
        held["exif"] = metadata.with_tags(held.get("exif"), page.extras["tags"])
    return dict(kind.options) | _of_tiff(name, held) | held


def losses(picture, name: str) -> list[str]:
    """What of an `images.Picture` a format of Pillow's name cannot hold, for a person."""
    kind = formats.FORMATS[name]
    found = []
    if picture.alpha is not None and not kind.alpha:
        found.append("its transparency")
    if picture.numbers.levels == np.uint16 and kind.bits == 8:
        found.append(f"more than 8 of its bits ({picture.numbers.dtype})")
    elif picture.numbers.dtype not in ("uint8", "uint16") and kind.bits < 32:
        found.append(f"its numbers ({picture.numbers.dtype}), which become 16-bit levels")
    if name == "GIF":
        found.append("more than 256 of its colours")
    if "exif" in picture.extras and name == "TIFF" and _is_deep(picture):
        found.append("its EXIF tags")
    deep = kind.bits >= 16 and _is_deep(picture)
    if deep and "icc_profile" in picture.extras and "icc_profile" not in kind.extras:
        found.append("its colour profile")
    if "tags" in picture.extras and name != "TIFF":
        place = any(tag in picture.extras["tags"] for tag in tiff_tags.PLACE)
        found.append("its place on Earth, and texts beside it" if place else "its texts")
    if "left_out" in picture.extras:
        found.append(f"its tags {some(picture.extras['left_out'])}")
    return found


def _is_deep(page):
    return page.colours.dtype == np.uint16 or page.colours.shape[2] not in (1, 3)


def _stacked(colours, alpha):
    return colours if alpha is None else np.dstack([colours, alpha])


def _pillow(page, kind):
    """A Pillow picture of 8 bits, in sRGB where the format has no place for its colour profile."""
    colours, alpha = of_bits(page.colours, 8), page.alpha
    if not kind.grey and colours.shape[2] == 1:
        colours = np.repeat(colours, 3, -1)
    values = _stacked(colours, None if alpha is None or not kind.alpha else of_bits(alpha, 8))
    picture = Image.frombytes(formats.mode_of(values.shape[2]), values.shape[1::-1], values.tobytes())
    if "icc_profile" in page.extras and "icc_profile" not in kind.extras and not page.grey:
        converted = metadata.to_srgb(picture.convert("RGB"), page.extras["icc_profile"])
        if picture.mode == "RGBA":
            converted.putalpha(picture.getchannel("A"))
        picture = converted
    return picture


def _of_tiff(name, held):
    """Options of a TIFF whose tags libtiff, which compresses, cannot write: tags of tags."""
    if name != "TIFF" or "exif" not in held:
        return {}
    exif = Image.Exif()
    exif.load(held["exif"])
    nested = any(tag in exif for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo))
    return {"compression": "raw"} if nested else {}


def _deep_tiff(pages):
    from dream_jax.files import deep

    values = []
    for page in pages:
        alpha = page.alpha
        if alpha is not None:
            alpha = from_levels(alpha, deep.alpha_numbers(page.numbers.dtype))
        values.append((from_levels(page.colours, page.numbers), alpha, page.extras))
    return deep.encode_tiff(values)


def _sixteen_bits(page, name):
    from dream_jax.files import deep

    kind = formats.FORMATS[name]
    # Numbers of 16 bits are written in the span that they were read in, others as levels of 16 bits.
    colours = from_levels(page.colours, page.numbers) if page.numbers.dtype == "uint16" else page.colours
    values = _stacked(colours, page.alpha if kind.alpha else None)
    if name == "PPM":
        return deep.encode_ppm(values)
    if name == "JPEG2000":
        return deep.encode_jpeg2000(values)
    # Pillow writes the chunks of what stands beside the pixels.
    with io.BytesIO() as file:
        Image.new("RGB", (1, 1)).save(file, name, **{key: v for key, v in page.extras.items() if key in kind.extras})
        return deep.encode_png(values, file.getvalue())
