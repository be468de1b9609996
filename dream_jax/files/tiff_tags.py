"""The tags of a TIFF file that are kept beside the pixels of its enlarged copy: texts, and where on Earth it lies."""

# By code: texts of any content.
_TEXTS = {
    **{270: "ImageDescription", 271: "Make", 272: "Model", 305: "Software", 306: "DateTime", 315: "Artist"},
    **{316: "HostComputer", 33432: "Copyright", 42112: "GDAL_METADATA", 42113: "GDAL_NODATA", 34737: "GeoAsciiParams"},
}
# GeoTIFF 1.1 (OGC 19-008r4), section 7.3.2: the arrays of numbers, by code.
_SCALE, _TIEPOINTS, _TRANSFORMATION, _KEYS, _DOUBLES = 33550, 33922, 34264, 34735, 34736
_SHORT, _DOUBLE = 3, 12
_NUMBERS = {_SCALE: _DOUBLE, _TIEPOINTS: _DOUBLE, _TRANSFORMATION: _DOUBLE, _KEYS: _SHORT, _DOUBLES: _DOUBLE}
_RASTER_TYPE, _IS_POINT = 1025, 2

# Of a file's own making: its layout, what is read as pixels, profile or resolution, and copies for other programs.
_LAYOUT = (
    *range(254, 260),
    *(262, 266, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284, 292, 293, 296, 297, 317, 320, 322, 323, 324, 325),
    *(330, 338, 339, 340, 341, 347, 512, 513, 514, 529, 530, 531, 532, 700, 34377, 34675),
)


# Where a picture lies on Earth.
PLACE = (_SCALE, _TIEPOINTS, _TRANSFORMATION, _KEYS, _DOUBLES, 34737)


def kept(page) -> tuple[dict, list[str]]:
    """({code: text or numbers} of a page of tifffile, names of the tags that are left out)."""
    found, left_out = {}, []
    for tag in page.tags:
        if tag.code in _LAYOUT or (tag.code == 270 and (page.is_shaped or page.is_ome or page.is_imagej)):
            continue
        value = tag.value
        if tag.code in _TEXTS and isinstance(value, str):
            found[tag.code] = value
        elif tag.code in _NUMBERS and _are_numbers(value):
            found[tag.code] = tuple(value)
        else:
            left_out.append(str(tag.name)[:100])
    return found, left_out


def _are_numbers(value):
    return isinstance(value, tuple) and all(isinstance(number, int | float) for number in value)


def enlarged(tags: dict, scale: float, down: float | None = None) -> dict:
    """The tags of a picture enlarged `scale` times, and `down` times in height: its pixels are smaller on Earth."""
    across, down = scale, scale if down is None else down
    keys = tags.get(_KEYS, ())
    types = [keys[i + 3] for i in range(4, len(keys) - 3, 4) if keys[i] == _RASTER_TYPE]
    # Where places are those of centres of pixels, (0, 0) is half a pixel from the corner.
    corner = 0.5 if types == [_IS_POINT] else 0.0
    made = dict(tags)
    if len(values := tags.get(_SCALE, ())) == 3:
        made[_SCALE] = values[0] / across, values[1] / down, values[2]
    if _TIEPOINTS in tags:
        scales = across, down
        made[_TIEPOINTS] = tuple(
            (value + corner) * scales[i % 6] - corner if i % 6 < 2 else value
            for i, value in enumerate(tags[_TIEPOINTS])
        )
    if len(values := tags.get(_TRANSFORMATION, ())) == 16:
        rows = [values[i : i + 4] for i in range(0, 16, 4)]
        right, lower = corner / across - corner, corner / down - corner
        rows = [(a / across, b / down, c, d + right * a + lower * b) for a, b, c, d in rows]
        made[_TRANSFORMATION] = tuple(value for row in rows for value in row)
    return made


def written(tags: dict) -> list[tuple]:
    """The tags as tifffile's `extratags`."""
    texts = [(code, 2, None, value.encode(), True) for code, value in tags.items() if code in _TEXTS]
    return texts + [(code, _NUMBERS[code], len(value), value, True) for code, value in tags.items() if code in _NUMBERS]
