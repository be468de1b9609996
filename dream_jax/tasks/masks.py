"""Random masks: which part of a picture is unknown."""

import jax
import jax.numpy as jnp

BOXES, STROKES, SEGMENTS = 3, 4, 6


def _grid(height, width):
    return jnp.arange(height, dtype=jnp.float32)[:, None], jnp.arange(width, dtype=jnp.float32)[None]


def _inside(height, width, top, left, tall, wide):
    y, x = _grid(height, width)
    return (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)


def _spread(share):
    """The area, over a picture's, that covers this share of it where its parts lie anywhere, one over another."""
    return -jnp.log1p(-jnp.minimum(share, 0.99))


def _box(key, height, width, area):
    """A box of so many pixels, up to twice as long one way as the other, anywhere inside."""
    aspect, down, right = jax.random.uniform(key, (3,), jnp.float32)
    tall = jnp.clip(jnp.floor(jnp.sqrt(area * 4 ** (aspect - 0.5)) + 0.5), 1, height)
    wide = jnp.clip(jnp.floor(area / tall + 0.5), 1, width)
    top, left = jnp.floor(down * (height - tall + 1)), jnp.floor(right * (width - wide + 1))
    return _inside(height, width, top, left, tall, wide)


def box(key, height, width, share):
    """One to three boxes."""
    count_key, *keys = jax.random.split(key, 1 + BOXES)
    count = jax.random.randint(count_key, (), 1, BOXES + 1)
    area = jnp.where(count == 1, share, _spread(share)) * height * width / count
    boxes = [_box(each, height, width, area) & (i < count) for i, each in enumerate(keys)]
    return jnp.any(jnp.stack(boxes), 0)


def _folded(place, side):
    """A place on a line that is mirrored at 0 and at side - 1."""
    last = max(side - 1, 1)
    return last - jnp.abs(last - place % (2 * last))


def _near(grid, starts, ends, reach):
    """Where places (y, x) are nearer than reach [N] to one of the segments from starts to ends [N, 2]."""
    y0, x0, tall, wide, reach = (part[:, None, None] for part in (*starts.T, *(ends - starts).T, reach))
    y, x = grid[0][None] - y0, grid[1][None] - x0
    along = jnp.clip((y * tall + x * wide) / jnp.maximum(tall**2 + wide**2, 1e-6), 0, 1)
    apart = jnp.square(y - along * tall) + jnp.square(x - along * wide)
    return jnp.any(apart < jnp.square(reach), 0)


def strokes(key, height, width, share):
    """Free-form strokes: random walks of pens of different thickness, with round ends, turning back at the edges."""
    start_key, heading_key, turn_key, pen_key = jax.random.split(key, 4)
    turns = 0.8 * jax.random.normal(turn_key, (STROKES, SEGMENTS), jnp.float32)
    heading = 2 * jnp.pi * jax.random.uniform(heading_key, (STROKES, 1), jnp.float32) + jnp.cumsum(turns, 1)
    pens = min(height, width) * jax.random.uniform(pen_key, (STROKES,), jnp.float32, 0.04, 0.12) + 1
    step = _spread(share) * height * width / (SEGMENTS * pens.sum())
    start = jax.random.uniform(start_key, (STROKES, 1, 2), jnp.float32) * jnp.float32([[[height, width]]])
    moves = step * jnp.stack([jnp.sin(heading), jnp.cos(heading)], -1)
    places = jnp.concatenate([start, start + jnp.cumsum(moves, 1)], 1)
    places = jnp.stack([_folded(places[..., 0], height), _folded(places[..., 1], width)], -1)
    segments = places[:, :-1].reshape(-1, 2), places[:, 1:].reshape(-1, 2)
    return _near(_grid(height, width), *segments, jnp.repeat(pens / 2, SEGMENTS))


def outpainting(key, height, width, share):
    """All that lies around a known part: around a box anywhere, or at one of the four sides."""
    side, down, right = jax.random.uniform(key, (3,), jnp.float32)
    # Half of the masks leave a box.
    side = jnp.floor(side * 8)
    known = jnp.where(side >= 4, jnp.sqrt(1 - share), 1 - share)
    tall = jnp.where((side < 2) | (side >= 4), jnp.maximum(jnp.floor(known * height + 0.5), 1), height)
    wide = jnp.where(side >= 2, jnp.maximum(jnp.floor(known * width + 0.5), 1), width)
    down, right = (jnp.where(side >= 4, place, (side % 2 == 0)) for place in (down, right))
    top, left = jnp.floor(down * (height - tall + 0.99)), jnp.floor(right * (width - wide + 0.99))
    return ~_inside(height, width, top, left, tall, wide)


def pixels(key, height, width, share):
    """Each pixel by itself."""
    return jax.random.uniform(key, (height, width), jnp.float32) < share


# By name in `task.masks`: `(key, height, width, share) -> bool [H, W]`, True where the picture is unknown; the share of
# it that is, about.
MASKS = {"box": box, "strokes": strokes, "outpainting": outpainting, "pixels": pixels}


def draw(key, height, width, kinds, share):
    """One of the kinds, each as likely: uint8 [H, W, 1], 255 where the picture is unknown."""
    kind_key, key = jax.random.split(key)
    kind = jax.random.randint(kind_key, (), 0, len(kinds))
    drawn = [MASKS[name](key, height, width, share) for name in kinds]
    unknown = jnp.any(jnp.stack([mask & (kind == i) for i, mask in enumerate(drawn)]), 0)
    return unknown[..., None].astype(jnp.uint8) * 255
