import contextlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from photos import bicubic

from dream_jax import tasks
from dream_jax.__main__ import main
from dream_jax.errors import UserError
from dream_jax.files import images, windows
from dream_jax.inference import large, observation, trained
from dream_jax.inference.jobs import Job

SCALE = 2


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch):
    """A picture of more than 1000 pixels is not read whole."""
    monkeypatch.setenv("DREAM_JAX_MAX_PIXELS", "1000")


@pytest.fixture
def low(tmp_path):
    """(path, picture) of a TIFF file."""
    picture = np.random.default_rng(0).integers(0, 256, (70, 45, 3), dtype=np.uint8)
    path = tmp_path / "low.tif"
    tifffile.imwrite(path, picture, photometric="rgb", tile=(32, 32), compression="zlib", metadata=None)
    return path, picture


def run(workdir, source, output, *options):
    named = ("--workdir", workdir, "--input", source, "--output", output, "--steps", "1", "--tile", "32")
    return main(["upscale", *map(str, (*named, "--memory", 64, *options))])


def test_a_network_of_zero_residual_gives_the_bicubic_picture(tiny_workdir, low, tmp_path, capsys):
    path, picture = low
    options = {"resolution": (300, 300), "resolutionunit": 2, "extratags": [(315, 2, None, "me", True)]}
    tifffile.imwrite(path, picture, photometric="rgb", metadata=None, **options)
    assert run(tiny_workdir, path, tmp_path / "high.tif", "--steps", "2") == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "high.tif"), bicubic(picture))
    said = " ".join(capsys.readouterr().out.split())
    assert "enlarged in windows" in said and "a temporary file of" in said
    with windows.open_tiff(tmp_path / "high.tif") as high:
        assert high.extras["dpi"] == (300, 300) and high.extras["tags"][315] == "me"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["high.tif", "low.tif"]


def test_grey_and_transparency_of_16_bits_stay(tiny_workdir, low, tmp_path, capsys):
    path, picture = low
    deep = picture[..., :2].astype(np.uint16) * 257
    tifffile.imwrite(path, deep, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    assert run(tiny_workdir, path, tmp_path / "high.tif") == 0
    high = tifffile.imread(tmp_path / "high.tif")
    assert high.dtype == np.uint16 and high.shape == (140, 90, 2)
    # Pillow rounds after each axis, to levels.
    assert np.abs(high / 257 - bicubic(picture)[..., :2]).max() < 1.5
    assert np.any(high % 257) and "colours that nobody sees" in capsys.readouterr().err
    with windows.open_tiff(tmp_path / "high.tif") as file:
        assert file.alpha


def test_seeds_and_names_make_the_noise(tiny_workdir, low, tmp_path, monkeypatch):
    asked = []

    def draw(model, rows, plan, cond_rows, number, key, folder, tick):
        asked.append((number, key))
        yield np.zeros((*plan.sides, 3), np.float32)

    monkeypatch.setattr(large.out_of_core, "draw", draw)
    shutil.copy(low[0], tmp_path / "other.tif")
    for path in (low[0], tmp_path / "other.tif"):
        assert run(tiny_workdir, path, f"{tmp_path}/high/", "--samples", 2) == 0
    numbers, keys = zip(*asked, strict=True)
    assert numbers[0] == numbers[1] != numbers[2] and keys[0] == keys[2] != keys[1] == keys[3]
    names = ["low-seed0.tif", "low-seed1.tif", "other-seed0.tif", "other-seed1.tif"]
    assert sorted(path.name for path in (tmp_path / "high").iterdir()) == names


def test_sub_folders_are_made(tiny_workdir, low, tmp_path):
    folder = tmp_path / "pictures" / "below"
    folder.mkdir(parents=True)
    shutil.copy(low[0], folder)
    assert run(tiny_workdir, folder.parent, tmp_path / "high") == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "high" / "below" / "low.tif"), bicubic(low[1]))


def test_a_range_is_refused_for_more_than_8_bits_alone(tiny_workdir, low, tmp_path, capsys):
    path, picture = low
    assert run(tiny_workdir, path, tmp_path / "high.tif", "--range", "0,100") == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "high.tif"), bicubic(picture))
    tifffile.imwrite(path, picture.astype(np.uint16), photometric="rgb")
    assert run(tiny_workdir, path, tmp_path / "deep.tif", "--range", "0,100") == 1
    assert "in windows there is no --range" in capsys.readouterr().err and not (tmp_path / "deep.tif").exists()


