"""Files that mean harm, or were damaged: pictures, weights and configs, by hand and by mutation, with a fixed seed.

Each maker writes files into a folder and yields a `Case` of each. A case that must be read or must be refused says so;
of the mutated ones either is right.
"""

import io
import json
import math
import os
import pickle
import random
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import safetensors.numpy
import tifffile
from PIL import Image

from benchmarks import torch_files


class Case(NamedTuple):
    """A file, what kind it is of in tables, and whether it must be read (True), refused (False) or either (None)."""

    path: str
    kind: str
    readable: bool | None = None


EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, numbers, cuts, repeats, junk, a piece of another file."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        # Headers are where the lies are.
        place = rng.randrange(min(len(data), rng.choice((64, 1024, len(data) or 1))) or 1)
        length = rng.choice((1, 4, 16, 256))
        match rng.randrange(8):
            case 0:
                for _ in range(rng.choice((1, 8, 64))):
                    if data:
                        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[rng.randrange(len(data) + 1) :]
            case 2 | 3:
                size, order = rng.choice("BHI"), rng.choice("<>")
                value = rng.choice(EXTREMES) & (256 ** struct.calcsize(size) - 1)
                number = struct.pack(order + size, value)
                data[place : place + len(number)] = number
            case 4:
                del data[place : place + length]
            case 5:
                data[place:place] = rng.randbytes(length)
            case 6:
                data[place:place] = data[place : place + length] * rng.choice((1, 3, 100))
            case 7:
                start = rng.randrange(len(other) or 1)
                data[place : place + length] = other[start : start + rng.choice((length, 4096))]
    return bytes(data)


# Pictures.


def png(width, height, depth=8, colour=2, data=b"", before=(), method=0):
    """A PNG of the header and the data given, whatever they are; before: (kind, data) of chunks before the pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, method)
    chunks = [(b"IHDR", header), *before, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def mutated_png(data: bytes, rng: random.Random) -> bytes:
    """A change within a chunk, its check sum made to fit, so that it reaches whatever reads the chunk."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], bytearray(data[at + 8 : at + 8 + size])))
        at += 12 + size
    _, body = rng.choice(chunks)
    for _ in range(rng.choice((1, 3))):
        if body:
            body[rng.randrange(len(body))] = rng.randrange(256)
    if rng.random() < 0.3:
        rng.shuffle(chunks)
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def tiff(tags, data=b"", big=False):
    """A little-endian TIFF of (tag, type, values) and the data, which begins at byte 8."""
    formats = {1: "B", 2: "B", 3: "H", 4: "I", 11: "f", 12: "d", 16: "Q"}
    data += b"\0" * (-len(data) % 2)
    at = 8 + len(data)
    entries, tail = b"", b""
    end = at + 2 + 12 * len(tags) + 4
    for tag, kind, values in sorted(tags):
        packed = struct.pack(f"<{len(values)}{formats[kind]}", *values)
        if len(packed) > 4:
            entries += struct.pack("<HHII", tag, kind, len(values), end + len(tail))
            tail += packed
        else:
            entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", at) + data + struct.pack("<H", len(tags)) + entries + bytes(4) + tail


def tiff_of_one_tile(side, tile):
    """Of side x side pixels, in one tile that is far larger and was packed to almost nothing."""
    data = zlib.compress(bytes(3 * tile), 9)
    pack = zlib.compressobj(9)
    data = b"".join(pack.compress(bytes(3 * tile)) for _ in range(tile)) + pack.flush()
    tags = [(256, 4, [side]), (257, 4, [side]), (258, 3, [8, 8, 8]), (259, 3, [8]), (262, 3, [2]), (277, 3, [3])]
    tags += [(322, 4, [tile]), (323, 4, [tile]), (324, 4, [8]), (325, 4, [len(data)])]
    return tiff(tags, data)


def jpeg_of_many_scans(width, height, scans):
    """A progressive grey JPEG in which every scan says that all blocks are empty."""

    def segment(marker, data):
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    blocks = -(-width // 8) * -(-height // 8)
    table = bytes([1]) + bytes(15)
    head = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    head += segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    head += segment(0xC4, b"\0" + table + b"\0") + segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    # The symbol EOB14 and 14 bits: so many blocks more are empty, up to 32767.
    head += segment(0xC4, b"\x10" + table + b"\xe0")
    bits = ("0" + "1" * 14) * (blocks // 32767 + 1)
    bits += "1" * (-len(bits) % 8)
    entropy = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return head + scans * (segment(0xDA, b"\1\1\0\1\x3f\0") + entropy) + b"\xff\xd9"


def bmp(width, height, bits, compression, data, colours=0):
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, colours, 0)
    palette = bytes(4 * 2**bits) if bits <= 8 else b""
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data


def _flat_png(width, height, level=1):
    pack = zlib.compressobj(level)
    row = bytes(3 * width + 1)
    return png(width, height, data=b"".join(pack.compress(row) for _ in range(height)) + pack.flush())


def _saved(picture, image_format, **options):
    file = io.BytesIO()
    # Copies, as saving leaves settings behind that another format stumbles over.
    if "append_images" in options:
        options["append_images"] = [frame.copy() for frame in options["append_images"]]
    picture.copy().save(file, image_format, **options)
    return file.getvalue()


def sound_pictures(photo: np.ndarray) -> dict[str, bytes]:
    """name -> bytes of one photograph, uint8 [H, W, 3], in every format and mode that must be read."""
    rgb = Image.fromarray(photo)
    alpha = rgb.copy()
    alpha.putalpha(rgb.convert("L"))
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    grey16 = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "Maker"})
    exif.get_ifd(0x8769)[0x9003] = "2020:02:02 02:02:02"
    frames = [rgb, rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 50}
    deep = np.dstack([grey16] * 3).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    return {
        "rgb.png": _saved(rgb, "PNG", exif=exif, dpi=(300, 300)),
        "alpha.png": _saved(alpha, "PNG"),
        "palette.png": _saved(palette, "PNG", transparency=bytes(range(256))),
        "grey.png": _saved(rgb.convert("L"), "PNG"),
        "one_bit.png": _saved(rgb.convert("1"), "PNG"),
        "16_bits.png": _saved(Image.fromarray(grey16), "PNG"),
        "16_bits_rgb.png": png(photo.shape[1], photo.shape[0], 16, 2, zlib.compress(rows)),
        "animated.png": _saved(rgb, "PNG", **animated),
        "turned.jpg": _saved(rgb, "JPEG", exif=exif),
        "progressive.jpg": _saved(rgb, "JPEG", progressive=True),
        "grey.jpeg": _saved(rgb.convert("L"), "JPEG"),
        "inks.jpg": _saved(rgb.convert("CMYK"), "JPEG"),
        "several.jpg": _saved(rgb, "MPO", **animated),
        "lossy.webp": _saved(rgb, "WEBP", exif=exif),
        "lossless.webp": _saved(alpha, "WEBP", lossless=True),
        "animated.webp": _saved(rgb, "WEBP", **animated),
        "plain.tif": _saved(rgb, "TIFF", exif=exif),
        "deflated.tif": _saved(alpha, "TIFF", compression="tiff_adobe_deflate"),
        "lzw.tiff": _saved(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": _saved(rgb, "TIFF", compression="jpeg"),
        "fax.tif": _saved(rgb.convert("1"), "TIFF", compression="group4"),
        "inks.tif": _saved(rgb.convert("CMYK"), "TIFF"),
        "palette.tif": _saved(palette, "TIFF"),
        "16_bits.tif": _saved(Image.fromarray(grey16), "TIFF"),
        "float.tif": _saved(Image.fromarray(photo[..., 0] / np.float32(255)), "TIFF"),
        "pages.tif": _saved(rgb, "TIFF", save_all=True, append_images=frames[1:]),
        "16_bits_alpha.png": imagecodecs.png_encode(np.dstack([grey16] * 4)),
        "16_bits_rgb.tif": _tiff(np.dstack([grey16] * 3), compression="adobe_deflate", predictor=True),
        "planes.tif": _tiff(np.stack([grey16] * 3), planarconfig="separate", compression="lzw"),
        "floats.tif": _tiff(photo / np.float32(255), compression="adobe_deflate", tile=(32, 32)),
        "16_bits.ppm": b"P6 %d %d 65535\n" % photo.shape[1::-1] + deep.tobytes(),
        "8_bits.jp2": _saved(rgb, "JPEG2000"),
        "16_bits.jp2": imagecodecs.jpeg2k_encode(np.dstack([grey16] * 3), level=0, codecformat="jp2"),
        "rgb.avif": _saved(rgb, "AVIF"),
        "rgb.bmp": _saved(rgb, "BMP"),
        "palette.bmp": _saved(palette, "BMP"),
        "animated_gif.png": _saved(rgb, "GIF", **animated),
        "palette_gif.png": _saved(palette, "GIF", transparency=0),
        "wrong_suffix.png": _saved(rgb, "JPEG"),
        "wrong_suffix.jpg": _saved(rgb, "PNG"),
    }


def _tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="rgb", **options)
    return file.getvalue()


