import contextlib
import os
import struct
import zlib

import numpy as np
import pytest
from photos import noise
from PIL import ExifTags, Image, ImageCms

from dream_jax.errors import UserError
from dream_jax.files import decoding, images, picture_files
from dream_jax.files.picture import Picture
from dream_jax.tasks import resize


def test_resize_shorter_side():
    picture = noise(30, 47, 3)
    assert images.resize_shorter_side(picture, 10).shape == (10, 16, 3)
    assert images.resize_shorter_side(picture[:, :1], 5).shape == (150, 5, 3)
    deep = picture.astype(np.uint16) * 257
    off = images.resize_shorter_side(deep, 10) / 257 - images.resize_shorter_side(picture, 10)
    assert np.abs(off).max() < 1 and images.resize_shorter_side(deep[..., :2], 10).shape == (10, 16, 2)
    np.testing.assert_array_equal(images.resize_shorter_side(picture, 30), picture)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".TIF", ".webp"])
def test_write_and_read_are_inverses(tmp_path, suffix):
    picture = noise(9, 7, 3)
    path = tmp_path / "new" / "folders" / f"a{suffix}"
    images.write(path, picture)
    np.testing.assert_array_equal(images.read(path), picture)
    np.testing.assert_array_equal(images.read(path.read_bytes()), picture)
    assert images.read_with_alpha(path)[1] is None
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(UserError, match="--overwrite"):
        images.write(path, picture)
    images.write(path, picture[::-1], overwrite=True)
    np.testing.assert_array_equal(images.read(path), picture[::-1])
    assert images.read(path).flags.writeable


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
def test_alpha_is_kept(tmp_path, suffix):
    picture = noise(9, 7, 4)
    picture[0, 0, 3] = 0
    images.write(tmp_path / f"a{suffix}", picture)
    colours, alpha = images.read_with_alpha(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(alpha, picture[..., 3])
    np.testing.assert_array_equal(colours[alpha > 0], picture[alpha > 0, :3])


def test_jpeg_is_near(tmp_path):
    smooth = np.asarray(resize.resize(noise(4, 4, 3), 32, 32)).astype(np.uint8)
    images.write(tmp_path / "a.JPG", smooth)
    assert np.abs(smooth.astype(int) - images.read(tmp_path / "a.JPG").astype(int)).mean() < 2
    with pytest.raises(UserError, match="transparency"):
        images.write(tmp_path / "b.jpg", noise(4, 4, 4))


def test_write_refuses(tmp_path):
    picture = noise(4, 4, 3)
    with pytest.raises(UserError, match="suffix must be one of"):
        images.write(tmp_path / "a.xyz", picture)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        images.write(tmp_path / "file" / "a.png", picture)
    for wrong in (picture.astype(np.float32), picture[..., 0], noise(4, 4, 5)):
        with pytest.raises(ValueError, match="uint8"):
            images.write(tmp_path / "a.png", wrong)


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
        images.write(tmp_path / "a.png", noise(4, 4, 3))
    assert not list(tmp_path.iterdir())


def test_no_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("permissions do not bind this user")
    with pytest.raises(UserError, match="cannot be written"):
        images.write(tmp_path / "a.png", noise(4, 4, 3))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_agrees_with_pillow(tmp_path, mode):
    original = Image.fromarray(noise(6, 5, 4)).convert("RGB" if mode not in ("LA", "RGBA") else "RGBA")
    picture = original.convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    picture.save(path)
    colours, alpha = images.read_with_alpha(path)
    seen = np.asarray(picture.convert("RGBA"))[..., 3] > 0
    np.testing.assert_array_equal(colours[seen], np.asarray(picture.convert("RGBA"))[..., :3][seen])
    assert (alpha is not None) == (mode in ("LA", "RGBA"))
    if alpha is not None:
        np.testing.assert_array_equal(alpha, np.asarray(original)[..., 3])
    np.testing.assert_array_equal(images.read(path), colours)


def test_palette_with_transparency(tmp_path):
    picture = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    colours, alpha = images.read_with_alpha(tmp_path / "a.png")
    np.testing.assert_array_equal(colours[0], 255 * np.eye(3)[[1, 1, 2]])
    np.testing.assert_array_equal(alpha, [[0, 128, 255]])


@pytest.mark.parametrize("limit", [2**24, 0])
def test_colours_that_nobody_sees_never_count(tmp_path, monkeypatch, limit):
    """Two pictures that differ there alone are one; a pixel that is seen keeps its colour."""
    monkeypatch.setattr(decoding, "_LARGE", limit)
    alpha = np.repeat(np.uint8([[0, 0, 0, 1, 255, 255]]), 4, 0)
    read = []
    for name, under in (("a.png", 7), ("b.webp", 200)):
        hidden = np.where(alpha[..., None] == 0, under, noise(4, 6, 3)).astype(np.uint8)
        images.write(tmp_path / name, np.dstack([hidden, alpha]))
        read.append(images.read_with_alpha(tmp_path / name)[0])
    np.testing.assert_array_equal(*read)
    np.testing.assert_array_equal(read[0][:, 3:], noise(4, 6, 3)[:, 3:])
    if limit:
        np.testing.assert_array_equal(read[0][:, :3], np.repeat(read[0][:, 3:4], 3, 1))
    images.write(tmp_path / "nothing.png", np.dstack([noise(4, 6, 3), 0 * alpha]))
    assert not images.read(tmp_path / "nothing.png").any()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "F"])