def test_a_small_page_after_a_large_one_is_read_whole(tiny_workdir, low, tmp_path):
    second = low[1][:20, :24]
    with tifffile.TiffWriter(low[0]) as file:
        for page in low[1], second:
            file.write(page.astype(np.uint16) * 257, photometric="rgb", metadata=None)
    assert run(tiny_workdir, low[0], tmp_path / "high.tif", "--page", 2) == 0
    # Pillow rounds after each axis, to levels.
    assert np.abs(tifffile.imread(tmp_path / "high.tif") / 257 - bicubic(second)).max() < 1.5


@pytest.mark.parametrize(("has", "takes", "fits"), [(1, 1, 1), (1, 3, 1), (1, 5, 0), (5, 5, 1), (3, 5, 0), (3, 1, 0)])
def test_bands_are_those_of_the_model_or_grey_for_three(has, takes, fits, tmp_path):
    """In windows as in memory."""
    picture = np.zeros((4, 4, has) if has > 1 else (4, 4), np.uint8)
    kind = {"photometric": "rgb" if has == 3 else "minisblack", "planarconfig": "contig" if has > 1 else None}
    tifffile.imwrite(tmp_path / "a.tif", picture, **kind)
    experiment = SimpleNamespace(task=tasks.super_resolution(SCALE, channels=takes))
    with windows.open_tiff(tmp_path / "a.tif") as source:
        rows = large.restore_in_windows(SimpleNamespace(experiment=experiment), None, source, None, 0, None, tmp_path)
        # No plan is looked at before.
        with pytest.raises(AttributeError if fits else UserError, match="sides" if fits else "the model was trained"):
            next(rows)
    pages = images.read_pages(tmp_path / "a.tif")
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match="the model was trained"):
        assert observation.for_model(tmp_path / "a.tif", pages[0], takes).shape == (4, 4, takes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--config.sampling.project=True",), "needs the picture as a whole"),
        (("--tile", "64", "--format", "png"), "becomes a TIFF"),
    ],
)
def test_what_cannot_be_done_in_windows_is_told(options, reason, tiny_workdir, low, tmp_path, capsys):
    assert run(tiny_workdir, low[0], f"{tmp_path}/high/", *options) == 1
    assert reason in capsys.readouterr().err and not list((tmp_path / "high").iterdir())


def test_too_little_disk_or_memory_is_told_beforehand(tiny_workdir, low, tmp_path, capsys, monkeypatch):
    where = tiny_workdir, low[0], tmp_path / "high.tif"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        assert run(*where, "--steps", 2) == 1
        assert "GiB are free there" in capsys.readouterr().err
    monkeypatch.setattr(large.out_of_core, "_SMALL_TILE", 0)
    arguments = ["upscale", "--workdir", tiny_workdir, "--input", low[0], "--output", where[2], "--memory", 1e-4]
    assert main(list(map(str, arguments))) == 1
    assert "GiB even in windows" in capsys.readouterr().err


def test_a_damaged_picture_leaves_no_result(tiny_workdir, low, tmp_path, capsys):
    with tifffile.TiffFile(low[0]) as file:
        at = file.pages[0].dataoffsets[-1]
    data = bytearray(low[0].read_bytes())
    data[at : at + 40] = bytes(40)
    low[0].write_bytes(data)
    assert run(tiny_workdir, low[0], tmp_path / "high.tif") == 1
    assert "low.tif: cannot be read in windows" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["low.tif"]


def test_windows_are_for_what_does_not_fit(tiny_workdir, low, monkeypatch):
    experiment = trained.open_experiment(tiny_workdir)
    job = Job(low[0], "low.tif", ())

    def fails(shape):
        raise UserError("too little memory")

    def unasked():
        raise AssertionError("asked")

    assert large.is_large(job, experiment, unasked)
    monkeypatch.delenv("DREAM_JAX_MAX_PIXELS")
    assert large.is_large(job, experiment, lambda: fails)
    assert not large.is_large(job, experiment, lambda: lambda shape: None)
    images.write(low[0].with_suffix(".png"), low[1])
    assert not large.is_large(job._replace(picture=low[0].with_suffix(".png")), experiment, unasked)
