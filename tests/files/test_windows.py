import itertools
import os

import numpy as np
import photos
import pytest
import tifffile
from PIL import Image

from dream_jax.errors import UserError
from dream_jax.files import tiff_tags, windows

HEIGHT, WIDTH = 101, 77
LAYOUTS = {"strips": {"rowsperstrip": 7}, "one strip": {"rowsperstrip": HEIGHT}, "tiles": {"tile": (32, 48)}}


def levels(dtype, channels=3, height=HEIGHT, width=WIDTH):
    most = np.iinfo(dtype).max + 1
    return np.random.default_rng(0).integers(0, most, (height, width, channels)).astype(dtype)


def save(path, picture, planar="contig", **options):
    channels = picture.shape[2]
    if channels == 1:
        picture = picture[..., 0]
    elif planar == "separate":
        picture = picture.transpose(2, 0, 1)
    kind = {"photometric": "rgb" if channels > 2 else "minisblack", "planarconfig": planar if channels > 1 else None}
    tifffile.imwrite(path, picture, **{**kind, "metadata": None, **options})
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_rows_are_those_of_the_whole_picture(layout, compression, tmp_path):
    kinds = itertools.product((np.uint8, np.uint16), ((1, "contig"), (3, "contig"), (3, "separate")), "<>")
    for dtype, (channels, planar), byteorder in kinds:
        options = {"predictor": True} if compression and byteorder == "<" else {}
        path = save(
            tmp_path / "a.tif",
            picture := levels(dtype, channels),
            planar,
            compression=compression,
            byteorder=byteorder,
            **LAYOUTS[layout],
            **options,
        )
        with windows.open_tiff(path) as file:
            assert file.shape == picture.shape and file.dtype == dtype and file.dtype.isnative
            for start, stop in ((0, 1), (3, 40), (31, 33), (95, HEIGHT), (0, HEIGHT)):
                np.testing.assert_array_equal(file.rows(start, stop), picture[start:stop])


def test_rows_of_jpeg_are_as_another_reader_decodes_them(tmp_path):
    picture = np.asarray(Image.open(photos.PHOTOS / "chelsea.png"))[:96, :80]
    for layout in ({"rowsperstrip": 16}, {"tile": (32, 32)}):
        path = save(tmp_path / "a.tif", picture, compression="jpeg", **layout)
        with windows.open_tiff(path) as file:
            np.testing.assert_array_equal(file.rows(10, 90), tifffile.imread(path)[10:90])


def test_only_what_is_needed_is_decoded_and_once(tmp_path, monkeypatch):
    path = save(tmp_path / "a.tif", picture := levels(np.uint8), compression="zlib", tile=(32, 48))
    decoded, segment = [], windows.Tiff._segment
    monkeypatch.setattr(windows.Tiff, "_segment", lambda self, i: decoded.append(i) or segment(self, i))
    with windows.open_tiff(path) as file:
        assert not decoded
        file.rows(33, 40)
        assert decoded == [2, 3]
        parts = [file.rows(i, i + 2) for i in range(33, HEIGHT - 1)]
    np.testing.assert_array_equal(np.concatenate([part[:1] for part in parts]), picture[33 : HEIGHT - 1])
    assert decoded == [2, 3, 4, 5, 6, 7]