def _bands(photo):
    file = io.BytesIO()
    tifffile.imwrite(file, np.dstack([photo, photo]), photometric="minisblack", planarconfig="contig")
    return file.getvalue()


def _deflated_bomb(size):
    """A TIFF of 16 bits whose one strip of 128 bytes becomes `size` ones."""
    data = zlib.compress(bytes(size))
    tags = [(256, 4, [8]), (257, 4, [8]), (258, 3, [16]), (259, 3, [8]), (262, 3, [1]), (273, 4, [8])]
    return tiff([*tags, (277, 3, [1]), (278, 4, [8]), (279, 4, [len(data)])], data)


def _profiled(photo, profile):
    return _saved(Image.fromarray(photo), "PNG", icc_profile=profile)


def special_pictures(photo: np.ndarray, large: bool = True) -> dict[str, tuple[bytes, bool | None]]:
    """name -> (bytes, readable), made by hand."""
    flood, wide, side = (10**8, 2**26, 2**13) if large else (10**7, 2**22, 2**11)
    height, width = photo.shape[:2]
    sound = sound_pictures(photo)
    one = np.uint8([[[9, 8, 7]]])
    row = np.zeros((2, 30000, 3), np.uint8)
    bomb = zlib.compress(bytes(10**7))
    pixels = zlib.compress(b"".join(b"\0" + line.tobytes() for line in photo))

    def with_chunk(kind, data):
        return png(width, height, data=pixels, before=[(kind, data)])

    def floats(*values):
        return _saved(Image.fromarray(np.float32([values])), "TIFF")

    strip = [(256, 4, [8]), (257, 4, [8]), (258, 3, [8, 8, 8]), (259, 3, [1]), (262, 3, [2]), (273, 4, [8])]
    strip += [(277, 3, [3]), (278, 4, [8]), (279, 4, [192])]

    def strip_with(*changes):
        changed = {tag: (tag, kind, values) for tag, kind, values in [*strip, *changes]}
        return tiff(list(changed.values()), bytes(192))

    found = {
        "empty.png": (b"", False),
        "one_byte.jpg": (b"\xff", False),
        "words.png": (b"no picture at all", False),
        "zeros.tif": (bytes(4096), False),
        "1x1.png": (_saved(Image.fromarray(one), "PNG"), True),
        "1x1.jpg": (_saved(Image.fromarray(one), "JPEG"), True),
        "1x1.tif": (_saved(Image.fromarray(one), "TIFF"), True),
        "1x1.webp": (_saved(Image.fromarray(one), "WEBP"), True),
        "1x1.bmp": (_saved(Image.fromarray(one), "BMP"), True),
        "1x1_gif.png": (_saved(Image.fromarray(one), "GIF"), True),
        "30000x2.png": (_saved(Image.fromarray(row), "PNG"), True),
        "30000x2.jpg": (_saved(Image.fromarray(row), "JPEG"), True),
        "2x30000.tif": (_saved(Image.fromarray(row.swapaxes(0, 1).copy()), "TIFF"), True),
        "30000x2.bmp": (_saved(Image.fromarray(row), "BMP"), True),
        "claims_30000x2.png": (png(30000, 2, data=zlib.compress(b"")), False),
        "claims_a_lot.png": (png(100_000, 100_000, data=bomb), False),
        "claims_most.png": (png(2**31 - 1, 2**31 - 1, data=bomb), False),
        "claims_a_line.png": (png(2**31 - 1, 1, data=bomb), False),
        "claims_8192.png": (png(8192, 8192, data=bomb), False),
        "no_side.png": (png(0, 5, data=bomb), False),
        "depth_3.png": (png(8, 8, 3, 2, bomb), False),
        "colour_9.png": (png(8, 8, 8, 9, bomb), False),
        "no_palette.png": (png(8, 8, 8, 3, zlib.compress(bytes(72))), None),
        "data_goes_on.png": (png(8, 8, data=zlib.compress(bytes(flood), 1)), None),
        "long_text.png": (with_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(flood), 1)), None),
        "long_unicode.png": (with_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(flood), 1)), None),
        "long_profile.png": (with_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(flood), 1)), None),
        "odd_profile.png": (_profiled(photo, b"\0" * 128 + b"acsp" + b"\xff" * 500), True),
        "odd_exif.png": (with_chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 64), None),
        "turned_9.png": (with_chunk(b"eXIf", tiff([(274, 3, [9])])), True),
        "odd_frames.png": (with_chunk(b"acTL", b"\xff" * 8), None),
        "no_frame.png": (with_chunk(b"acTL", bytes(8)), None),
        "odd_transparency.png": (with_chunk(b"tRNS", b"\xff"), None),
        "chunk_of_4_gib.png": (with_chunk(b"teXt", b"").replace(b"\0\0\0\0teXt", b"\xff\xff\xff\xffteXt"), False),
        "interlaced_lie.png": (png(width, height, data=pixels, method=1), False),
        "claims_65535.jpg": (b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\3\1\x11\0\2\x11\0\3\x11\0\xff\xd9", False),
        "two_sizes.jpg": (
            sound["turned.jpg"].replace(b"\xff\xda", b"\xff\xc0\0\x0b\x08\x1f\xff\x1f\xff\1\1\x11\0\xff\xda", 1),
            False,
        ),
        "some_scans.jpg": (jpeg_of_many_scans(64, 64, 20), True),
        "many_scans.jpg": (jpeg_of_many_scans(64, 64, 20_000), None),
        "nan.tif": (floats(0.5, math.nan), False),
        "infinite.tif": (floats(0.5, math.inf), False),
        "out_of_range.tif": (floats(-1, 1e30), False),
        "negative.tif": (_saved(Image.fromarray(np.int32([[-5, 5]])), "TIFF"), False),
        "bands.tif": (_bands(photo), None),
        "deflated_bomb.tif": (_deflated_bomb(10 * flood), None),
        "deep_claims.tif": (strip_with((256, 4, [8000]), (257, 4, [8000]), (258, 3, [16, 16, 16])), False),
        "many_bands.tif": (strip_with((277, 3, [65535]), (258, 3, [16]), (262, 3, [1])), False),
        "claims_100000.tif": (strip_with((256, 4, [100_000]), (257, 4, [100_000])), False),
        "no_side.tif": (strip_with((256, 4, [0])), False),
        "99_samples.tif": (strip_with((277, 3, [99])), False),
        "data_elsewhere.tif": (strip_with((273, 4, [2**31])), False),
        "data_of_4_gib.tif": (strip_with((279, 4, [2**32 - 1])), None),
        "rows_of_4_gib.tif": (strip_with((278, 4, [2**32 - 1])), None),
        "unknown_packing.tif": (strip_with((259, 3, [4711])), False),
        "circle.tif": (tiff(strip, bytes(192))[:-4] + struct.pack("<I", 200), None),
        "many_tags.tif": (b"II*\0\x08\0\0\0\xff\xff" + b"\0\1\4\0\xff\xff\xff\xff\x08\0\0\0" * 65535, False),
        "tile_of_64_mib.tif": (tiff_of_one_tile(16, 4096), None),
        "claims_16384.webp": (
            b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\x3f\0\xff\x3f\0VP8 \0\0\0\0",
            False,
        ),
        "riff_of_4_gib.webp": (b"RIFF\xff\xff\xff\xffWEBPVP8L\xff\xff\xff\xff" + bytes(64), False),
        "claims_65535_gif.png": (
            b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
            False,
        ),
        "frame_of_65535_gif.png": (
            b"GIF89a\1\0\1\0\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;",
            False,
        ),
        "no_frame_gif.png": (b"GIF89a\1\0\1\0\x80\0\0" + bytes(6) + b";", False),
        "skips.bmp": (bmp(wide, 1, 8, 1, b"\0\2\xff\xff" * 64), None),
        "skips_high.bmp": (bmp(side, side, 8, 1, b"\0\2\xff\xff" * 64), None),
        "claims_a_lot.bmp": (bmp(2**30, 2**30, 24, 0, bytes(64)), False),
        "lowest.bmp": (bmp(8, -(2**31), 24, 0, bytes(192)), False),
        "no_bits.bmp": (bmp(8, 8, 0, 0, bytes(192)), False),
        "many_colours.bmp": (bmp(8, 8, 8, 0, bytes(64), 2**32 - 1), None),
        "icon.png": (b"\0\0\1\0\1\0\1\1\0\0\1\0\x20\0\xff\xff\0\0\x16\0\0\0" + png(12000, 12000, data=bomb), False),
        "jpeg_2000.png": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64), False),
        "document.png": (
            b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj",
            False,
        ),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', False),
        "text.png": (b"P3\n100000000 100000000 255\n" + b"1 " * 1000, False),
        "claims.png": (b"P6\n9999999999 1 255\n", False),
    }
    for name, data in sound.items():
        stem, suffix = name.split(".")
        for share in (0.1, 0.5, 0.9, 0.99):
            found[f"cut_{share}_{stem}.{suffix}"] = (data[: int(share * len(data))], None)
    return found