def test_grey_pictures_are_known_and_written_as_grey(tmp_path, mode):
    values = noise(4, 6).astype({"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8))
    picture = Image.fromarray(values).convert(mode) if mode in ("1", "LA") else Image.fromarray(values)
    picture.save(tmp_path / "a.tif")
    assert images.read_picture(tmp_path / "a.tif").grey
    for suffix, suits in ((".png", "L"), (".jpg", "L"), (".bmp", "L"), (".tif", "L"), (".webp", "RGB")):
        images.write(tmp_path / f"b{suffix}", noise(4, 6, 1))
        with Image.open(tmp_path / f"b{suffix}") as made:
            assert made.mode == suits
        if suffix != ".jpg":
            np.testing.assert_array_equal(images.read(tmp_path / f"b{suffix}"), np.repeat(noise(4, 6, 1), 3, -1))
    both = np.dstack([noise(4, 6, 1), np.full((4, 6), 200, np.uint8)])
    for suffix in (".png", ".tif", ".webp"):
        images.write(tmp_path / f"c{suffix}", both)
        colours, alpha = images.read_with_alpha(tmp_path / f"c{suffix}")
        np.testing.assert_array_equal(colours[..., 0], both[..., 0])
        assert np.all(alpha == 200)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    values = np.uint16([[0, 1, 128, 129, 257, 32768, 65535]])
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    expected = np.floor(values / 257 + 0.5)
    np.testing.assert_array_equal(images.read(tmp_path / f"a{suffix}"), np.repeat(expected[..., None], 3, -1))


def test_float_pictures(tmp_path):
    path = tmp_path / "a.tif"
    for values, levels in (([0, 0.5, 1], [0, 128, 255]), ([0, 99.6, 255], [0, 100, 255])):
        Image.fromarray(np.float32([values])).save(path)
        np.testing.assert_array_equal(images.read(path)[0, :, 0], levels)
    for wrong in ([0, np.nan], [-1, 1], [0, 256]):
        Image.fromarray(np.float32([wrong])).save(path)
        with pytest.raises(UserError, match="cannot be read as a picture"):
            images.read(path)


@pytest.mark.parametrize("kind", ["RGB", "I;16", "L"])
def test_exif_orientation_is_applied(tmp_path, kind):
    upright = noise(4, 6) if kind != "RGB" else noise(4, 6, 3)
    levels = upright.astype(np.uint16) * 257 if kind == "I;16" else upright
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(np.ascontiguousarray(np.rot90(levels))).save(tmp_path / "a.png", exif=exif)
    read = images.read(tmp_path / "a.png")
    np.testing.assert_array_equal(read, upright if kind == "RGB" else np.repeat(upright[..., None], 3, -1))


def profile_of(space):
    """A small ICC profile: GRAY of gamma 1, or CMYK whose inks darken to black alone and together."""
    xyz = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    if space == "GRAY":
        kind, pcs, tags = b"mntr", b"XYZ ", {b"wtpt": xyz, b"kTRC": b"curv" + struct.pack(">II", 0, 0)}
    else:
        corners = [(0 if any(inks) else 255, 128, 128) for inks in np.ndindex(2, 2, 2, 2)]
        table = struct.pack(">4sIBBBx9i", b"mft1", 0, 4, 3, 2, *(65536 * np.eye(3, dtype=int)).ravel().tolist())
        table += bytes(range(256)) * 4 + bytes(np.uint8(corners).ravel()) + bytes(range(256)) * 3
        kind, pcs, tags = b"prtr", b"Lab ", {b"wtpt": xyz, b"A2B0": table}
    start, entries, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        entries += struct.pack(">4sII", name, start + len(data), len(value))
        data += value
    header = struct.pack(
        ">I4xI4s4s4s12x4s28xiii", start + len(data), 0x02400000, kind, space.encode(), pcs, b"acsp", 63190, 65536, 54061
    )
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + data


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def tagged_exif():
    exif = Image.Exif()
    exif.update({0x010F: "Maker", 0x0112: 6, 0x9C9B: b"x"})
    exif.get_ifd(0x8769).update({0xA002: 6, 0xA003: 4, 0x9003: "2020:02:02 02:02:02"})
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    return exif


@pytest.mark.parametrize("target", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("source", ["png", "jpg", "webp", "tif"])
def test_extras_are_kept(tmp_path, source, target):
    exif = tagged_exif()
    exif = exif.tobytes() if source == "tif" else exif
    Image.fromarray(noise(4, 6, 3)).save(tmp_path / f"a.{source}", exif=exif, icc_profile=SRGB, dpi=(300, 300))
    picture = images.read_picture(tmp_path / f"a.{source}")
    assert picture.colours.shape == (6, 4, 3)
    images.write_pages(tmp_path / f"b.{target}", [Picture(noise(12, 8, 3), extras=picture.extras)])
    with Image.open(tmp_path / f"b.{target}") as written:
        kept = written.getexif()
        assert written.size == (8, 12) and written.info["icc_profile"] == SRGB
        assert kept[0x010F] == "Maker" and 0x0112 not in kept
        assert dict(kept.get_ifd(0x8769)) == {0x9003: "2020:02:02 02:02:02"}
        assert dict(kept.get_ifd(0x8825)) == {1: "N", 2: (1.0, 2.0, 3.0)}
        if "webp" not in (source, target):
            assert written.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    if target != "jpg":
        np.testing.assert_array_equal(images.read(tmp_path / f"b.{target}"), noise(12, 8, 3))


def test_bmp_keeps_resolution_and_colours_without_a_profile(tmp_path):
    extras = {"exif": tagged_exif().tobytes(), "icc_profile": SRGB, "dpi": (300, 300)}
    images.write_pages(tmp_path / "a.bmp", [Picture(noise(4, 6, 3), extras=extras)])
    picture = images.read_picture(tmp_path / "a.bmp")
    assert picture.extras == {"dpi": pytest.approx((300, 300), abs=0.1)}
    assert np.abs(picture.colours.astype(int) - noise(4, 6, 3)).max() <= 1


def test_tiff_is_compressed(tmp_path):
    images.write_pages(tmp_path / "a.tif", [Picture(np.zeros((64, 64, 3), np.uint8), extras={"dpi": (300, 300)})])
    assert (tmp_path / "a.tif").stat().st_size < 1000


def test_thumbnails_are_dropped(tmp_path):
    exif = tagged_exif()
    plain = exif.tobytes()
    # A second directory, which thumbnails lie in, after the first.
    count = struct.unpack_from(">H", plain, 14)[0]
    link = 16 + 12 * count
    second = struct.pack(">HHHIII", 1, 0x0201, 4, 1, 12345, 0)
    with_thumbnail = plain[:link] + struct.pack(">I", len(plain) - 6) + plain[link + 4 :] + second
    Image.fromarray(noise(4, 6, 3)).save(tmp_path / "a.jpg", exif=with_thumbnail)
    with Image.open(tmp_path / "a.jpg") as original:
        assert original.getexif().get_ifd(ExifTags.IFD.IFD1)
    images.write_pages(
        tmp_path / "b.jpg", [Picture(noise(4, 6, 3), extras=images.read_picture(tmp_path / "a.jpg").extras)]
    )
    with Image.open(tmp_path / "b.jpg") as written:
        assert written.getexif()[0x010F] == "Maker" and not written.getexif().get_ifd(ExifTags.IFD.IFD1)


def test_grey_and_cmyk_become_srgb_by_their_profiles(tmp_path):
    grey = np.uint8([[0, 55, 127, 255]])
    Image.fromarray(grey).save(tmp_path / "grey.png", icc_profile=profile_of("GRAY"))
    Image.fromarray(np.dstack([grey, grey]), "LA").save(tmp_path / "both.png", icc_profile=profile_of("GRAY"))
    linear = grey / 255
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    for name in "grey.png", "both.png":
        picture = images.read_picture(tmp_path / name)
        # Of both.png, nobody sees the first pixel.
        seen = slice(None if picture.alpha is None else 1, None)
        assert np.abs(picture.colours - expected[..., None])[:, seen].max() < 1.5
        assert "icc_profile" not in picture.extras
        np.testing.assert_array_equal(images.read(tmp_path / name)[:, seen, 0], grey[:, seen])
    np.testing.assert_array_equal(picture.alpha, grey)

    inks = np.uint8([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]])
    Image.fromarray(inks, "CMYK").save(tmp_path / "inks.tif", icc_profile=profile_of("CMYK"))
    picture = images.read_picture(tmp_path / "inks.tif")
    assert "icc_profile" not in picture.extras
    assert picture.colours[0, 0].min() > 250 and picture.colours[0, 1:].max() < 5


@pytest.mark.parametrize("profile", [b"no profile", profile_of("GRAY"), profile_of("CMYK")])
def test_profiles_that_do_not_fit_are_left_out(tmp_path, profile):
    Image.fromarray(noise(4, 6, 3)).save(tmp_path / "a.png", icc_profile=profile)
    picture = images.read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.colours, noise(4, 6, 3))
    assert picture.extras == {}


def test_damaged_extras_do_not_lose_the_picture(tmp_path):
    Image.fromarray(noise(4, 6, 3)).save(tmp_path / "a.png", exif=b"Exif\0\0" + b"II*\0\x08\0\0\0\xff\xff", dpi=(0, 0))
    picture = images.read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.colours, noise(4, 6, 3))
    assert "dpi" not in picture.extras


