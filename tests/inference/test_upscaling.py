import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from photos import bicubic
from PIL import Image

from dream_jax.__main__ import main
from dream_jax.config import records
from dream_jax.errors import UserError
from dream_jax.files import images, picture_files
from dream_jax.inference import drawing, jobs, restoring, trained
from dream_jax.inference.tile_plans import Shape
from dream_jax.tasks import resize

pytestmark = pytest.mark.usefixtures("planned_once")


@pytest.fixture
def nothing_loaded(monkeypatch):
    def load(*_):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(trained, "load_weights", load)


@pytest.fixture
def noisy_model(monkeypatch):
    """Makes the results depend on the noise, unlike those of a network whose output is zero."""
    load = trained.load_weights

    def load_noisy(*args):
        model = load(*args)
        last = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size).reshape(a.shape)), model.params["conv_out"])
        return model._replace(params={**model.params, "conv_out": last})

    monkeypatch.setattr(trained, "load_weights", load_noisy)


def picture_of(seed, height, width, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def run(workdir, source, output, *options):
    named = ("--workdir", workdir, "--input", source, "--output", output, "--sampler", "ddpm", "--steps", "2")
    return main(["upscale", *map(str, (*named, "--memory", 64, *options))])


def test_what_training_needs_is_not_imported(tiny_workdir, tmp_path):
    images.write(tmp_path / "low.png", picture_of(0, 16, 16))
    program = """
import sys
from dream_jax.__main__ import main
status = main(sys.argv[1:])
unneeded = "optax", "grain", "tensorflow_datasets", "tensorflow", "tensorboardX", "matplotlib", "skimage"
unneeded += "dream_jax.data", "dream_jax.training.train_step", "dream_jax.training.run", "dream_jax.evaluation"
sys.exit(", ".join(name for name in unneeded if name in sys.modules) or status)
"""
    options = (
        "--workdir",
        tiny_workdir,
        "--input",
        tmp_path / "low.png",
        "--output",
        tmp_path / "high.png",
        "--steps",
        1,
    )
    arguments = [sys.executable, "-c", program, "upscale", *map(str, options)]
    done = subprocess.run(arguments, env={**os.environ, "PYTHONPATH": os.getcwd()}, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (1, 5)])
def test_a_network_of_zero_residual_gives_the_bicubic_picture(size, tiny_workdir, tmp_path):
    low = picture_of(0, *size)
    images.write(tmp_path / "low.png", low)
    assert run(tiny_workdir, tmp_path / "low.png", tmp_path / "high.png") == 0
    np.testing.assert_array_equal(images.read(tmp_path / "high.png"), bicubic(low))


def test_transparency_is_enlarged_and_kept_where_the_format_can(tiny_workdir, tmp_path, capsys):
    low = picture_of(1, 16, 16, 4)
    # All of it is seen a little.
    low[..., 3] = np.maximum(low[..., 3], 1)
    images.write(tmp_path / "low.webp", low)
    for name in "high.tif", "high.jpg":
        assert run(tiny_workdir, tmp_path / "low.webp", tmp_path / name) == 0
    colours, alpha = images.read_with_alpha(tmp_path / "high.tif")
    np.testing.assert_array_equal(colours[alpha > 0], bicubic(low[..., :3].copy())[alpha > 0])
    np.testing.assert_array_equal(alpha, bicubic(low[..., 3].copy()))
    assert images.read_with_alpha(tmp_path / "high.jpg")[1] is None
    assert "transparency" in capsys.readouterr().err


@pytest.mark.usefixtures("noisy_model")
@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_picture_stays_grey(tiny_workdir, tmp_path, mode):
    """The mean of what the model makes of its three equal channels."""
    levels = picture_of(4, 16, 12)[..., 0]
    grey = Image.fromarray(levels)
    (grey.convert("LA") if mode == "LA" else grey).save(tmp_path / "low.png")
    images.write(tmp_path / "rgb" / "low.png", np.repeat(levels[..., None], 3, -1))
    for source, result in (("low.png", "grey.png"), ("rgb/low.png", "rgb.png")):
        assert run(tiny_workdir, tmp_path / source, tmp_path / result) == 0
    with Image.open(tmp_path / "grey.png") as made:
        assert made.mode == ("LA" if mode == "LA" else "L")
        expected = np.floor(images.read(tmp_path / "rgb.png").mean(-1) + 0.5)
        np.testing.assert_array_equal(np.asarray(made.getchannel(0)), expected)


