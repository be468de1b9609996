"""What Pillow alone would lose, mistake or stumble over."""

from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from photos import noise
from PIL import Image, ImageCms

from dream_jax.errors import UserError
from dream_jax.files import images, tiff_pages
from dream_jax.files.numbers import OWN
from dream_jax.files.picture import Picture, Reading

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm", ".pgm", ".jp2"])
def test_a_range_counts_in_every_format(tmp_path, suffix):
    values = np.uint16(np.linspace(0, 10000, 96).reshape(8, 12, 1))
    values = values if suffix == ".pgm" else np.repeat(values, 3, -1)
    images.write(tmp_path / f"a{suffix}", values)
    read = images.read(tmp_path / f"a{suffix}", Reading(None, 16, (0, 10000)))
    assert np.abs(read - values * 6.5535).max() <= 0.5 and read.max() == 65535
    with pytest.raises(UserError, match="outside the range 0,5000"):
        images.read(tmp_path / f"a{suffix}", Reading(3, 16, (0, 5000)))
    (own,) = images.read_pages(tmp_path / f"a{suffix}", 0, OWN)
    np.testing.assert_array_equal(own.colours, values)


def test_portable_maps_of_twelve_bits_keep_their_own_white(tmp_path):
    values = np.uint16(np.linspace(0, 4095, 96).reshape(8, 12))
    (tmp_path / "a.pgm").write_bytes(b"P5 12 8 4095\n" + values.astype(">u2").tobytes())
    picture = images.read_picture(tmp_path / "a.pgm")
    assert picture.numbers[1:] == (0, 4095) and picture.colours.max() == 65535
    images.write_pages(tmp_path / "b.tif", [picture])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), values)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32])
def test_whole_numbers_of_other_types_need_a_range(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", np.full((8, 8, 3), 100, dtype), photometric="rgb")
    with pytest.raises(UserError, match="LOW,HIGH"):
        images.read(tmp_path / "a.tif")
    assert images.read(tmp_path / "a.tif", Reading(span=(0, 200))).mean() == 128


def test_floats_a_little_above_one_may_be_either(tmp_path):
    for highest, fits in ((1.0, True), (1.01, False), (250.0, True), (256.0, False)):
        tifffile.imwrite(tmp_path / "a.tif", np.full((8, 8), highest, np.float32))
        if fits:
            assert images.read(tmp_path / "a.tif").max() == (255 if highest == 1 else 250)
        else:
            with pytest.raises(UserError, match="LOW,HIGH"):
                images.read(tmp_path / "a.tif")


def test_the_first_page_needs_no_sound_second_one(tmp_path):
    picture = noise(8, 12, 3)
    Image.fromarray(picture).save(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    start = int.from_bytes(data[4:8], "little")
    link = start + 2 + 12 * int.from_bytes(data[start : start + 2], "little")
    data[link : link + 4] = (200).to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(images.read(tmp_path / "a.tif"), picture)
    assert images.read_picture(tmp_path / "a.tif").pages > 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_all_pages_count_together(tmp_path, monkeypatch, dtype):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for side in (4, 60, 60, 60, 200):
            writer.write(np.zeros((side, side, 3), dtype), photometric="rgb")
    monkeypatch.setenv("DREAM_JAX_MAX_PIXELS", "10000")
    for page in None, 4:
        with pytest.raises(UserError, match="10000"):
            images.read_pages(tmp_path / "a.tif", page)
    assert images.read_pages(tmp_path / "a.tif", 3)[0].colours.shape == (60, 60, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_page_behind_a_large_one_is_read(tmp_path, monkeypatch, dtype):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for side in (200, 60):
            writer.write(np.zeros((side, side, 3), dtype), photometric="rgb")
    monkeypatch.setenv("DREAM_JAX_MAX_PIXELS", "10000")
    assert images.read_pages(tmp_path / "a.tif", 1)[0].colours.shape == (60, 60, 3)


@pytest.mark.parametrize("suffix", [".jp2", ".gif"])
def test_transparency_outlives_a_profile(tmp_path, suffix):
    alpha = np.full((8, 12), 255, np.uint8)
    alpha[:, :4] = 0
    images.write_pages(tmp_path / f"a{suffix}", [Picture(noise(8, 12, 3), alpha, {"icc_profile": SRGB})])
    np.testing.assert_array_equal(images.read_picture(tmp_path / f"a{suffix}").alpha, alpha)


def test_pages_of_eight_bits_keep_what_is_theirs(tmp_path):
    pages = [Picture(noise(8, 12, 3) // n, extras={"dpi": (72.0 * n,) * 2}) for n in (1, 2)]
    pages[1].extras["icc_profile"] = SRGB
    images.write_pages(tmp_path / "a.tif", pages)
    for made, page in zip(images.read_pages(tmp_path / "a.tif"), pages, strict=True):
        np.testing.assert_array_equal(made.colours, page.colours)
        assert made.extras["dpi"] == pytest.approx(page.extras["dpi"])
        assert made.extras.get("icc_profile") == page.extras.get("icc_profile")


def test_copies_and_masks_are_no_pages():
    kinds = 0, 1, 4, 2, 0, 5
    tiff = SimpleNamespace(pages=[SimpleNamespace(subfiletype=kind) for kind in kinds])
    assert tiff_pages.full_pages(tiff) == ([0, 3, 4], False)
    assert tiff_pages.full_pages(tiff, most=2) == ([0, 3], True)
    with pytest.raises(ValueError, match="no sound page"):
        tiff_pages.full_pages(SimpleNamespace(pages=tiff.pages[1:3]))


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "begins as PNG"),
        (b"II*\0\x08\0\0\0" + bytes(40), "of a kind that is not supported"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "pip install pillow-heif"),
        (b"BM" + bytes(40), "BMP"),
        (b"words", "no known picture format"),
        (b"", "it is empty, which is no known picture format"),
    ],
)
def test_a_format_is_not_called_unknown_for_its_content(tmp_path, start, said):
    (tmp_path / "a.png").write_bytes(start)
    with pytest.raises(UserError, match=said):
        images.read(tmp_path / "a.png")


def test_a_tiff_of_other_colours_is_a_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8, 3), np.uint16), photometric="cielab")
    with pytest.raises(UserError, match="begins as TIFF, and is damaged or of a kind that is not read here"):
        images.read(tmp_path / "a.tif")
