"""Restoring files, through stand-in networks."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
import tiny
from PIL import Image, ImageCms

from dream_jax import tasks
from dream_jax.__main__ import main
from dream_jax.config import records
from dream_jax.errors import UserError
from dream_jax.files import images, tiff_tags
from dream_jax.files.picture import MASK
from dream_jax.inference import bands, drawing, masks, observation, trained
from dream_jax.runtime import sharding

KERNEL = np.random.default_rng(3).standard_normal((5, 5, 16, 8)).astype(np.float32) / 8


class Local:
    """A network of convolutions that reaches two pixels."""

    divisor = 2

    def __init__(self, channels):
        self.channels = channels

    def told(self, schedule, alpha):
        return alpha

    def apply(self, variables, inputs, level, dropout_keys=None, mutable=False):
        kernel = jnp.asarray(KERNEL[:, :, : inputs.shape[-1], : self.channels])
        out = jax.lax.conv_general_dilated(
            inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )
        out = jnp.tanh(out) * (1 - 0.5 * level[:, None, None, None])
        # Without norms there are no statistics.
        return (out, {}) if mutable else out


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """`make_run(task, *changes) -> workdir` of a stand-in."""

    def load(workdir, experiment, step):
        experiment = experiment._replace(network=Local(experiment.task.x0_channels))
        return drawing.Model(experiment, {"w": np.zeros(1, np.float32)}, step, sharding.make_mesh(), str(workdir))

    def make(task, *changes):
        config = tiny.tiny_config("image_size=16", "task.residual=False", f"task.name={task}", *changes)
        (tmp_path / task).mkdir(exist_ok=True)
        records.save(config, tmp_path / task / "config.json")
        return tmp_path / task

    monkeypatch.setattr(trained, "load_weights", load)
    monkeypatch.setattr(trained, "step_of", lambda *_: 1)
    return make


def picture_of(height, width, channels=3, dtype=np.uint8):
    top = np.iinfo(dtype).max + 1
    return np.random.default_rng(0).integers(0, top, (height, width, channels), dtype=dtype)


def mask_of(height, width, share=0.4):
    return np.where(np.random.default_rng(1).random((height, width, 1)) < share, np.uint8(255), np.uint8(0))


def run(workdir, source, output, *options, command="restore"):
    named = ("--workdir", workdir, "--input", source, "--output", output, "--steps", "2", "--memory", 64)
    return main([command, *map(str, (*named, *options))])


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (2, np.uint16), (3, np.uint16), (4, np.uint8)])
def test_what_is_known_stays_to_the_bit_and_the_rest_is_painted(make_run, tmp_path, channels, dtype):
    picture, mask = picture_of(36, 44, channels, dtype), mask_of(36, 44)
    if channels % 2 == 0:
        # Of pixels that nobody sees the colours do not count.
        picture[..., -1] = np.maximum(picture[..., -1], 1)
    images.write(tmp_path / "in.png", picture)
    images.write(tmp_path / "mask.png", mask)
    known, colours = mask[..., 0] == 0, slice(0, channels - (channels % 2 == 0))
    for name, options in {"whole": (), "tiles": ("--tile", 16)}.items():
        where = make_run("inpainting"), tmp_path / "in.png", tmp_path / f"{name}.png", "--mask", tmp_path / "mask.png"
        assert run(*where, *options) == 0
        found = images.read_picture(tmp_path / f"{name}.png")
        made = found.colours if found.alpha is None else np.dstack([found.colours, found.alpha])
        assert made.dtype == dtype and made.shape == picture.shape
        np.testing.assert_array_equal(made[known], picture[known])
        assert np.mean(made[~known][:, colours] != picture[~known][:, colours]) > 0.9
        if channels % 2 == 0:
            np.testing.assert_array_equal(made[..., -1], picture[..., -1])


def test_masks_of_a_folder_are_found_by_name(make_run, tmp_path, capsys):
    workdir, masks = make_run("inpainting"), tmp_path / "masks"
    picture, mask = picture_of(20, 24), mask_of(20, 24)
    for name in ("a.png", "sub/b.png", "lonely.png", "large.png", "twice.png", "clear.png"):
        images.write(tmp_path / "in" / name, picture_of(22, 24) if name == "large.png" else picture)
    for name in ("a.png", "sub/b.tif", "large.png", "twice.png", "twice.bmp"):
        images.write(masks / name, mask)
    images.write(masks / "clear.png", np.dstack([mask] * 4))
    assert run(workdir, tmp_path / "in", tmp_path / "out", "--mask", masks) == 1
    said = capsys.readouterr().err
    assert "3 of 6 pictures failed; 3 restored" in said
    assert "lonely.png: it has no mask in" in said and "twice.png are both its mask" in said
    assert "large.png: it has 24 x 22 pixels, and its mask" in said and "large.png has 24 x 20" in said
    # What is transparent is black.
    for name in "a.png", "sub/b.png", "clear.png":
        made = images.read(tmp_path / "out" / name)
        np.testing.assert_array_equal(made[mask[..., 0] == 0], picture[mask[..., 0] == 0])
    assert np.any(images.read(tmp_path / "out" / "a.png") != images.read(tmp_path / "out" / "sub" / "b.png"))


def masks_as_files():
    """{name: levels of a mask [H, W, C] whose meaning is `mask_of(20, 24)`}."""
    mask, ones = mask_of(20, 24), mask_of(20, 24) // 255
    full = np.full_like(mask, 255)
    return {
        "half": np.where(mask, np.uint8(128), np.uint8(127)),
        "deep": np.where(mask, np.uint16(32768), np.uint16(32767)),
        "ones": ones,
        "deep ones": ones.astype(np.uint16),
        "rgb ones": np.dstack([ones] * 3),
        "opaque": np.dstack([mask, full]),
        "transparent": np.dstack([full, mask]),
        "opaque ones": np.dstack([ones, full]),
        "ones before what nobody sees": np.dstack([np.where(mask, 1, 200), mask]).astype(np.uint8),
        "a late white": np.concatenate([ones[:-1], mask[-1:]]),
    }


@pytest.mark.parametrize("kind", masks_as_files())
def test_masks_mean_the_same_in_training_in_use_and_in_windows(tmp_path, kind):
    levels, path = masks_as_files()[kind], tmp_path / "mask.tif"
    images.write(tmp_path / "mask.png", levels)
    write_tiff(path, levels[..., 0] if levels.shape[2] == 1 else levels)
    job = SimpleNamespace(picture=path, name="mask")
    with masks.opened(masks.Masks(path), job, (20, 24)) as rows:
        ours = np.concatenate([rows(start, start + 5) for start in range(0, 20, 5)])
    expected = mask_of(20, 24) if kind != "a late white" else mask_of(20, 24) * (np.arange(20) == 19)[:, None, None]
    np.testing.assert_array_equal(ours, expected)
    for file in path, tmp_path / "mask.png":
        np.testing.assert_array_equal(images.read(file, MASK), expected)
        np.testing.assert_array_equal(masks.mask_of(masks.Masks(file), job, (20, 24)), expected)


def test_a_mask_of_other_bands_is_named(tmp_path):
    path, job = tmp_path / "mask.tif", SimpleNamespace(picture=tmp_path / "a.tif", name="a")
    tifffile.imwrite(path, np.zeros((20, 24, 2), np.uint8), photometric="minisblack", extrasamples=["unspecified"])
    with pytest.raises(UserError, match=r"mask\.tif: a mask is grey or RGB, and this has 2 bands"):
        masks.mask_of(masks.Masks(path), job, (20, 24))
    with masks.opened(masks.Masks(path), job, (20, 24)) as rows, pytest.raises(UserError, match="this has 2 bands"):
        rows(0, 5)


@pytest.mark.parametrize("kind", ["half", "deep", "one bit", "rgb"])
def test_at_least_half_of_white_is_to_be_painted(make_run, tmp_path, kind):
    picture, mask = picture_of(20, 24), mask_of(20, 24)[..., 0]
    path = tmp_path / "mask.png"
    if kind == "half":
        images.write(path, np.where(mask, np.uint8(128), np.uint8(127))[..., None])
    elif kind == "deep":
        images.write(path, np.where(mask, np.uint16(32768), np.uint16(32767))[..., None])
    elif kind == "one bit":
        Image.fromarray(mask).convert("1").save(path)
    else:
        images.write(path, np.dstack([mask] * 3))
    images.write(tmp_path / "in.png", picture)
    assert run(make_run("inpainting"), tmp_path / "in.png", tmp_path / "out.png", "--mask", path) == 0
    changed = np.any(images.read(tmp_path / "out.png") != picture, -1)
    assert not np.any(changed & (mask == 0)) and np.mean(changed[mask > 0]) > 0.95


def test_a_black_mask_leaves_the_picture_and_says_so(make_run, tmp_path, capsys):
    workdir, pages = make_run("inpainting"), [picture_of(20, 24), picture_of(20, 24) // 2]
    first, second = (Image.fromarray(page) for page in pages)
    first.save(tmp_path / "in.tif", save_all=True, append_images=[second])
    images.write(tmp_path / "black.png", np.zeros((20, 24, 1), np.uint8))
    assert run(workdir, tmp_path / "in.tif", tmp_path / "out.tif", "--mask", tmp_path / "black.png") == 0
    assert capsys.readouterr().err.count("there was nothing to paint") == 1
    for page, made in zip(pages, images.read_pages(tmp_path / "out.tif"), strict=True):
        np.testing.assert_array_equal(made.colours, page)
    # One mask is for all pages.
    images.write(tmp_path / "mask.png", mask := mask_of(20, 24))
    assert run(workdir, tmp_path / "in.tif", tmp_path / "two.tif", "--mask", tmp_path / "mask.png") == 0
    for page, made in zip(pages, images.read_pages(tmp_path / "two.tif"), strict=True):
        changed = np.any(made.colours != page, -1)
        assert not np.any(changed & (mask[..., 0] == 0)) and changed.any()


def test_mistakes_in_options(make_run, tmp_path, capsys):
    images.write(tmp_path / "in.png", picture_of(16, 16))
    images.write(tmp_path / "masks" / "in.png", mask := mask_of(16, 16))
    scaled = "super_resolution", "task.scale=2"
    for task, options, reason in (
        (("inpainting",), (), "needs --mask FILE_OR_FOLDER"),
        (("inpainting",), ("--mask", "nowhere"), "no such mask"),
        (("denoising",), ("--mask", "masks"), "denoising takes no masks"),
        (scaled, ("--mask", "masks"), "super_resolution takes no masks"),
        (("denoising",), ("--scale", 2), "of the size that they have"),
        (scaled, ("--scale", 0.5), "task.scale"),
        (("unconditional", "objective.kind=v"), (), "use generate"),
    ):
        options = [tmp_path / option if option == "masks" else option for option in options]
        assert run(make_run(*task), tmp_path / "in.png", tmp_path / "out.png", *options) == 2, options
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1
    where = make_run("inpainting"), tmp_path / "in.png"
    assert run(*where, tmp_path / "out.png", command="upscale") == 2
    assert "its task is inpainting; use restore" in capsys.readouterr().err
    assert run(*where, f"{tmp_path}/masks/", "--mask", tmp_path / "masks", "--overwrite") == 2
    assert "would replace this mask" in capsys.readouterr().err
    np.testing.assert_array_equal(images.read_picture(tmp_path / "masks" / "in.png").colours, mask)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_are_made_of_grey_and_of_the_luminance_of_colours(make_run, tmp_path, capsys, dtype):
    workdir, grey = make_run("colourisation"), picture_of(20, 24, 2, dtype)
    grey[..., 1] = np.maximum(grey[..., 1], 1)
    images.write(tmp_path / "grey.png", grey)
    assert run(workdir, tmp_path / "grey.png", tmp_path / "made" / "grey.png") == 0
    assert "luminance" not in capsys.readouterr().err
    made = images.read_picture(tmp_path / "made" / "grey.png")
    assert made.colours.shape == (20, 24, 3) and made.colours.dtype == dtype
    np.testing.assert_array_equal(made.alpha, grey[..., 1])
    task = tasks.make(tiny.tiny_config("task.name=colourisation", "task.residual=False"))
    luminance = np.asarray(task.given(made.colours)).astype(int)
    assert np.abs(luminance - grey[..., :1]).max() <= 1 and np.ptp(made.colours.astype(int), -1).max() > 20
    # Of a picture with colours the luminance is all that is looked at.
    (tmp_path / "colours").mkdir()
    for name in "grey.png", "other.png":
        images.write(tmp_path / "colours" / name, np.dstack([made.colours, made.alpha]))
    assert run(workdir, tmp_path / "colours", tmp_path / "again") == 0
    assert capsys.readouterr().err.count("only their luminance") == 1
    again = images.read_picture(tmp_path / "again" / "grey.png").colours.astype(int)
    assert np.abs(again - made.colours).max() <= (2 if dtype == np.uint8 else 512)
    assert np.any(images.read_picture(tmp_path / "again" / "other.png").colours != again)


@pytest.mark.parametrize("task", ["denoising", "inpainting", "colourisation"])
def test_tiles_are_the_whole_for_a_local_network(make_run, tmp_path, task):
    """In 16 bits, whose levels are fine enough to tell."""
    images.write(tmp_path / "in.png", picture_of(50, 70, 3, np.uint16))
    images.write(tmp_path / "mask.png", mask_of(50, 70))
    workdir, masks = make_run(task), ("--mask", tmp_path / "mask.png") if task == "inpainting" else ()
    made = []
    for name, options in {"whole": (), "tiles": ("--tile", 32)}.items():
        assert run(workdir, tmp_path / "in.png", tmp_path / f"{name}.png", *options, *masks) == 0
        made.append(images.read_picture(tmp_path / f"{name}.png").colours / 65535.0)
    np.testing.assert_allclose(made[1], made[0], atol=3e-5)
    assert made[0].std() > 0.1


@pytest.mark.parametrize("task", ["inpainting", "colourisation"])
def test_projecting_on_what_is_kept_anyway_changes_nothing(make_run, tmp_path, task):
    images.write(tmp_path / "in.png", picture_of(21, 17))
    images.write(tmp_path / "mask.png", mask_of(21, 17))
    workdir, masks = make_run(task), ("--mask", tmp_path / "mask.png") if task == "inpainting" else ()
    made = []
    for project in False, True:
        where = workdir, tmp_path / "in.png", tmp_path / f"{project}.png", f"--config.sampling.project={project}"
        assert run(*where, *masks) == 0
        made.append(images.read(tmp_path / f"{project}.png").astype(int))
    assert np.abs(made[0] - made[1]).max() <= (0 if task == "inpainting" else 1)


def test_other_scales_than_the_trained_one(make_run, tmp_path, capsys):
    workdir = make_run("super_resolution", "task.scale=2")
    images.write(tmp_path / "in.png", picture_of(17, 23, 4))
    assert run(workdir, tmp_path / "in.png", tmp_path / "out.png", "--scale", 3, command="upscale") == 0
    out = capsys.readouterr().out
    assert "trained to enlarge 2 times, used for 3 times" in out and "1 enlarged 3x into" in out
    made = images.read_picture(tmp_path / "out.png")
    assert made.colours.shape == (51, 69, 3) and made.alpha.shape == (51, 69)


def test_a_scale_that_is_not_whole(make_run, tmp_path, capsys, monkeypatch):
    workdir = make_run("super_resolution", "task.scale=2", "task.scales=1.5,4")
    images.write(tmp_path / "in.png", picture_of(17, 35, 4, np.uint16))
    made = []
    for name, options in {"whole.tif": (), "tiles.tif": ("--tile", 32)}.items():
        assert run(workdir, tmp_path / "in.png", tmp_path / name, "--scale", 2.7, *options) == 0
        out = capsys.readouterr().out
        assert "1 enlarged 2.7x into" in out and "trained to" not in out
        picture = images.read_picture(tmp_path / name)
        assert picture.colours.shape == (round(17 * 2.7), round(35 * 2.7), 3) and picture.alpha.shape == (46, 94)
        made.append(picture.colours / 65535.0)
    np.testing.assert_allclose(made[1], made[0], atol=3e-5)
    assert run(workdir, tmp_path / "in.png", tmp_path / "5.png", "--scale", 5) == 2
    assert "was trained to enlarge 1.5 to 4 times" in capsys.readouterr().err
    monkeypatch.setenv("DREAM_JAX_MAX_PIXELS", "500")
    write_tiff(tmp_path / "in.tif", picture_of(17, 35))
    assert run(workdir, tmp_path / "in.tif", tmp_path / "windows.tif", "--scale", 2.7) == 1
    assert "in windows the scale is a whole number, not 2.7" in capsys.readouterr().err


def test_a_place_on_earth_is_that_of_each_axis():
    tags = {33550: (10.0, 10.0, 0.0), 33922: (1.0, 2.0, 0.0, 500.0, 900.0, 0.0)}
    made = tiff_tags.enlarged(tags, 2.5, 2.0)
    assert made[33550] == (4.0, 5.0, 0.0) and made[33922] == (2.5, 4.0, 0.0, 500.0, 900.0, 0.0)
    assert tiff_tags.enlarged(tags, 2) == tiff_tags.enlarged(tags, 2, 2)


def write_tiff(path, values):
    kind = "rgb" if values.ndim == 3 and values.shape[2] > 2 else "minisblack"
    extra = {"extrasamples": ["unassalpha"]} if values.ndim == 3 and values.shape[2] % 2 == 0 else {}
    tifffile.imwrite(path, values, photometric=kind, rowsperstrip=8, compression="zlib", metadata=None, **extra)


@pytest.mark.parametrize("channels", [1, 4])
def test_what_is_known_stays_to_the_bit_in_windows(make_run, tmp_path, monkeypatch, capsys, channels):
    monkeypatch.setenv("DREAM_JAX_MAX_PIXELS", "1000")
    dtype = np.uint8 if channels == 1 else np.uint16
    picture, mask = picture_of(70, 45, channels, dtype), mask_of(70, 45)
    write_tiff(tmp_path / "in.tif", picture[..., 0] if channels == 1 else picture)
    write_tiff(tmp_path / "mask.tif", mask[..., 0])
    where = make_run("inpainting"), tmp_path / "in.tif", tmp_path / "out.tif", "--tile", 32
    assert run(*where, "--mask", tmp_path / "mask.tif") == 0
    assert "restored in windows" in capsys.readouterr().out
    made, known = np.atleast_3d(tifffile.imread(tmp_path / "out.tif")), mask[..., 0] == 0
    assert made.dtype == dtype and made.shape == picture.shape
    np.testing.assert_array_equal(made[known], picture[known])
    assert np.mean(made[~known][:, :1] != picture[~known][:, :1]) > 0.9
    np.testing.assert_array_equal(made[..., 3:], picture[..., 3:])


def test_masks_in_windows_are_tiffs_of_the_picture_s_size(make_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DREAM_JAX_MAX_PIXELS", "1000")
    write_tiff(tmp_path / "in.tif", picture := picture_of(70, 45))
    where = make_run("inpainting"), tmp_path / "in.tif", tmp_path / "out.tif", "--tile", 32
    images.write(tmp_path / "mask.png", mask_of(20, 45))
    write_tiff(tmp_path / "small.tif", mask_of(69, 45)[..., 0])
    for name, reason in (("mask.png", "must be a TIFF file too"), ("small.tif", "has 45 x 69")):
        assert run(*where, "--mask", tmp_path / name) == 1
        assert reason in capsys.readouterr().err and not (tmp_path / "out.tif").exists()
    write_tiff(tmp_path / "black.tif", np.zeros((70, 45), np.uint16))
    assert run(*where, "--mask", tmp_path / "black.tif") == 0
    assert "there was nothing to paint" in capsys.readouterr().err
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), picture)


def test_colours_are_made_of_grey_in_windows(make_run, tmp_path, monkeypatch):
    monkeypatch.setenv("DREAM_JAX_MAX_PIXELS", "1000")
    write_tiff(tmp_path / "in.tif", picture := picture_of(70, 45, 2, np.uint16))
    assert run(make_run("colourisation"), tmp_path / "in.tif", tmp_path / "out.tif", "--tile", 32) == 0
    made = tifffile.imread(tmp_path / "out.tif")
    assert made.shape == (70, 45, 4) and made.dtype == np.uint16
    np.testing.assert_array_equal(made[..., 3], picture[..., 1])
    weights = np.array([19595, 38470, 7471]) / 65536
    assert np.abs(made[..., :3] @ weights - picture[..., 0]).max() <= 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_cond_in_windows_is_that_of_the_whole(dtype):
    """Of every task whose pictures have the size of what is observed."""
    seen = []
    for name in tasks.TASKS:
        classes = ["data.classes=a,b"] if name == "class_conditional" else []
        task = tasks.make(tiny.tiny_config(f"task.name={name}", "task.residual=False", "task.scale=1", *classes))
        if not task.paired or task.scale != 1:
            continue
        seen.append(name)
        picture = picture_of(90, 75, task.given_channels, dtype)
        mask = mask_of(90, 75) if task.beside == "mask" else None
        whole = np.asarray(task.condition(observation.observed_of(task, picture, mask)[None]))[0]

        def observed_rows(start, stop, task=task, picture=picture, mask=mask):
            return observation.observed_of(task, picture[start:stop], None if mask is None else mask[start:stop])

        rows = bands.enlarged(observed_rows, (90, 75), 1, task.condition)
        for start, stop in ((0, 1), (60, 70), (64, 90)):
            np.testing.assert_array_equal(rows(start, stop), whole[start:stop])
    assert len(seen) >= 5


@pytest.mark.parametrize(
    ("changes", "given", "dtype", "most"),
    [
        ((), np.uint16, np.uint8, 255),
        (("data.bits=16",), np.uint8, np.uint16, 65535),
        (("data.bits=16", "data.range=0,4095"), np.uint8, np.uint16, 4095),
        (("data.range=0,1", "data.condition_range=0,4095"), np.uint16, np.float32, 1),
    ],
)
def test_pictures_of_conditions_are_written_as_those_that_were_trained_on(
    make_run, tmp_path, changes, given, dtype, most
):
    condition = np.maximum(picture_of(20, 24, 4, given), 1)
    if "data.condition_range=0,4095" in changes:
        condition[..., :3] //= 17
    write_tiff(tmp_path / "in.tif", condition)
    assert run(make_run("paired", *changes), tmp_path / "in.tif", tmp_path / "out.tif") == 0
    made = tifffile.imread(tmp_path / "out.tif")
    assert made.dtype == dtype and made.shape == (20, 24, 4)
    colours, alpha = made[..., :3].astype(float), made[..., 3].astype(float)
    assert 0 <= colours.min() < 0.2 * most < 0.8 * most < colours.max() <= most
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    np.testing.assert_allclose(alpha / white, condition[..., 3] / np.iinfo(given).max, atol=0.003)


@pytest.mark.parametrize(("given", "bits"), [(np.uint16, 8), (np.uint8, 16)])
def test_pictures_of_conditions_have_their_own_levels_in_windows(make_run, tmp_path, monkeypatch, capsys, given, bits):
    workdir, made = make_run("paired", f"data.bits={bits}"), []
    write_tiff(tmp_path / "in.tif", picture_of(70, 45, 4, given))
    for name in "whole.tif", "windows.tif":
        assert run(workdir, tmp_path / "in.tif", tmp_path / name, "--tile", 32) == 0
        made.append(tifffile.imread(tmp_path / name))
        monkeypatch.setenv("DREAM_JAX_MAX_PIXELS", "1000")
    assert "restored in windows" in capsys.readouterr().out
    assert made[0].dtype == made[1].dtype == f"uint{bits}" and made[0].shape == made[1].shape == (70, 45, 4)
    # Their noise differs.
    shares = [picture / (2**bits - 1) for picture in made]
    np.testing.assert_array_equal(made[1][..., 3], made[0][..., 3])
    for measure in np.mean, np.std, np.max, np.min:
        assert abs(measure(shares[1][..., :3]) - measure(shares[0][..., :3])) < 0.03
    workdir = make_run("paired", "data.range=0,1")
    assert run(workdir, tmp_path / "in.tif", tmp_path / "ranged.tif", "--tile", 32) == 1
    assert "in windows there is no --range" in capsys.readouterr().err


def test_a_map_has_no_transparency_profile_or_camera(make_run, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = np.maximum(picture_of(20, 24, 4), 1)
    Image.fromarray(picture).save(tmp_path / "in.png", exif=exif, icc_profile=profile, dpi=(300, 300))
    changes = "task.target=classes", "task.num_classes=3", "data.channels=1", "data.bits=8"
    assert run(make_run("paired", *changes), tmp_path / "in.png", tmp_path / "out.png") == 0
    assert "without the picture's transparency, which a map does not have" in capsys.readouterr().err
    with Image.open(tmp_path / "out.png") as made:
        assert made.mode == "L" and made.size == (24, 20) and len(made.getexif()) == 0
        assert "icc_profile" not in made.info and round(made.info["dpi"][0]) == 300
        assert set(np.unique(made)) == {0, 1, 2}
