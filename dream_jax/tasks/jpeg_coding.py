"""Baseline JPEG as libjpeg codes and decodes it, level for level, in whole numbers of 32 bits.

ITU-T T.81 with the colours and the halved chroma of JFIF. The transform is libjpeg's accurate one (Loeffler, Ligtenberg
and Moschytz 1989), in fixed point.
"""

import jax.numpy as jnp
import numpy as np

from dream_jax.tasks import value_range

# ITU-T T.81, tables K.1 and K.2.
_LUMA = """
16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99
"""
_CHROMA = """
17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99
"""
_TABLES = [np.int32(text.split()).reshape(8, 8) for text in (_LUMA, _CHROMA)]

# Of the transform's coefficients, and of what lies between its two passes.
_BITS, _BETWEEN = 13, 2


def tables(quality):
    """The two quantisation tables [8, 8] of a quality 1..100, which may be traced."""
    quality = jnp.asarray(quality, jnp.int32)
    percent = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return [jnp.clip((table * percent + 50) // 100, 1, 255) for table in _TABLES]


def _shifted(value, bits):
    return (value + (1 << (bits - 1))) >> bits


def _odd_part(a, b, c, d):
    """The rotations that both transforms share; numbers are in 2**-13ths."""
    z1, z2, z3, z4 = a + d, b + c, a + c, b + d
    z5 = (z3 + z4) * 9633
    z1, z2, z3, z4 = z1 * -7373, z2 * -20995, z3 * -16069 + z5, z4 * -3196 + z5
    return a * 2446 + z1 + z3, b * 16819 + z2 + z4, c * 25172 + z2 + z3, d * 12299 + z1 + z4


def _forward(x, first):
    """Eight arrays to their eight coefficients."""
    sums, apart = [x[i] + x[7 - i] for i in range(4)], [x[i] - x[7 - i] for i in range(4)]
    even, odd = (sums[0] + sums[3], sums[1] + sums[2]), (sums[1] - sums[2], sums[0] - sums[3])
    bits = _BITS - _BETWEEN if first else _BITS + _BETWEEN
    ends = [even[0] + even[1], even[0] - even[1]]
    ends = [end << _BETWEEN if first else _shifted(end, _BETWEEN) for end in ends]
    turned = (odd[0] + odd[1]) * 4433
    second, sixth = turned + odd[1] * 6270, turned - odd[0] * 15137
    seventh, fifth, third, one = _odd_part(apart[3], apart[2], apart[1], apart[0])
    of_even, of_odd = (second, sixth), (one, third, fifth, seventh)
    (c2, c6), (c1, c3, c5, c7) = ([_shifted(z, bits) for z in part] for part in (of_even, of_odd))
    return [ends[0], c1, c2, c3, ends[1], c5, c6, c7]


def _inverse(x, first):
    """Eight coefficients to their eight arrays."""
    turned = (x[2] + x[6]) * 4433
    low, high = turned - x[6] * 15137, turned + x[2] * 6270
    ends = (x[0] + x[4]) << _BITS, (x[0] - x[4]) << _BITS
    even = ends[0] + high, ends[1] + low, ends[1] - low, ends[0] - high
    odd = _odd_part(x[7], x[5], x[3], x[1])[::-1]
    bits = _BITS - _BETWEEN if first else _BITS + _BETWEEN + 3
    pairs = list(zip(even, odd, strict=True))
    return [_shifted(z, bits) for z in (*(a + b for a, b in pairs), *(a - b for a, b in pairs[::-1]))]


def _coded(blocks, table):
    """Blocks [8, 8, N] of levels, as they come back of a file with a quantisation table [8, 8, N]."""
    z = blocks - 128
    z = jnp.stack(_forward([z[:, i] for i in range(8)], first=True), 1)
    z = jnp.stack(_forward(list(z), first=False))
    # Eight times as large as the standard's.
    size = (jnp.abs(z) + 4 * table) // (8 * table)
    z = jnp.sign(z) * size * table
    z = jnp.stack(_inverse(list(z), first=True))
    z = jnp.stack(_inverse([z[:, i] for i in range(8)], first=False), 1)
    return jnp.clip(z + 128, 0, 255)


def _to_blocks(plane):
    height, width = plane.shape
    return plane.reshape(height // 8, 8, width // 8, 8).transpose(1, 3, 0, 2).reshape(8, 8, -1)


def _from_blocks(blocks, height, width):
    return blocks.reshape(8, 8, height // 8, width // 8).transpose(2, 0, 3, 1).reshape(height, width)


def _coded_planes(planes, quality):
    """Planes [h, w] of whole blocks: the first by the table of luma, others by that of chroma."""
    blocks = [_to_blocks(plane) for plane in planes]
    of_each = [table[..., None] for table in tables(quality)]
    chosen = [of_each[min(i, 1)] for i in range(len(planes))]
    whole = [jnp.broadcast_to(table, z.shape) for table, z in zip(chosen, blocks, strict=True)]
    coded = _coded(jnp.concatenate(blocks, -1), jnp.concatenate(whole, -1))
    ends = np.cumsum([z.shape[-1] for z in blocks])[:-1]
    parts = jnp.split(coded, ends, -1)
    return [_from_blocks(part, *plane.shape) for part, plane in zip(parts, planes, strict=True)]


def _padded(plane, down, right):
    """To sides that divide by these, by its last row and column."""
    height, width = plane.shape
    return jnp.pad(plane, ((0, -height % down), (0, -width % right)), "edge")


def _halved(plane):
    """Means of 2x2, rounded down and up by turns, whole blocks of them."""
    z = _padded(plane, 2, 16)
    sums = z[::2, ::2] + z[::2, 1::2] + z[1::2, ::2] + z[1::2, 1::2]
    rounding = jnp.arange(sums.shape[1])[None] % 2 + 1
    return _padded((sums + rounding) >> 2, 8, 8)


def _doubled(plane, height, width):
    """A plane of half the sides to whole ones: three quarters of the nearest, a quarter of the next."""
    z = plane[: -(-height // 2), : -(-width // 2)]
    if z.shape[1] <= 2:
        # libjpeg repeats the few there are.
        return z.repeat(2, 0).repeat(2, 1)[:height, :width]
    z = jnp.pad(z, 1, "edge")
    z = jnp.stack([3 * z[1:-1] + z[:-2], 3 * z[1:-1] + z[2:]], 1).reshape(-1, z.shape[1])
    halves = (3 * z[:, 1:-1] + z[:, :-2] + 8) >> 4, (3 * z[:, 1:-1] + z[:, 2:] + 7) >> 4
    return jnp.stack(halves, -1).reshape(z.shape[0], -1)[:height, :width]


def _coded_colours(picture, quality):
    red, green, blue = (picture[..., i] for i in range(3))
    height, width = red.shape
    half, offset = 1 << 15, (128 << 16) + (1 << 15) - 1
    y = (19595 * red + 38470 * green + 7471 * blue + half) >> 16
    cb = (-11059 * red - 21709 * green + 32768 * blue + offset) >> 16
    cr = (32768 * red - 27439 * green - 5329 * blue + offset) >> 16
    y, cb, cr = _coded_planes([_padded(y, 8, 8), _halved(cb), _halved(cr)], quality)
    y, cb, cr = y[:height, :width], _doubled(cb, height, width) - 128, _doubled(cr, height, width) - 128
    red = y + ((91881 * cr + half) >> 16)
    green = y + ((-22554 * cb - 46802 * cr + half) >> 16)
    blue = y + ((116130 * cb + half) >> 16)
    return jnp.clip(jnp.stack([red, green, blue], -1), 0, 255)


def code(picture, quality):
    """Levels [H, W, C] as they come back of a JPEG file of a quality 1..100, of the same type; 1 or 3 channels.

    As Pillow saves and opens it: chroma of half the sides. A file holds 8 bits: those of 16 are rounded to it.
    """
    finer = value_range.white(picture.dtype) // 255
    levels = (picture.astype(jnp.int32) + finer // 2) // finer
    if picture.shape[-1] == 1:
        (plane,) = _coded_planes([_padded(levels[..., 0], 8, 8)], quality)
        coded = plane[: levels.shape[0], : levels.shape[1], None]
    else:
        coded = _coded_colours(levels, quality)
    return (coded * finer).astype(picture.dtype)
