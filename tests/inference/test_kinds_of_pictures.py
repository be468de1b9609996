"""Every kind of picture, through a network whose residual is zero: it comes out enlarged bicubically."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageSequence

from dream_jax.__main__ import main
from dream_jax.files import images

SCALE = 2

pytestmark = pytest.mark.usefixtures("planned_once")


def levels_of(*shape, top=65535, dtype=np.uint16):
    """Smooth, so that nothing is clipped."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = [np.sin(rows / (3 + c)) * np.cos(columns / (2 + c)) for c in range(shape[2] if len(shape) > 2 else 1)]
    values = (0.5 + 0.4 * np.dstack(waves)) * top
    return values.reshape(shape).astype(dtype)


def enlarged(values):
    """Bicubically, in floats: another route than the program's."""
    channels = np.atleast_3d(values).astype(np.float32)
    size = SCALE * channels.shape[1], SCALE * channels.shape[0]
    parts = [
        np.asarray(Image.fromarray(np.ascontiguousarray(channels[..., c])).resize(size, Image.Resampling.BICUBIC))
        for c in range(channels.shape[2])
    ]
    return np.dstack(parts)


def run(workdir, source, output, *options):
    named = ("--workdir", workdir, "--input", source, "--output", output, "--steps", 1, "--memory", 64)
    return main(["upscale", *map(str, (*named, *options))])


def png(path, values):
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))


def read_png(path):
    return np.atleast_3d(imagecodecs.png_decode(path.read_bytes()))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("top", [65535, 4095])
def test_sixteen_bits_come_out_as_sixteen_bits(tiny_workdir, tmp_path, channels, top):
    values = levels_of(12, 16, channels, top=top)
    png(tmp_path / "low.png", values if channels > 1 else values[..., 0])
    for suffix, read in ((".png", read_png), (".tif", lambda path: np.atleast_3d(tifffile.imread(path)))):
        assert run(tiny_workdir, tmp_path / "low.png", tmp_path / f"high{suffix}") == 0
        high = read(tmp_path / f"high{suffix}")
        assert high.dtype == np.uint16 and high.shape == (24, 32, channels)
        assert np.abs(high - enlarged(values)).max() <= 1


@pytest.mark.parametrize("suffix", [".ppm", ".jp2"])
def test_other_formats_of_sixteen_bits(tiny_workdir, tmp_path, suffix):
    values = levels_of(12, 16, 3)
    images.write(tmp_path / f"low{suffix}", values)
    assert run(tiny_workdir, tmp_path / f"low{suffix}", tmp_path / "high.png") == 0
    assert run(tiny_workdir, tmp_path / f"low{suffix}", tmp_path / f"high{suffix}") == 0
    for name in ("high.png", f"high{suffix}"):
        high = images.read_picture(tmp_path / name)
        assert high.colours.dtype == np.uint16 and np.abs(high.colours - enlarged(values)).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "low", "high", "options"),
    [
        (np.float32, 0, 1, ()),
        (np.float32, 0, 255, ()),
        (np.float32, -40, 60, ("--range=-40,60",)),
        (np.int16, -1000, 3000, ("--range=-1000,3000",)),
        (np.uint16, 0, 4095, ("--range", "0,4095")),
    ],
)
def test_numbers_of_a_range_come_back_in_it(tiny_workdir, tmp_path, dtype, low, high, options):
    values = (low + levels_of(12, 16, 3, top=1, dtype=np.float64) * (high - low)).astype(dtype)
    tifffile.imwrite(tmp_path / "low.tif", values, photometric="rgb")
    assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / "high.tif", *options) == 0
    made = tifffile.imread(tmp_path / "high.tif")
    whole = 1 if np.dtype(dtype).kind in "iu" else 0
    assert made.dtype == dtype and np.abs(made - enlarged(values)).max() <= 1.5 * (high - low) / 65535 + whole


def test_numbers_without_a_range_are_refused_and_clipped_by_choice(tiny_workdir, tmp_path, capsys):
    tifffile.imwrite(tmp_path / "low.tif", levels_of(12, 16, 3, top=2, dtype=np.float32) - 1, photometric="rgb")
    assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / "high.tif") == 1
    assert "--range LOW,HIGH" in capsys.readouterr().err
    assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / "high.tif", "--range", "0,0.5") == 1
    assert "outside the range 0,0.5" in capsys.readouterr().err
    assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / "high.tif", "--range", "0,0.5", "--clip") == 0
    made = tifffile.imread(tmp_path / "high.tif")
    assert made.min() == 0 and made.max() == 0.5


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("bands", [2, 4, 6])
def test_bands_that_the_model_does_not_have_are_counted(tiny_workdir, tmp_path, capsys, bands, planar):
    values = levels_of(12, 16, bands, top=255, dtype=np.uint8)
    values = values if planar == "contig" else np.moveaxis(values, -1, 0)
    tifffile.imwrite(tmp_path / "low.tif", values, photometric="minisblack", planarconfig=planar)
    assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / "high.tif") == 1
    assert f"it has {bands} bands of colour, and the model was trained on 3" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["float16", "planar", "orientation", "minus", "associated"])