def test_the_page_of_full_resolution_is_read(tmp_path):
    picture = levels(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(picture[::2, ::2], subfiletype=1, photometric="rgb")
        file.write(picture, photometric="rgb")
        file.write(picture[::4, ::4], subfiletype=1, photometric="rgb")
    with windows.open_tiff(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.rows(0, HEIGHT), picture)
        assert not file.more_pages
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        for _ in range(2):
            file.write(picture, photometric="rgb")
    with windows.open_tiff(tmp_path / "b.tif") as file:
        assert file.more_pages


def test_white_may_be_zero(tmp_path):
    path = save(tmp_path / "a.tif", picture := levels(np.uint16, 1), photometric="miniswhite")
    with windows.open_tiff(path) as file:
        np.testing.assert_array_equal(file.rows(0, HEIGHT), 65535 - picture)


def test_a_torn_file_is_an_error_and_nothing_else(tmp_path):
    for number, layout in enumerate(LAYOUTS.values()):
        path = save(tmp_path / f"{number}.tif", levels(np.uint8), compression="zlib", **layout)
        whole = path.read_bytes()
        for size in (0, 4, 7, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with (
                pytest.raises(UserError, match=f"{path.name}: cannot be read in windows"),
                windows.open_tiff(path) as file,
            ):
                file.rows(0, HEIGHT)


@pytest.mark.parametrize("compression", [None, "zlib", "jpeg", "lzw"])
def test_damage_is_an_error_or_wrong_pixels_and_nothing_else(compression, tmp_path):
    rng = np.random.default_rng(1)
    path = save(tmp_path / "a.tif", levels(np.uint8)[:96, :64], compression=compression, tile=(32, 32))
    whole, failed = np.frombuffer(path.read_bytes(), np.uint8), 0
    for _ in range(30):
        damaged = whole.copy()
        damaged[rng.integers(0, 400 if rng.random() < 0.7 else len(whole), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            with windows.open_tiff(path) as file:
                rows = file.rows(0, min(file.shape[0], 40))
                assert rows.dtype == file.dtype and rows.shape[1:] == file.shape[1:]
        except UserError:
            failed += 1
    assert failed > 5


LIES = {
    "more rows than strips": (257, 2**20, "lists .* strips"),
    "wider than its bytes": (256, 2**20, "fewer bytes|corrupted"),
    "rows of a strip without end": (278, 2**31, "fewer bytes"),
    "colours": (262, 8, "save it as grey or RGB"),
    "compression": (259, 32809, "save it with deflate"),
    "turned": (274, 6, "upright"),
    "16 bits": (258, 16, "fewer bytes"),
    "12 bits": (258, 12, "without sign"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_found_before_anything_is_read(lie, tmp_path):
    code, value, reason = LIES[lie]
    path = save(tmp_path / "a.tif", levels(np.uint8), rowsperstrip=7, extratags=[(274, 3, 1, 1, True)])
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[code].overwrite((value,) * 3 if code == 258 else value, erase=False)
    with pytest.raises(UserError, match=reason):
        windows.open_tiff(path)


def test_a_tile_that_says_it_is_huge_is_not_decoded(tmp_path):
    path = save(tmp_path / "a.tif", levels(np.uint8)[:64, :64], compression="jpeg", tile=(32, 32))
    data = bytearray(path.read_bytes())
    for at in range(len(data) - 9):
        if data[at : at + 2] == b"\xff\xc0":
            data[at + 5 : at + 9] = b"\x02\x80\x02\x80"
    path.write_bytes(data)
    with windows.open_tiff(path) as file, pytest.raises(UserError, match="640 x 640"):
        file.rows(0, 32)


def test_what_would_take_too_much_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "_MOST_SEGMENT_BYTES", 20_000)
    save(tmp_path / "a.tif", levels(np.uint8), compression="zlib", rowsperstrip=HEIGHT)
    with pytest.raises(UserError, match="too large to be decoded"):
        windows.open_tiff(tmp_path / "a.tif")
    # What is not compressed is read row by row.
    save(tmp_path / "b.tif", levels(np.uint8), rowsperstrip=HEIGHT)
    with windows.open_tiff(tmp_path / "b.tif") as file:
        assert file.held_bytes < 1000


def bands_of(picture, height=40):
    return (picture[i : i + height] for i in range(0, len(picture), height))


@pytest.mark.parametrize(
    ("shape", "dtype", "alpha"),
    [
        ((300, 600, 3), np.uint8, False),
        ((1, 1, 1), np.uint16, False),
        ((257, 255, 4), np.uint16, True),
        ((256, 90, 2), np.uint8, True),
        ((70, 80, 6), np.uint8, False),
    ],
)
def test_what_is_written_is_read_back(shape, dtype, alpha, tmp_path, monkeypatch):
    picture, extras = levels(dtype, shape[2], *shape[:2]), {"dpi": (300.0, 150.5), "icc_profile": b"a profile"}
    for most, magic in ((2**31, b"*\0"), (0, b"+\0")):
        monkeypatch.setattr(windows, "_MOST_CLASSIC_BYTES", most)
        windows.write_tiff(tmp_path / "a.tif", shape, dtype, bands_of(picture), extras, alpha, overwrite=True)
        assert (tmp_path / "a.tif").read_bytes()[2:4] == magic
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif").reshape(shape), picture)
        with windows.open_tiff(tmp_path / "a.tif") as file:
            np.testing.assert_array_equal(file.rows(0, shape[0]), picture)
            assert file.alpha == alpha and file.extras == {**extras, "tags": {}} and not file.left_out
    assert os.listdir(tmp_path) == ["a.tif"]


def test_a_result_appears_whole_or_not_at_all(tmp_path):
    class Killed(BaseException):
        pass

    picture, path = levels(np.uint8, height=600), tmp_path / "new" / "a.tif"

    def torn():
        yield picture[:500]
        raise Killed

    arguments = path, picture.shape, np.uint8
    with pytest.raises(Killed):
        windows.write_tiff(*arguments, torn())
    with pytest.raises(ValueError, match="500 rows, not 600"):
        windows.write_tiff(*arguments, iter([picture[:500]]))
    assert not list(path.parent.iterdir())
    windows.write_tiff(*arguments, iter([picture]))
    with pytest.raises(UserError, match="--overwrite"):
        windows.write_tiff(*arguments, iter([picture]))
    with pytest.raises(Killed):
        windows.write_tiff(*arguments, torn(), overwrite=True)
    np.testing.assert_array_equal(tifffile.imread(path), picture)


@pytest.mark.parametrize("kind", [1, 2])
def test_places_on_earth_stay_where_they_are(kind, tmp_path):
    """Of a pixel's corners, by its scale and by its matrix, where places are of corners (1) or of centres (2)."""
    keys = (1, 1, 0, 2, 1024, 0, 1, 1, 1025, 0, 1, kind)
    matrix = (10.0, 2.0, 0.0, 500.0, 3.0, -10.0, 0.0, 900.0, *(0.0,) * 7, 1.0)
    numbers = {33550: (10.0, 10.0, 0.0), 33922: (2.0, 3.0, 0.0, 500.0, 900.0, 0.0), 34264: matrix}
    tags = [(code, 12, len(values), values, True) for code, values in numbers.items()]
    tags += [(34735, 3, len(keys), keys, True), (34737, 2, None, "WGS 84|", True), (65000, 3, 1, 5, True)]
    save(tmp_path / "a.tif", levels(np.uint8), extratags=tags, description="a scene", software="a program")
    with windows.open_tiff(tmp_path / "a.tif") as file:
        before = file.extras["tags"]
        assert before[270] == "a scene" and before[305] == "a program" and file.left_out == ["65000"]
        after = tiff_tags.enlarged(before, 4)
    windows.write_tiff(tmp_path / "b.tif", (4, 4, 3), np.uint8, [np.zeros((4, 4, 3), np.uint8)], {"tags": after})
    with windows.open_tiff(tmp_path / "b.tif") as file:
        assert file.extras["tags"] == after and after.keys() == before.keys()
    half = 0.5 if kind == 2 else 0.0

    def places(tags, corner):
        at = np.array(corner) - half
        (x, y, _, east, north, _), (across, down, _) = tags[33922], tags[33550]
        rows = np.reshape(tags[34264], (4, 4))[:2]
        return (east + across * (at[0] - x), north - down * (at[1] - y)), rows @ [*at, 0, 1]

    for corner in ((0.0, 0.0), (7.0, 11.0)):
        expected, found = places(before, corner), places(after, [4 * side for side in corner])
        np.testing.assert_allclose(found, expected, rtol=1e-12)