def large_pictures(folder: Path):
    """Pictures that are as large as is allowed, or claim work without end; each takes seconds."""
    folder.mkdir(parents=True)
    side = 2**13
    run = struct.pack("<BBBB", 1, 1, 1, 2)
    found = {
        "one_by_one.bmp": (bmp(side, side, 8, 1, run * (side * side // 2)), False),
        "pieces.png": (
            png(8, 8, data=zlib.compress(bytes(200)), before=[(b"teXt", b"")]).replace(
                struct.pack(">I4sI", 0, b"teXt", zlib.crc32(b"teXt")),
                struct.pack(">I4sI", 0, b"teXt", zlib.crc32(b"teXt")) * 2**22,
            ),
            False,
        ),
        "pieces.jpg": (b"\xff\xd8" + b"\xff\xfe\0\2" * 2**23 + b"\xff\xd9", False),
        "pieces_gif.png": (b"GIF89a\1\0\1\0\x80\0\0" + bytes(6) + b"!\xfe\1a\0" * 2**22 + b";", False),
        "text.png": (b"P3\n8192 8192 255\n" + b"1 " * (3 * side * side // 2), False),
        "short_text.png": (b"P3\n800 800 255\n" + b"1 " * (3 * 800 * 800), True),
        "8192x8192.png": (_flat_png(side, side), True),
        "8192x8192_16_bits.png": (png(side, side, 16, 0, zlib.compress(bytes(side * (2 * side + 1)), 1)), True),
        "8192x8192_alpha.png": (png(side, side, 8, 6, zlib.compress(bytes(side * (4 * side + 1)), 1)), True),
        "8193x8192.png": (_flat_png(side + 1, side), False),
        "line.png": (_flat_png(2**26, 1), None),
        "8192x8192.jpg": (_saved(Image.new("RGB", (side, side)), "JPEG"), True),
        "8192x8192_inks.jpg": (_saved(Image.new("CMYK", (side, side)), "JPEG"), True),
        "8192x8192_progressive.jpg": (_saved(Image.new("RGB", (side, side)), "JPEG", progressive=True), True),
        "65500x1000.jpg": (_saved(Image.new("RGB", (65500, 1000)), "JPEG"), True),
        "8192x8192_scans.jpg": (jpeg_of_many_scans(side, side, 20_000), False),
        "1024x1024_scans.jpg": (jpeg_of_many_scans(1024, 1024, 100_000), None),
        "8192x8192.webp": (_saved(Image.new("RGB", (side, side)), "WEBP", lossless=True, method=0), None),
        "8192x4096.webp": (_saved(Image.new("RGBA", (side, side // 2)), "WEBP", lossless=True, method=0), True),
        "16383x2048_lossy.webp": (_saved(Image.new("RGB", (16383, 2048)), "WEBP", method=0), True),
        "16383x4096_lossy.webp": (_saved(Image.new("RGB", (16383, 4096)), "WEBP", method=0), None),
        "8192x8192.tif": (_saved(Image.new("RGB", (side, side)), "TIFF", compression="tiff_adobe_deflate"), True),
        "8192x8192_lzw.tif": (_saved(Image.new("RGBA", (side, side)), "TIFF", compression="tiff_lzw"), True),
        "8192x8192_float.tif": (
            _saved(Image.new("F", (side, side)), "TIFF", compression="tiff_adobe_deflate"),
            True,
        ),
        "tile_of_3_gib.tif": (tiff_of_one_tile(16, 2**15), None),
        "8192x8192_gif.png": (_saved(Image.new("P", (side, side)), "GIF"), True),
        "8192x8192.bmp": (bmp(side, side, 8, 1, (b"\xff\1" * 32 + b"\x20\1\0\0") * side), True),
    }
    for name, (data, readable) in found.items():
        (folder / name).write_bytes(data)
        yield Case(str(folder / name), "picture, large", readable)


ODD_NAMES = (
    "two\nlines.png",
    "\x1b[2J\x1b[31mred.png",
    "bell\a\r.png",
    os.fsdecode(b"not \xff\xfe unicode.png"),
    "right\u202eto left.png",
    "a" * 251 + ".png",
    "--output.png",
    " .png",
    "%s{0}[bold]$(touch x).png",
)


def odd_files(folder: Path, photo: np.ndarray):
    """What is there under a picture's name, but is no usual file; and pictures of unusual names."""
    folder.mkdir(parents=True)
    sound = _saved(Image.fromarray(photo), "PNG")
    for name in ODD_NAMES:
        (folder / name).write_bytes(sound)
        yield Case(str(folder / name), "picture, odd name", True)
        bad = folder / f"bad {name[-251:]}"
        bad.write_bytes(sound[:100])
        yield Case(str(bad), "picture, odd name", False)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "there.png").symlink_to("back.png")
    (folder / "back.png").symlink_to("there.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    # A file of 64 GiB that takes no room.
    with open(folder / "holes.webp", "wb") as file:
        file.write(b"RIFF\xf8\xff\xff\xffWEBPVP8L")
        file.truncate(2**36)
    with open(folder / "holes.png", "wb") as file:
        file.write(sound[:60])
        file.truncate(2**36)
    names = ["loop", "there", "back", "dangling", "endless", "folder", "pipe", "holes"]
    for name in [*(f"{name}.png" for name in names), "holes.webp"]:
        yield Case(str(folder / name), "picture, no usual file", False)


def pictures(folder: Path, photos: list[np.ndarray], count: int, seed: int = 0, large: bool = True):
    """All sound, special and odd pictures of the first photograph, and `count` mutations of those of all."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)

    def write(name, data, kind, readable=None):
        # PostScript runs, where anything runs it.
        (folder / name).write_bytes(data)
        return Case(str(folder / name), f"picture, {kind}", readable)

    for name, data in sound_pictures(photos[0]).items():
        yield write(f"sound_{name}", data, "sound", True)
    for name, (data, readable) in special_pictures(photos[0], large).items():
        yield write(name, data, "by hand", readable)
    script = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n({marker(folder)}) (w) file\nshowpage\n"
    yield write("script.png", script.encode(), "by hand", False)
    yield from odd_files(folder / "odd", photos[0])
    sound = [sound_pictures(photo) for photo in photos]
    for number in range(count):
        sources = sound[number % len(photos)]
        (name, data), other = rng.choice(list(sources.items())), rng.choice(list(sources.values()))
        within = data[1:4] == b"PNG" and rng.random() < 0.5
        data = mutated_png(data, rng) if within else mutated(data, other, rng)
        yield write(f"mutated_{number}_{name}", data, f"mutated {name.split('.')[1].replace('jpeg', 'jpg')}")


# Files that hold many pictures, and models by themselves.


def sound_archives(photo: np.ndarray) -> dict[str, bytes]:
    """name -> bytes of files that hold four pictures, each in its way."""
    import h5py

    stack = np.stack([np.roll(photo, shift, 1) for shift in range(4)])
    npy, stored, deflated, hdf5, zipped = (io.BytesIO() for _ in range(5))
    np.save(npy, stack)
    np.savez(stored, pictures=stack, labels=np.arange(4))
    np.savez_compressed(deflated, pictures=stack.astype(np.uint16) * 257)
    with h5py.File(hdf5, "w") as file:
        file.create_dataset("train/pictures", data=stack, chunks=(1, *photo.shape), compression="gzip")
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as file:
        for number, picture in enumerate(stack):
            file.writestr(f"sub/{number}.png", _saved(Image.fromarray(picture), "PNG"))
    files = {"a.npy": npy, "stored.npz": stored, "deflated.npz": deflated, "a.h5": hdf5, "a.zip": zipped}
    return {name: file.getvalue() for name, file in files.items()}


def special_archives_of_pictures() -> dict[str, bytes]:
    """name -> bytes that must be refused."""
    pickled, far, bomb, lie = (io.BytesIO() for _ in range(4))
    np.save(pickled, np.array([{"a": 1}] * 4, object), allow_pickle=True)
    with zipfile.ZipFile(far, "w") as file:
        file.writestr("../../x.txt", b"nothing")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("pictures.npy", bytes(10**8))
    np.lib.format.write_array_header_1_0(lie, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 64, 64, 3)})
    made = {"pickled.npy": pickled, "far.zip": far, "bomb.npz": bomb, "lie.npy": lie}
    return {name: file.getvalue() for name, file in made.items()}


def archives(folder: Path, photos: list[np.ndarray], count: int, seed: int = 0):
    """Files that hold many pictures: sound ones, ones that mean harm, and `count` mutations."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)

    def write(name, data, kind, readable=None):
        (folder / name).write_bytes(data)
        return Case(str(folder / name), f"archive, {kind}", readable)

    sound = sound_archives(photos[0])
    for name, data in sound.items():
        yield write(f"sound_{name}", data, "sound", True)
    for name, data in special_archives_of_pictures().items():
        yield write(name, data, "by hand", False)
    for number in range(count):
        (name, data), other = rng.choice(list(sound.items())), rng.choice(list(sound.values()))
        yield write(f"mutated_{number}_{name}", mutated(data, other, rng), f"mutated {name.split('.')[1]}")


def models(folder: Path, files: dict[str, bytes], count: int, seed: int = 0):
    """Folders of models: the files of a sound one, and `count` of which one file is mutated, cut off or not there."""
    rng = random.Random(seed)

    def write(name, files, kind, readable=None):
        (folder / name).mkdir(parents=True)
        for file, data in files.items():
            (folder / name / file).write_bytes(data)
        return Case(str(folder / name), f"model, {kind}", readable)

    yield write("sound", files, "sound", True)
    for number in range(count):
        name = rng.choice([name for name in files if name != "README.md"])
        data = files[name]
        changed = rng.choice((data[: rng.randrange(len(data))], None, *[mutated(data, data, rng)] * 4))
        some = {file: content for file, content in files.items() if file != name}
        yield write(f"mutated_{number}", some if changed is None else some | {name: changed}, f"mutated {name}")


# Weights.


def marker(folder: Path) -> Path:
    """The file that code inside a file would make, if anything ran it."""
    return folder.parent / "code_was_run"


def programs(command: str) -> dict[str, bytes]:
    """Pickles that call os.system(command) when they are loaded: one for each way that the opcodes have."""

    class Reduced:
        def __reduce__(self):
            return os.system, (command,)

    text = command.encode()
    system, argument = b"cposix\nsystem\n", b"X" + struct.pack("<I", len(text)) + text
    found = {f"protocol {p}": pickle.dumps(Reduced(), p) for p in range(6)}
    found |= {
        "global, reduce": b"\x80\x02" + system + argument + b"\x85R.",
        "stack_global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + argument + b"\x85R.",
        "inst": b"(S'" + text + b"'\niposix\nsystem\n.",
        "obj": b"(" + system + argument + b"o.",
        "newobj": b"\x80\x02csubprocess\nPopen\n(" + argument + b"t\x81.",
        "newobj_ex": b"\x80\x04csubprocess\nPopen\n)}(X\x05\0\0\0shell\x88X\4\0\0\0args" + argument + b"u\x92.",
        "build": b"\x80\x02ctypes\nSimpleNamespace\n)R}(X\x0c\0\0\0__setstate__" + system + b"ub" + argument + b"b.",
        "ext": b"\x80\x02\x82\x01" + argument + b"\x85R.",
        "persistent id": b"P" + text + b"\n.",
        "eval": b"\x80\x02cbuiltins\neval\nX"
        + struct.pack("<I", len(text) + 32)
        + b"__import__('os').system('''"
        + text
        + b"''')  \x85R.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\ncposix\n__dict__\nX\6\0\0\0system\x86R" + argument + b"\x85R.",
        "torch.load": b"\x80\x02ctorch\nload\n" + argument + b"\x85R.",
        "runpy": b"\x80\x02crunpy\n_run_code\n" + argument + b"}\x86R.",
        "inside a dict": torch_files.dictionary(a=system + argument + b"\x85R") + b".",
        "in a key": b"\x80\x02}" + system + argument + b"\x85RNs.",
        "after the end": pickle.dumps({}, 2) + system + argument + b"\x85R.",
        "popped": b"\x80\x02" + system + argument + b"\x85R0}.",
    }
    return found


def _opcode_floods(large: bool):
    """Pickles that take much time or memory for their size."""
    many, nested, count = (10**6, 3 * 10**5, 60_000) if large else (10**5, 3 * 10**4, 6_000)
    collide = [struct.pack("<B", 12) + (k * (2**61 - 1)).to_bytes(12, "little") for k in range(1, count)]
    return {
        "dicts": b"\x80\x02(" + b"}" * 3 * many + b"t.",
        "lists in lists": b"\x80\x02" + b"]" * nested + b"a" * (nested - 1) + b".",
        "tuples of tuples": b"\x80\x02)" + 60 * b"q\0h\0\x86" + b".",
        "colliding keys": b"\x80\x02}(" + b"".join(b"\x8a" + k + b"N" for k in collide) + b"u.",
        "one text often": b"\x80\x02](X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\0" + b"h\0" * many + b"e.",
        "a number of many digits": b"\x80\x02I" + b"9" * 10**6 + b"\n.",
        "a long of many bytes": b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".",
        "a text of 4 GiB": b"\x80\x02X\xff\xff\xff\xffa.",
        "a text of 2^63": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fa.",
        "marks": b"\x80\x02" + b"(" * 3 * many + b".",
        "memo": b"\x80\x02N" + b"".join(b"r" + struct.pack("<I", i) for i in range(many)) + b".",
    }


def safetensors_file(header, data=b"", length=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def special_safetensors(large: bool) -> dict[str, bytes]:
    def one(dtype="F32", shape=(2,), offsets=(0, 8)):
        return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}

    data = bytes(8)
    pair = json.dumps(one())
    found = {
        "empty": b"",
        "length only": struct.pack("<Q", 8),
        "length of 2^64": safetensors_file({"a": one()}, data, 2**64 - 1),
        "length of 2^40": safetensors_file({"a": one()}, data, 2**40),
        "length of 0": safetensors_file({"a": one()}, data, 0),
        "length short": safetensors_file({"a": one()}, data, 10),
        "overlap": safetensors_file({"a": one(), "b": one()}, data),
        "hole": safetensors_file({"a": one(), "b": one(offsets=(16, 24))}, bytes(24)),
        "backwards": safetensors_file({"a": one(offsets=(8, 0))}, data),
        "beyond the end": safetensors_file({"a": one(shape=(2**20,), offsets=(0, 2**22))}, data),
        "offsets of 2^64": safetensors_file({"a": one(offsets=(2**64 - 8, 2**64 - 1))}, data),
        "too many numbers": safetensors_file({"a": one(shape=(2**33, 2**33))}, data),
        "wraps": safetensors_file({"a": one(shape=(2**62, 4, 2))}, data),
        "negative": safetensors_file({"a": one(shape=(-1, -2))}, data),
        "shape of fractions": safetensors_file({"a": one(shape=(2.0,))}, data),
        "shape too small": safetensors_file({"a": one(shape=(1,))}, data),
        "unknown type": safetensors_file({"a": one("F99")}, data),
        "eight-bit floats": safetensors_file({"a": one("F8_E4M3", (8,))}, data),
        "four-bit floats": safetensors_file({"a": one("F4", (16,))}, data),
        "complex": safetensors_file({"a": one("C64", (1,))}, data),
        "twice the name": safetensors_file(f'{{"a": {pair}, "a": {pair}}}'.encode(), data),
        "deep": safetensors_file(b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
        "deep lists": safetensors_file(b'{"a":' + b"[" * 10**6 + b"]" * 10**6 + b"}"),
        "no json": safetensors_file(b"a pickle?"),
        "not utf-8": safetensors_file(b'{"\xff\xfe": 1}'),
        "a list": safetensors_file([one()], data),
        "null": safetensors_file(b"null"),
        "no fields": safetensors_file({"a": {}}),
        "odd metadata": safetensors_file({"__metadata__": {"a": [1]}, "a": one()}, data),
        "names of controls": safetensors_file({"\x1b[2J\n\0a": one(shape=(2,))}, data),
        "no tensors": safetensors_file({}),
        "1000 dimensions": safetensors_file({"a": one(shape=(1,) * 999 + (2,))}, data),
        "more after the end": safetensors_file({"a": one()}, bytes(100)),
        "a number of many digits": safetensors_file(b'{"a":{"dtype":"F32","shape":[' + b"9" * 10**5 + b"]}}"),
        "many empty tensors": safetensors_file(
            {f"a{i}": one(shape=(0,), offsets=(0, 0)) for i in range(10**5 if large else 10**4)}
        ),
    }
    if large:
        count = 1_400_000
        text = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(count))
        found["very many empty tensors"] = safetensors_file(f"{{{text}}}".encode())
    return found


def torch_file(folder: Path, weights, compression=zipfile.ZIP_STORED, stream=False, name="w.pth") -> bytes:
    """A file of torch.save, of float32 arrays by name."""
    storages = {str(i): array for i, array in enumerate(weights.values())}

    def strides(array):
        return tuple(s // array.itemsize for s in np.ascontiguousarray(array).strides)

    if stream:
        items = {
            n: torch_files.stream_tensor(k, a.shape, strides(a))
            for k, (n, a) in zip(storages, weights.items(), strict=True)
        }
        path = torch_files.save_stream(folder / name, torch_files.dictionary(**items), storages)
    else:
        items = {
            n: torch_files.tensor(k, a.shape, strides(a)) for k, (n, a) in zip(storages, weights.items(), strict=True)
        }
        raw = {k: a.tobytes() for k, a in storages.items()}
        path = torch_files.save(folder / name, torch_files.dictionary(**items), raw, compression=compression)
    data = path.read_bytes()
    path.unlink()
    return data


def damaged_weights(weights, large: bool) -> dict[str, dict]:
    """Sets of arrays that are no network, or have no sound values."""
    blocks, alike_blocks = (9999, 400) if large else (999, 40)
    first, last = "downs.0.weight", "final_conv.block.3.bias"
    array = weights[first]

    def spoilt(name, value):
        changed = weights[name].copy()
        changed.flat[changed.size // 2] = value
        return weights | {name: changed}

    many = {f"downs.{k}.res_block.block1.block.3.weight": np.zeros((8, 1, 1, 1), np.float32) for k in range(1, blocks)}
    levels = {f"downs.{k}.conv.weight": np.zeros((8, 1, 1, 1), np.float32) for k in range(1, blocks)}
    # Enough of everything that nothing is missing before the network is made.
    alike = many | {
        name.replace("downs.1.", f"downs.{k}."): a
        for k in range(1, alike_blocks)
        for name, a in weights.items()
        if name.startswith("downs.1.")
    }
    return {
        "nan": spoilt(first, math.nan),
        "infinite": spoilt(last, -math.inf),
        "another shape": weights | {first: array[:, :, :2]},
        "transposed": weights | {first: array.T.copy()},
        "flat": weights | {first: array.ravel()},
        "a number": weights | {first: np.ones((), np.float32)},
        "no numbers": weights | {first: array[:0]},
        "one less": {name: a for name, a in weights.items() if name != last},
        "one more": weights | {"ups.99.conv.weight": array},
        "odd channels": weights | {"downs.1.res_block.block1.block.3.weight": np.zeros((13, 8, 3, 3), np.float32)},
        "very many blocks": {first: array, "final_conv.block.3.weight": array, **many},
        "very many levels": {first: array, "final_conv.block.3.weight": array, **levels},
        "very many sound blocks": weights | alike,
        "nothing of a network": {"a": array},
        "names of controls": weights | {"\x1b[31m\nred": array},
        "a long name": weights | {"a" * 10**5: array},
    }


def special_archives(folder: Path, sound: bytes, large: bool) -> dict[str, tuple[bytes, bool | None]]:
    """Zip files that no torch.save writes; several would write outside of a folder, were they unpacked."""

    def archive(*members, compression=zipfile.ZIP_STORED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as made:
            for name, data in members:
                made.writestr(name, data)
        return file.getvalue()

    with zipfile.ZipFile(io.BytesIO(sound)) as good:
        members = [(name, good.read(name)) for name in good.namelist()]
    outside = str(marker(folder))
    up = [("../../" + name, data) for name, data in members]
    harmful = [(outside, b"x"), ("../code_was_run", b"x"), ("w/../../code_was_run", b"x"), ("..\\code_was_run", b"x")]
    link = zipfile.ZipInfo("w/data/link")
    link.external_attr = 0o120777 << 16
    program = torch_files.tensor("../../code_was_run", (1,), (1,))
    return {
        "members outside": (archive(*members, *harmful), True),
        "all outside": (archive(*up), True),
        "a storage outside": (
            archive(("w/data.pkl", b"\x80\x02" + torch_files.dictionary(a=program) + b".")),
            False,
        ),
        "a link": (archive(*members, (link, outside)), True),
        "a bomb": (archive(*members[:-1], (members[-1][0], bytes(10**8)), compression=zipfile.ZIP_DEFLATED), False),
        "a bomb of a pickle": (archive(("w/data.pkl", b"}" * 10**8), compression=zipfile.ZIP_DEFLATED), False),
        "two pickles": (archive(*members, ("v/data.pkl", b"N.")), False),
        "many members": (archive(*members, *((f"w/{i}", b"") for i in range(50_000 if large else 5_000))), None),
        "code beside": (archive(*members, ("w/code/__torch__.py", f"open({outside!r}, 'w')")), True),
        "no members": (archive(), False),
        "a script": (b"#!/bin/sh\ntouch " + outside.encode() + b"\n" + sound, None),
        "end twice": (sound + sound[-22:], None),
        "cut": (sound[: len(sound) // 2], False),
        "a directory of 4 GiB": (sound[:-10] + b"\xff" * 4 + sound[-6:], False),
    }


def weights(folder: Path, arrays, count: int, seed: int = 0, large: bool = True):
    """All special files of weights, and `count` mutations; `arrays` are those of a small SR3 network, by name."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    number = 0

    def write(suffix, data, kind, readable=None):
        nonlocal number
        number += 1
        path = folder / f"{number}{suffix}"
        path.write_bytes(data)
        return Case(str(path), f"weights, {kind}", readable)

    tensors = safetensors.numpy.save(arrays)
    zipped, stream = torch_file(folder, arrays), torch_file(folder, arrays, stream=True)
    for suffix, data in ((".safetensors", tensors), (".pth", zipped), (".pt", stream)):
        yield write(suffix, data, "sound", True)
    for program in programs(f"touch '{marker(folder)}'").values():
        bare = program.removeprefix(b"\x80\x02").removesuffix(b".")
        yield write(".pth", program, "with code", False)
        path = torch_files.save(folder / "code.pth", bare, {})
        yield write(".pt", path.read_bytes(), "with code", False)
        path = torch_files.save_stream(folder / "code.pth", bare, {})
        yield write(".bin", path.read_bytes(), "with code", False)
        path.unlink()
    for program in _opcode_floods(large).values():
        path = torch_files.save(folder / "flood.pth", program[2:-1], {})
        yield write(".pth", path.read_bytes(), "too much", False)
        if large:
            path = torch_files.save_stream(folder / "flood.pth", program[2:-1], {})
            yield write(".pt", path.read_bytes(), "too much", False)
        path.unlink()
    for data in special_safetensors(large).values():
        yield write(".safetensors", data, "by hand", False)
    for name, changed in damaged_weights(arrays, large).items():
        yield write(".safetensors", safetensors.numpy.save(changed), "by hand", False)
        if name not in ("a long name", "names of controls"):
            yield write(".pth", torch_file(folder, changed), "by hand", False)
    for data, readable in special_archives(folder, zipped, large).values():
        yield write(".pth", data, "archive", readable)
    if large:
        names = b"".join(struct.pack("<4s38xI", b"PK\1\2", 0) for _ in range(2 * 10**6))
        end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(names), 0, 0)
        yield write(".pth", names + end, "archive", False)
    for suffix in (".safetensors", ".pth"):
        os.mkfifo(folder / f"pipe{suffix}")
        (folder / f"loop{suffix}").symlink_to(f"loop{suffix}")
        (folder / f"folder{suffix}").mkdir()
        for name in "pipe", "loop", "folder", "missing":
            yield Case(str(folder / f"{name}{suffix}"), "weights, no usual file", False)

    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header_length = 8 + struct.unpack_from("<Q", tensors)[0]
    for i in range(count):
        match i % 4:
            case 0:
                yield write(".safetensors", mutated(tensors, zipped, rng), "mutated safetensors")
            case 1:
                header = mutated(tensors[8:header_length], tensors[:200], rng)
                yield write(".safetensors", safetensors_file(header, tensors[header_length:]), "mutated safetensors")
            case 2:
                data = rng.choice((zipped, stream))
                yield write(".pth", mutated(data, tensors, rng), "mutated pth")
            case 3:
                file = io.BytesIO()
                with zipfile.ZipFile(file, "w") as made:
                    for name, data in members.items():
                        made.writestr(name, mutated(data, zipped, rng) if name.endswith("data.pkl") else data)
                yield write(".pth", file.getvalue(), "mutated pth")


# Configs.

VALUES = (
    *(
        "None",
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1",
        "2",
        "1.5",
        "-1e-300",
        "1e300",
        "1e999",
        "10**9",
        str(2**31),
        str(2**63),
    ),
    *(
        str(2**64),
        "9" * 400,
        "9" * 5000,
        "True",
        "'text'",
        "''",
        "()",
        "(1,)",
        "(-1,)",
        "(1.5, 2)",
        "('a',)",
        "(None,)",
    ),
    *("(float('nan'),)", "('x',) * 100000", "(2,) * 10000", "[1, 2]", "{}", "{'a': 1}", "b'bytes'", "1j", "object()"),
    *("int", "len", "'\\x1b[2J\\n'", "'/dev/zero'", "'a' * 100000", "range(3)", "(True, False)", "-(2**100)", "{1, 2}"),
)

TEXTS = (
    *(
        "",
        "None",
        "null",
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1",
        "1.5",
        "1e300",
        "1e999",
        "10**9",
        str(2**31),
        str(2**63),
    ),
    *("9" * 400, "9" * 5000, "True", "text", "()", "(", "1,", "-1,-2", "1,a", "nan,nan", "[1,[2]]", "{}", "{[]: 1}"),
    *("(" * 1000, "-" * 5000 + "1", "[" * 100_000, "2," * 10_000, "0x10", "1_000", "b'x'", "1j", "\x1b[2J\nx"),
    *("__import__('os')", "../../etc/passwd", "/dev/zero", "a" * 100_000, "{'a': {'b': {}}}", "\udcff", "True,False"),
)

JSON_VALUES = (
    *(
        "null",
        "NaN",
        "Infinity",
        "-Infinity",
        "-1",
        "0",
        "1",
        "1.5",
        "1e300",
        "1e999",
        str(2**31),
        str(2**64),
        "9" * 400,
    ),
    *("9" * 5000, "true", '"text"', '""', "[]", "{}", "[1]", "[-1]", '["a"]', "[null]", "[[1]]", "[NaN]", '{"a": 1}'),
    *('"\\u001b[2J\\n"', '"\\ud800"', '"/dev/zero"', "[" * 900 + "]" * 900, f"[{'2,' * 10_000}2]", '{"": {"a.b": 1}}'),
)

_CONFIG = """from configs import base

def get_config():
    config = base.get_config()
    {}
    return config
"""


def special_configs() -> dict[str, tuple[bytes, bool | None]]:
    """Config files, name -> (bytes, readable)."""
    own = "from ml_collections import ConfigDict\n\n"
    own += "def get_config():\n    config = ConfigDict({})\n    {}\n    return config\n"
    unlocked = _CONFIG.format("config.unlock()\n    {}")
    found = {
        "sound.py": (_CONFIG.format("config.steps = 5").encode(), True),
        "empty.py": (b"", False),
        "binary.py": (bytes(range(256)), False),
        "zeros.py": (bytes(100), False),
        "syntax.py": (b"def get_config(:\n", False),
        "indent.py": (b"def get_config():\nreturn 1\n", False),
        "many_brackets.py": (b"x = " + b"(" * 5000, False),
        "deep.py": (b"x = " + b"-" * 100_000 + b"1", False),
        "raises.py": (b"raise ValueError('\\x1b[2J two\\nlines')\n", False),
        "raises_inside.py": (b"def get_config():\n    return 1 / 0\n", False),
        "exits.py": (b"import sys\nsys.exit(3)\n", False),
        "exits_inside.py": (b"def get_config():\n    raise SystemExit\n", False),
        "endless_recursion.py": (b"def get_config():\n    return get_config()\n", False),
        "no_function.py": (b"config = 1\n", False),
        "no_callable.py": (b"get_config = 5\n", False),
        "an_argument.py": (b"def get_config(size):\n    return size\n", False),
        "no_import.py": (b"import a_package_that_nobody_has\n", False),
        "latin_1.py": (b"# caf\xe9\nx = 'caf\xe9'\n", False),
        "utf_16.py": ("def get_config():\n    return 1\n".encode("utf-16"), False),
        "bare.py": (own.format("", "pass").encode(), False),
        "circle.py": (own.format("", "config.a = config").encode(), False),
        "cells.py": (
            own.format("", "config.steps = config.get_ref('steps') if 'steps' in config else 1").encode(),
            False,
        ),
        "numbers_as_keys.py": (own.format("{1: {2: 3}}", "pass").encode(), False),
        "unknown.py": (unlocked.format("config.stepz = 3").encode(), False),
        "unknown_section.py": (unlocked.format("config.extra = {'a': 1}").encode(), False),
        "unknown_inside.py": (unlocked.format("config.network.unlock(); config.network.layers = 3").encode(), False),
        "missing.py": (unlocked.format("del config.steps").encode(), False),
        "missing_section.py": (unlocked.format("del config.network").encode(), False),
        "section_as_number.py": (unlocked.format("del config.network; config.network = 3").encode(), False),
        "number_as_section.py": (unlocked.format("del config.steps; config.steps = {'a': 1}").encode(), False),
    }
    for name, value in {
        "none": "None",
        "dict": "{}",
        "text": "'a'",
        "number": "5",
        "class": "dict",
        "list": "[1]",
    }.items():
        found[f"returns_{name}.py"] = (f"def get_config():\n    return {value}\n".encode(), False)
    return found


def special_jsons() -> dict[str, bytes]:
    deep = 10**5
    return {
        "empty": b"",
        "null": b"null",
        "list": b"[1, 2]",
        "number": b"3",
        "text": b'"a"',
        "nan": b"NaN",
        "no keys": b"{}",
        "deep": b'{"a":' * deep + b"1" + b"}" * deep,
        "deep lists": b"[" * deep + b"]" * deep,
        "zeros": bytes(100),
        "binary": bytes(range(256)),
        "utf-16": '{"steps": 1}'.encode("utf-16"),
        "digits": b'{"steps": ' + b"9" * 10**5 + b"}",
        "a section is a number": b'{"sampling": 5, "network": 3, "evaluation": "x"}',
        "a number is a section": b'{"steps": {"a": 1}}',
        "odd keys": b'{"": 1, "a.b": 2, "__class__": 3, "\\u001b[2J\\n": 4, "items": 5, "lock": 6}',
        "more": b'{"steps": 1} {"steps": 2}',
        "large": b'{"a": "' + b"a" * 10**8 + b'"}',
    }


def configs(folder: Path, base: dict, count: int, seed: int = 0):
    """Config files .py, workdirs' config.json and lists of flags (.flags: JSON); base: nested dict of every key."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    keys = list(_flat(base))
    number = 0

    def write(name, data, kind, readable=None):
        nonlocal number
        number += 1
        path = folder / str(number) / name
        path.parent.mkdir()
        path.write_bytes(data)
        return Case(str(path), f"config, {kind}", readable)

    for name, (data, readable) in special_configs().items():
        yield write(name, data, "file by hand", readable)
    text = json.dumps(base, indent=2)
    yield write("config.json", text.encode(), "json sound", True)
    for data in special_jsons().values():
        yield write("config.json", data, "json by hand", False)
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("config.json", path)):
        for name in "config.json", "config.py":
            number += 1
            path = folder / str(number) / name
            path.parent.mkdir()
            make(path)
            yield Case(str(path), "config, no usual file", False)
    for arguments in (
        *(["--config.steps"], ["--config."], ["--config.=5"], ["--config"], ["steps=5"], ["--config.steps", "--steps"]),
        *(["--config.network=5"], ["--config.network.=5"], ["--config..steps=5"], ["--config.steps.a=5"], ["-"], [""]),
        *(["--config.\x1b[2J\n=5"], ["--config." + "a" * 10**5 + "=1"], ["--config.steps=5", "--", "x"], ["\udcff"]),
    ):
        yield write("options.flags", json.dumps(arguments).encode(), "flags by hand", False)
    for i in range(count):
        key = rng.choice(keys)
        match i % 5:
            case 0:
                data = _CONFIG.format(f"config.{key} = {rng.choice(VALUES)}")
                yield write("config.py", data.encode(), "file mutated")
            case 1:
                section, _, leaf = f"config.{key}".rpartition(".")
                change = f"config.unlock(); {section}.unlock(); del {section}.{leaf}; {section}.{leaf} = "
                yield write("config.py", _CONFIG.format(change + rng.choice(VALUES)).encode(), "file mutated")
            case 2:
                marked = json.loads(text)
                *sections, leaf = key.split(".")
                inner = marked
                for section in sections:
                    inner = inner[section]
                inner[leaf] = "@"
                data = json.dumps(marked).replace('"@"', rng.choice(JSON_VALUES)).encode()
                yield write("config.json", data, "json mutated")
            case 3:
                yield write("config.json", mutated(text.encode(), text[100:].encode(), rng), "json mutated")
            case 4:
                chosen = [f"--config.{rng.choice(keys)}={rng.choice(TEXTS)}" for _ in range(rng.choice((1, 1, 2)))]
                yield write("options.flags", json.dumps(chosen).encode(), "flags mutated")


def _flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key