def test_ways_in_which_tiffs_hold_the_same(tiny_workdir, tmp_path, kind):
    values = levels_of(12, 16, 3)
    expected, options = enlarged(values), {"photometric": "rgb"}
    if kind == "float16":
        values = (values / 65535).astype(np.float16)
        expected = enlarged(values)
    elif kind == "planar":
        values, options = np.moveaxis(values, -1, 0), options | {"planarconfig": "separate"}
    elif kind == "orientation":
        values = np.ascontiguousarray(np.rot90(values))
        options |= {"extratags": [(274, 3, 1, 6, True)]}
    elif kind == "minus":
        values, options = 65535 - values[..., 0], {"photometric": "miniswhite"}
        expected = expected[..., :1]
    elif kind == "associated":
        alpha = np.full((12, 16, 1), 32768, np.uint16)
        values = np.dstack([(values * (32768 / 65535)).astype(np.uint16), alpha])
        options |= {"extrasamples": ["assocalpha"]}
    tifffile.imwrite(tmp_path / "low.tif", values, **options)
    assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / "high.tif") == 0
    made = np.atleast_3d(tifffile.imread(tmp_path / "high.tif")).astype(float)
    if kind == "associated":
        assert np.all(made[..., 3] == 32768)
    assert np.abs(made[..., : expected.shape[2]] - expected).max() <= {"float16": 5e-4, "associated": 3}.get(kind, 1)


@pytest.mark.parametrize(
    ("suffix", "result"), [(".tif", ".tif"), (".gif", ".gif"), (".png", ".png"), (".webp", ".tif")]
)
def test_all_pages_are_enlarged(tiny_workdir, tmp_path, suffix, result, capsys):
    """Flat pictures survive every palette."""
    pages = [np.full((12, 16, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255), (0, 255, 0))]
    first, *more = (Image.fromarray(page) for page in pages)
    lossless = {"lossless": True} if suffix == ".webp" else {}
    options = {} if suffix == ".tif" else {"duration": [100, 200, 300], "loop": 2}
    first.save(tmp_path / f"low{suffix}", save_all=True, append_images=more, **options, **lossless)
    assert run(tiny_workdir, tmp_path / f"low{suffix}", tmp_path / f"high{result}") == 0
    with Image.open(tmp_path / f"high{result}") as made:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(made)]
        if result == suffix and suffix != ".tif":
            durations = []
            for frame in ImageSequence.Iterator(made):
                durations.append(frame.info["duration"])
            assert durations == [100, 200, 300] and made.info["loop"] == 2
    assert len(frames) == 3
    for frame, page in zip(frames, pages, strict=True):
        np.testing.assert_array_equal(frame, page.repeat(2, 0).repeat(2, 1))
    assert run(tiny_workdir, tmp_path / f"low{suffix}", tmp_path / "second.png", "--page", 2) == 0
    np.testing.assert_array_equal(images.read(tmp_path / "second.png"), pages[1].repeat(2, 0).repeat(2, 1))
    assert "2 further pages are left out" in capsys.readouterr().err
    assert run(tiny_workdir, tmp_path / f"low{suffix}", tmp_path / "high.jpg") == 1
    assert "JPEG cannot hold 3 pages" in capsys.readouterr().err
    assert run(tiny_workdir, tmp_path / f"low{suffix}", tmp_path / "fourth.png", "--page", 4) == 1
    assert "it has 3 pages, and none of number 4" in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_thumbnails_within_a_file_are_no_pages(tiny_workdir, tmp_path, dtype, top):
    values = levels_of(12, 16, 3, top=top, dtype=dtype)
    with tifffile.TiffWriter(tmp_path / "low.tif") as writer:
        writer.write(values, photometric="rgb")
        writer.write(values[::2, ::2], photometric="rgb", subfiletype=1)
        writer.write(values[::-1], photometric="rgb")
    assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / "high.tif") == 0
    first, second = images.read_pages(tmp_path / "high.tif")
    assert np.abs(first.colours - enlarged(values)).max() <= 2
    assert np.abs(second.colours - enlarged(values[::-1])).max() <= 2
    assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / "second.tif", "--page", 2) == 0
    np.testing.assert_array_equal(images.read_picture(tmp_path / "second.tif").colours, second.colours)


