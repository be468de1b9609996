"""Many pictures in one: labelled grids, and mosaics."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dream_jax.files.numbers import of_bits


def _enlarge(pictures, factor):
    return pictures.repeat(factor, axis=-3).repeat(factor, axis=-2)


def shown(pictures: np.ndarray) -> np.ndarray:
    """Levels uint8 or uint16 [..., C] for the eye: uint8 [..., 3]. Of many bands the first three, of two the first."""
    channels = pictures.shape[-1]
    colours = pictures[..., :3] if channels >= 3 else np.repeat(pictures[..., :1], 3, -1)
    return of_bits(np.ascontiguousarray(colours), 8)


def grid(columns, captions=None):
    """One labelled picture of many: a row for each picture, a column for each label.

    `columns` maps labels to levels [N, H, W, C], 1 <= N; heights and widths may differ between columns by a whole
    factor, by which the smaller ones are enlarged (nearest pixel). Cells are enlarged to at least 128 pixels a side.
    `captions`, N strings, stand under the rows. Returns uint8 [H', W', 3].
    """
    columns = {str(label): shown(np.asarray(pictures)) for label, pictures in columns.items()}
    count, height, width, _ = max((pictures.shape for pictures in columns.values()), key=lambda shape: shape[1])
    zoom = -(-128 // min(height, width))
    for label, pictures in columns.items():
        factor = height // pictures.shape[1]
        if pictures.shape != (count, height // factor, width // factor, 3) or height % factor or width % factor:
            raise ValueError(f"column {label!r} {pictures.shape} is no whole fraction of {count, height, width, 3}")
        columns[label] = _enlarge(pictures, factor * zoom)
    height, width = height * zoom, width * zoom
    captions = [""] * count if captions is None else [str(caption) for caption in captions]
    if len(captions) != count:
        raise ValueError(f"{len(captions)} captions for {count} rows")

    text_size = max(14, min(height, width) // 16)
    font, small = ImageFont.load_default(text_size), ImageFont.load_default(0.85 * text_size)
    gap = text_size // 3
    line = text_size + 2 * gap
    cells = [max(width, math.ceil(font.getlength(label)) + 2 * gap) for label in columns]
    caption_line = line if any(captions) else gap
    total_width = sum(cells) + gap * (len(cells) + 1)
    total_width = max(total_width, math.ceil(max(small.getlength(caption) for caption in captions)) + 2 * gap)
    canvas = Image.new("RGB", (total_width, line + count * (height + caption_line)), "white")
    draw = ImageDraw.Draw(canvas)
    left = gap
    for (label, pictures), cell in zip(columns.items(), cells, strict=True):
        draw.text((left + cell / 2, line / 2), label, fill="black", font=font, anchor="mm")
        for row, picture in enumerate(pictures):
            canvas.paste(Image.fromarray(picture), (left + (cell - width) // 2, line + row * (height + caption_line)))
        left += cell + gap
    for row, caption in enumerate(captions):
        middle = line + row * (height + caption_line) + height + caption_line / 2
        draw.text((gap, middle), caption, fill="dimgray", font=small, anchor="lm")
    return np.array(canvas)


def mosaic(pictures):
    """Pictures, levels [N, H, W, C], in rows without labels, about square, a pixel apart: uint8 [H', W', 3]."""
    pictures = shown(pictures)
    count, height, width, _ = pictures.shape
    across = math.ceil(math.sqrt(count))
    down = -(-count // across)
    canvas = np.full((down * (height + 1) - 1, across * (width + 1) - 1, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (number // across) * (height + 1), (number % across) * (width + 1)
        canvas[top : top + height, left : left + width] = picture
    return canvas