def test_sides_that_a_format_cannot_hold(tmp_path):
    def picture(width):
        return [Picture(np.broadcast_to(np.uint8(0), (1, width, 3)))]

    images.check_result("a.png", picture(10**6))
    for name, side in (("a.webp", 16384), ("a.jpg", 65501)):
        with pytest.raises(UserError, match="a side"):
            images.check_result(tmp_path / name, picture(side))
        assert not images.check_result(tmp_path / name, picture(side - 1))


def test_names_are_shown_on_one_line():
    assert images.shown("é b.png") == "é b.png"
    assert images.shown("a\nb\x1b[1m\udcff.png") == "a\\nb\\x1b[1m\\udcff.png"


def _png_that_claims(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_unreadable_files_are_named(tmp_path):
    images.write(tmp_path / "good.png", noise(32, 32, 3))
    images.write(tmp_path / "good.jpg", noise(32, 32, 3))
    images.write(tmp_path / "good.webp", noise(32, 32, 3))
    images.write(tmp_path / "good.tif", noise(32, 32, 3))
    broken = {
        "text.png": b"just some words",
        "empty.png": b"",
        "side.png": _png_that_claims(30000, 2),
        "big.png": _png_that_claims(9000, 9000),
        "bomb.png": _png_that_claims(10000, 10000),
        "huge.png": _png_that_claims(100000, 100000),
        "none.png": _png_that_claims(0, 5),
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
        **{
            f"short{good.suffix}": good.read_bytes()[: good.stat().st_size * 2 // 3] for good in tmp_path.glob("good.*")
        },
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError) as caught:
            images.read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read as a picture (")
    with pytest.raises(UserError, match="No such file"):
        images.read(tmp_path / "missing.png")
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(UserError, match="not a file"):
            images.read(path)
    with pytest.raises(UserError, match="picture: cannot be read"):
        images.read(b"words")


def test_list_pictures(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        picture_files.list_pictures(tmp_path / "missing")
    with pytest.raises(UserError, match="no pictures found"):
        picture_files.list_pictures(tmp_path)
    names = ["b.PNG", "a/c.jpeg", "a/b/d.TiFF", "z.webp"]
    for name in [*names, "notes.txt", "png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert picture_files.list_pictures(tmp_path) == sorted(tmp_path / name for name in names)
    assert picture_files.list_pictures(str(tmp_path)) == picture_files.list_pictures(tmp_path)
    with pytest.raises(UserError, match="a file, not a folder"):
        picture_files.list_pictures(tmp_path / "b.PNG")


def test_linked_folders_are_listed_once_and_sidecars_never(tmp_path, monkeypatch):
    outside, inside = tmp_path / "outside", tmp_path / "home" / "pictures"
    for folder, names in ((outside, ("o.png", "._o.png")), (inside, ("a.png", "Thumbs.db", ".DS_Store", "._a.png"))):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    for name in ("one", "two"):
        (inside / name).symlink_to(outside)
    (outside / "back").symlink_to(inside)
    found = [inside / "a.png", inside / "one" / "o.png"]
    assert picture_files.list_pictures(inside) == found
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert picture_files.list_pictures("~/pictures") == found


def test_bands_that_no_model_has_are_counted(tmp_path):
    Image.fromarray(noise(4, 6, 4), "RGBX").save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="it has 4 bands"):
        images.read(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".png", ".webp"])
def test_further_pages_are_known(tmp_path, suffix):
    first, *more = (Image.fromarray(noise(4, 6, 3) // n) for n in (1, 2, 3))
    first.save(tmp_path / f"many{suffix}", save_all=True, append_images=more)
    first.save(tmp_path / f"one{suffix}")
    assert images.read_picture(tmp_path / f"many{suffix}").pages == 3
    assert images.read_picture(tmp_path / f"one{suffix}").pages == 1


def test_libraries_print_nothing(tmp_path, capfd):
    """Damage is raised; what libtiff, tifffile and Pillow would say of it is in the message, or nowhere."""
    picture = Image.fromarray(noise(32, 32, 3))
    for compression in ("jpeg", "tiff_adobe_deflate", "tiff_lzw"):
        picture.save(tmp_path / "a.tif", compression=compression)
        data = bytearray((tmp_path / "a.tif").read_bytes())
        data[200:400] = b"\xff" * 200
        (tmp_path / "a.tif").write_bytes(data)
        with contextlib.suppress(UserError):
            images.read(tmp_path / "a.tif")
    assert capfd.readouterr() == ("", "")