def test_deep_pages_stay_together_or_are_refused(tiny_workdir, tmp_path, capsys):
    with tifffile.TiffWriter(tmp_path / "low.tif") as writer:
        for number, dpi in enumerate((72, 300)):
            tags = [(270, 2, None, f"page {number}", True)]
            options = {"resolution": (dpi, dpi), "resolutionunit": "inch", "extratags": tags, "metadata": None}
            writer.write(np.roll(levels_of(12, 16, 3), number, 0), photometric="rgb", **options)
    assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / "high.png") == 1
    assert "PNG cannot hold 2 pages" in capsys.readouterr().err
    assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / "high.tif") == 0
    with tifffile.TiffFile(tmp_path / "high.tif") as made:
        assert [page.get_resolution("inch")[0] for page in made.pages] == [72, 300]
        assert [page.tags[270].value for page in made.pages] == ["page 0", "page 1"]


@pytest.mark.parametrize("suffix", [".tif", ".png", ".ppm", ".jp2"])
def test_results_are_written_in_the_range_that_was_read(tiny_workdir, tmp_path, suffix):
    values = levels_of(12, 16, 3, top=4095)
    images.write(tmp_path / f"low{suffix}", values)
    assert run(tiny_workdir, tmp_path / f"low{suffix}", tmp_path / f"high{suffix}", "--range", "0,4095") == 0
    assert np.abs(images.read_picture(tmp_path / f"high{suffix}").colours - enlarged(values)).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_kinds_of_eight_bits(tiny_workdir, tmp_path, mode):
    picture = Image.fromarray(levels_of(12, 16, 3, top=255, dtype=np.uint8))
    picture = (picture.convert("RGBA") if mode in ("LA", "RGBA") else picture).convert(mode)
    picture.save(tmp_path / "low.tif")
    for suffix in (".tif", ".png", ".avif"):
        assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / f"high{suffix}") == 0
    with Image.open(tmp_path / "high.png") as made:
        assert made.mode == {"1": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode)
        colours = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA"}.get(mode, "RGB")
        channels = [band.resize(made.size, Image.Resampling.BICUBIC) for band in picture.convert(colours).split()]
        np.testing.assert_array_equal(np.atleast_3d(made), np.dstack(channels))


def test_opaque_pixels_do_not_depend_on_what_is_hidden(tiny_workdir, tmp_path):
    """To the bit, in 8 and 16 bits."""
    for top, dtype in ((255, np.uint8), (65535, np.uint16)):
        alpha = np.full((12, 16, 1), top, dtype)
        alpha[:, :6] = 0
        made = []
        for name, under in ((f"a{top}", 0.1), (f"b{top}", 0.9)):
            colours = np.where(alpha == 0, dtype(under * top), levels_of(12, 16, 3, top=top, dtype=dtype))
            images.write(tmp_path / f"{name}.png", np.dstack([colours, alpha]))
            assert run(tiny_workdir, tmp_path / f"{name}.png", tmp_path / f"{name}-high.png") == 0
            made.append(images.read_picture(tmp_path / f"{name}-high.png"))
        assert made[0].colours.dtype == dtype
        np.testing.assert_array_equal(made[0].colours, made[1].colours)
        np.testing.assert_array_equal(made[0].alpha, made[1].alpha)


def test_what_a_format_cannot_hold_is_said(tiny_workdir, tmp_path, capsys):
    images.write(tmp_path / "low.png", levels_of(12, 16, 4))
    assert run(tiny_workdir, tmp_path / "low.png", tmp_path / "high.jpg") == 0
    said = capsys.readouterr().err
    assert "without its transparency, which .jpg cannot hold" in said and "more than 8 of its bits (uint16)" in said


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_place_on_earth_is_that_of_smaller_pixels(tiny_workdir, tmp_path, capsys, dtype):
    tags = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, (1.0, 2.0, 0.0, 500.0, 900.0, 0.0), True)]
    tags += [(270, 2, None, "a field", True)]
    values = levels_of(12, 16, 3, top=np.iinfo(dtype).max, dtype=dtype)
    tifffile.imwrite(tmp_path / "low.tif", values, photometric="rgb", extratags=tags, metadata=None)
    assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / "high.tif") == 0
    with tifffile.TiffFile(tmp_path / "high.tif") as made:
        found = made.pages[0].tags
        assert found[33550].value == (5.0, 5.0, 0.0) and found[33922].value == (2.0, 4.0, 0.0, 500.0, 900.0, 0.0)
        assert found[270].value == "a field"
    capsys.readouterr()
    assert run(tiny_workdir, tmp_path / "low.tif", tmp_path / "high.png") == 0
    assert "without its place on Earth, and texts beside it" in capsys.readouterr().err