def test_pictures_are_upright(tiny_workdir, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    low = picture_of(2, 23, 17)
    Image.fromarray(low).save(tmp_path / "low.png", exif=exif)
    assert run(tiny_workdir, tmp_path / "low.png", tmp_path / "high.png") == 0
    np.testing.assert_array_equal(images.read(tmp_path / "high.png"), bicubic(np.rot90(low, -1).copy()))


def test_a_folder_is_mirrored_past_bad_pictures_and_made_complete_later(tiny_workdir, tmp_path, capsys):
    source, output = tmp_path / "low", tmp_path / "low" / "high"
    names = "a.png", "b.TIFF", "deeper/a.webp"
    for seed, name in enumerate(names):
        images.write(source / name, picture_of(seed, 16, 16))
    (source / "bad.png").write_text("no picture")
    for name in ("film.heic", "._a.png", "Thumbs.db"):
        (source / name).touch()
    assert run(tiny_workdir, source, output) == 1
    results = [output / name for name in names]
    assert picture_files.list_pictures(output) == results
    for name, result in zip(names, results, strict=True):
        np.testing.assert_array_equal(images.read(result), bicubic(images.read(source / name)))
    out, errors = capsys.readouterr()
    assert str(source / "bad.png") in errors and "1 of 4 pictures failed; 3 enlarged" in errors
    # What a Mac or Windows leaves there is nobody's picture.
    assert f"1 files are no pictures by their names, and are passed over: {source / 'film.heic'}" in out

    (source / "bad.png").unlink()
    results[1].unlink()
    kept = results[0].stat().st_mtime_ns
    assert run(tiny_workdir, source, output) == 0
    assert "1 enlarged" in (said := capsys.readouterr().out) and "2 already there" in said
    assert results[1].exists() and results[0].stat().st_mtime_ns == kept

    assert run(tiny_workdir, source, output, "--overwrite") == 0
    assert "already there" not in capsys.readouterr().out
    assert results[0].stat().st_mtime_ns > kept


def test_several_pictures_and_folders_go_into_one_folder(tmp_path):
    for name in ("a.png", "more/b.png", "more/c/d.png"):
        images.write(tmp_path / name, picture_of(0, 4, 4))
    inputs = [tmp_path / "a.png", tmp_path / "more"]
    found, _ = jobs.list_jobs(inputs, tmp_path / "out", ".webp")
    assert [job.name for job in found] == ["a.png", "b.png", "c/d.png"]
    assert [job.results[0][1] for job in found] == [
        tmp_path / "out" / name for name in ("a.webp", "b.webp", "c/d.webp")
    ]
    with pytest.raises(UserError, match="would both become"):
        jobs.list_jobs([*inputs, tmp_path / "more" / "b.png"], tmp_path / "out")


@pytest.mark.usefixtures("nothing_loaded")
def test_a_finished_folder_needs_no_model(tiny_workdir, tmp_path, capsys):
    for folder in "low", "high":
        images.write(tmp_path / folder / "a.png", picture_of(0, 4, 4))
    assert run(tiny_workdir, tmp_path / "low", tmp_path / "high") == 0
    assert "1 already there" in capsys.readouterr().out


@pytest.mark.usefixtures("nothing_loaded")
def test_nothing_is_loaded_for_a_picture_that_cannot_be_read(tiny_workdir, tmp_path, capsys):
    images.write(tmp_path / "whole.png", picture_of(0, 32, 32))
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    assert run(tiny_workdir, tmp_path / "torn.png", tmp_path / "high.png") == 1
    assert "torn.png: cannot be read" in capsys.readouterr().err and not (tmp_path / "high.png").exists()


@pytest.mark.usefixtures("noisy_model")
def test_noise_depends_on_seed_and_name_alone(tiny_workdir, tmp_path):
    low = picture_of(3, 16, 16)
    for name in "few/b.png", "many/a.png", "many/b.png", "many/c/b.png":
        images.write(tmp_path / name, low)
    for number, (source, seed) in enumerate([("few", 0), ("many", 0), ("few/b.png", 0), ("few/b.png", 1)]):
        assert run(tiny_workdir, tmp_path / source, f"{tmp_path}/out{number}/", "--seed", seed) == 0
    names = "out0/b.png", "out1/b.png", "out2/b.png", "out1/a.png", "out1/c/b.png", "out3/b.png"
    first, *rest = (images.read(tmp_path / name) for name in names)
    assert [np.array_equal(first, other) for other in rest] == [True, True, False, False, False]


def test_tiles_change_nothing_where_the_network_says_nothing(tiny_workdir, tmp_path):
    for name, size in {"a.png": (41, 25), "b.png": (16, 60)}.items():
        images.write(tmp_path / "low" / name, low := picture_of(0, *size))
        assert run(tiny_workdir, tmp_path / "low" / name, tmp_path / "high" / name, "--tile", 32) == 0
        np.testing.assert_array_equal(images.read(tmp_path / "high" / name), bicubic(low))


@pytest.mark.usefixtures("noisy_model")
def test_no_seam_shows(tiny_workdir, tmp_path):
    images.write(tmp_path / "low.png", picture_of(0, 16, 128) // 4 + 96)
    names = "whole.png", "tiles.png"
    for name, options in zip(names, ((), ("--tile", 64)), strict=True):
        assert run(tiny_workdir, tmp_path / "low.png", tmp_path / name, *options) == 0
    whole, tiled = (images.read(tmp_path / name).astype(float) for name in names)
    assert np.any(whole != tiled)
    # Tiles are 64 wide and begin every 48. Differences between columns there, and elsewhere, over those of the picture
    # done whole.
    borders = np.array([48, 64, 96, 112, 144, 160, 192, 208]) - 1
    jumps = [np.abs(np.diff(picture, axis=1)).mean((0, 2)) for picture in (whole, tiled)]
    at_borders, between = (
        jumps[1][where].mean() / jumps[0][where].mean() for where in (borders, np.delete(np.arange(255), borders))
    )
    assert 0.95 < at_borders / between < 1.05


def test_too_little_memory_says_how_much_is_needed(tiny_workdir, tmp_path, capsys, monkeypatch):
    model = trained.load(tiny_workdir)
    least = restoring.Planner(model, drawing.make_rows(model.experiment, "ddpm", 2), 0, 32, None, 0)(Shape((256, 192)))
    images.write(tmp_path / "low.png", picture_of(0, 128, 96))
    monkeypatch.setattr(restoring, "program_bytes", lambda: 2**26)
    assert run(tiny_workdir, tmp_path / "low.png", tmp_path / "high.png", "--memory", 1e-4) == 1
    error = capsys.readouterr().err
    needed = float(re.search(r"low.png: .* take (.*) GiB even in the smallest tiles", error)[1])
    # The program itself is counted too.
    assert needed == pytest.approx((least.used + 2**26) / 2**30, rel=0.05)


@pytest.mark.usefixtures("noisy_model")
def test_projection_gives_pictures_that_shrink_to_the_low_resolution_one(tiny_workdir, tmp_path):
    low = np.asarray(Image.fromarray(picture_of(4, 5, 6)).resize((30, 26), Image.Resampling.BICUBIC))
    low = np.uint8(low // 2 + 64)  # far from what is clipped
    images.write(tmp_path / "low.png", low)
    for number, options in enumerate([(), ("--config.sampling.project=True", "--tile", 32)]):
        assert run(tiny_workdir, tmp_path / "low.png", tmp_path / f"{number}.png", *options) == 0
    without, projected = (
        np.abs(np.asarray(resize.resize(images.read(tmp_path / f"{number}.png"), 26, 30)).astype(int) - low).max()
        for number in range(2)
    )
    assert projected <= 1 < without


@pytest.mark.usefixtures("noisy_model")
def test_several_samples(tiny_workdir, tmp_path, capsys):
    images.write(tmp_path / "low" / "a.png", picture_of(3, 16, 16))
    where = tiny_workdir, tmp_path / "low", tmp_path / "high"
    assert run(*where, "--samples", 3, "--seed", 1) == 0
    names = [f"a-seed{seed}.png" for seed in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "high").iterdir()) == names
    first, second, third = (images.read(tmp_path / "high" / name) for name in names)
    assert np.any(first != second) and np.any(second != third)
    # Only what is missing is made, and as it would be alone.
    (tmp_path / "high" / names[1]).unlink()
    assert run(*where, "--samples", 2, "--seed", 2) == 0
    assert "1 enlarged" in (said := capsys.readouterr().out) and "1 already there" in said
    np.testing.assert_array_equal(images.read(tmp_path / "high" / names[1]), second)
    said = {}
    for more in (), ("--samples", 2):
        assert run(tiny_workdir, tmp_path / "low/a.png", tmp_path / "alone.png", "--seed", 3, *more) == 0
        said[more] = capsys.readouterr().out.replace("\n", "")
    assert "into" in said[()] and "alone.png" in said[()] and "alone.png" not in said["--samples", 2]
    assert "alone-seed3.png and 1 more" in said["--samples", 2]
    np.testing.assert_array_equal(images.read(tmp_path / "alone.png"), third)


def test_a_format_can_be_asked_for(tiny_workdir, tmp_path):
    for name in "a.webp", "b/c.bmp":
        images.write(tmp_path / "low" / name, picture_of(0, 16, 16))
    assert run(tiny_workdir, tmp_path / "low", tmp_path / "high", "--format", "png") == 0
    assert picture_files.list_pictures(tmp_path / "high") == [tmp_path / "high" / name for name in ("a.png", "b/c.png")]


def test_what_stands_beside_the_pixels_is_kept(tiny_workdir, tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    low = picture_of(0, 16, 16)
    Image.fromarray(low).save(tmp_path / "low.png", exif=exif, dpi=(300, 300))
    assert run(tiny_workdir, tmp_path / "low.png", tmp_path / "high.jpg") == 0
    with Image.open(tmp_path / "high.jpg") as high:
        assert high.getexif()[0x010F] == "Maker" and high.info["dpi"] == (300, 300)


def test_every_failure_is_named_with_its_reason(tiny_workdir, tmp_path, capsys):
    source = tmp_path / "low"
    images.write(source / "good.png", picture_of(0, 16, 16))
    (source / "empty.png").touch()
    (source / "torn.png").write_bytes((source / "good.png").read_bytes()[:300])
    (source / "loop.png").symlink_to(source / "loop.png")
    (source / "gone.png").symlink_to(source / "nothing")
    (source / "line\nbreak\x1b.png").write_text("words")
    Image.new("RGB", (8200, 1)).save(source / "wide.webp", lossless=True)
    (source / "circle").symlink_to(source)
    assert run(tiny_workdir, source, tmp_path / "high") == 1
    assert [path.name for path in (tmp_path / "high").iterdir()] == ["good.png"]
    summary, *lines = capsys.readouterr().err.splitlines()
    assert "6 of 7 pictures failed; 1 enlarged" in summary and len(lines) == 6
    reasons = {
        **{"empty.png": "no known picture format", "torn.png": "truncated", "loop.png": "Too many levels"},
        **{"gone.png": "No such file", "line\\nbreak\\x1b.png": "no known", "wide.webp": "at most 16383 a side"},
    }
    for name, reason in reasons.items():
        assert any(name in line and reason in line for line in lines), (name, lines)


def test_a_picture_that_fails_does_not_stop_the_others(tiny_workdir, tmp_path, monkeypatch, capsys):
    for name in "a.png", "b.png":
        images.write(tmp_path / "low" / name, picture_of(0, 16, 16))
    draw_group = restoring.draw_group

    def fail_once(model, rows, group):
        if group.items[0].job.name == "a.png":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return draw_group(model, rows, group)

    monkeypatch.setattr(restoring, "draw_group", fail_once)
    assert run(tiny_workdir, tmp_path / "low", tmp_path / "high") == 1
    assert "a.png: cannot be drawn (RESOURCE_EXHAUSTED" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "high").iterdir()] == ["b.png"]


def test_a_run_that_was_killed_is_made_complete(tiny_workdir, tmp_path, monkeypatch):
    for name in "a.png", "b.png":
        images.write(tmp_path / "low" / name, picture_of(0, 16, 16))

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # nothing tidies up after a kill
        with pytest.raises(Killed):
            run(tiny_workdir, tmp_path / "low", tmp_path / "high")
    left = list((tmp_path / "high").iterdir())
    assert len(left) == 1 and left[0].suffix == ".tmp"
    assert run(tiny_workdir, tmp_path / "low", tmp_path / "high") == 0
    assert sorted(path.name for path in (tmp_path / "high").iterdir()) == ["a.png", "b.png"]


def test_a_run_without_a_checkpoint_says_so_once(tiny_workdir, tmp_path, capsys):
    records.save(records.read(tiny_workdir / "config.json"), tmp_path / "config.json")
    for name in "ab":
        images.write(tmp_path / "low" / f"{name}.png", picture_of(0, 4, 4))
    assert run(tmp_path, tmp_path / "low", tmp_path / "high") == 2
    assert "no checkpoint" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_names_of_any_bytes(tiny_workdir, tmp_path):
    images.write(tmp_path / "low" / os.fsdecode(b"\xff.png"), picture_of(0, 16, 16))
    assert run(tiny_workdir, tmp_path / "low", tmp_path / "high") == 0
    assert os.listdir(os.fsencode(tmp_path / "high")) == [b"\xff.png"]


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize(
    ("source", "output", "reason"),
    [
        ("missing.png", "high.png", "no such picture"),
        ("empty", "high", "no pictures found"),
        ("one.png", "one.png", "would replace"),
        ("one.png", "there.png", "--overwrite"),
        ("one.png", "high.xyz", "suffix"),
        ("one.png", "high", "suffix"),
        ("one.png", "file/high.png", "written"),
        ("twins", "high --format png", "both become"),
        ("one.png", "high.png --format jpg", "format asked for"),
        ("twins", "twins", "another folder"),
        ("twins/a.png", "twins/", "would replace"),
        ("nested", ".", "would replace"),
        ("nested", "file", "written"),
    ],
)
def test_mistakes_in_paths(source, output, reason, tiny_workdir, tmp_path, monkeypatch, capsys):
    for name in "one.png", "there.png", "twins/a.png", "twins/a.jpg", "nested/nested/a.png", "nested/a.png":
        images.write(tmp_path / name, picture_of(0, 4, 4))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    monkeypatch.chdir(tmp_path)
    assert run(tiny_workdir, source, *output.split()) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize(
    ("workdir", "options", "reason"),
    [
        ("good", ("--sampler", "nosuch"), "ddim"),
        ("good", ("--steps", "2001"), "1 to 2000"),
        ("good", ("--steps", "0"), "1 to 2000"),
        ("good", ("--samples", "0"), "at least 1"),
        ("good", ("--seed", "-1"), "2^32 - 1"),
        ("good", ("--seed", "4294967295", "--samples", "2"), "2^32 - 1"),
        ("good", ("--memory", "0"), "greater than 0"),
        ("good", ("--memory", "nan"), "greater than 0"),
        ("good", ("--tile", "31"), "multiple of 2"),
        ("good", ("--tile", "16"), "at least 32"),
        ("good", ("--eta", "1"), "not an option"),
        ("good", ("--config.sampling.eta=2",), "sampling.eta"),
        ("good", ("--config.sampling.nosuch=2",), "unknown"),
        ("good", ("--config.task.scale=4",), "only --config.sampling"),
        ("missing", (), "config.json"),
        ("low.png", (), "config.json"),
        ("unconditional", (), "unconditional"),
    ],
)
def test_mistakes_in_options(workdir, options, reason, tiny_workdir, tmp_path, capsys):
    images.write(tmp_path / "low.png", picture_of(0, 4, 4))
    (tmp_path / "unconditional").mkdir()
    changes = "task.name=unconditional", "task.residual=False"
    records.save(tiny.tiny_config(*changes), tmp_path / "unconditional" / "config.json")
    chosen = tiny_workdir if workdir == "good" else tmp_path / workdir
    assert run(chosen, tmp_path / "low.png", tmp_path / "high.png", *options) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
