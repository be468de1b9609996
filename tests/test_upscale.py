import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from dream_jax import config, images, trained, upscale
from dream_jax.__main__ import main

SCALE = 2


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture(autouse=True)
def quick(known, monkeypatch):
    """All tests draw with the same network, so each shape needs to be compiled once only."""
    make_ways = upscale.make_ways

    def make_once(model, rows, limit, tile, tick):
        key = (model.experiment.config.to_json(), len(rows.alpha), limit, tile)
        known[key] = known.get(key) or make_ways(model, rows, limit, tile)
        return known[key]

    monkeypatch.setattr(upscale, "make_ways", make_once)
    with tiny.quick_compiles():
        yield


@pytest.fixture
def nothing_loaded(monkeypatch):
    def load(*_):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(trained, "load", load)


@pytest.fixture
def noisy_model(monkeypatch, tiny_workdir):
    """Makes the results depend on the noise, unlike those of a network whose output is zero."""
    model = trained.load(tiny_workdir)
    last = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size).reshape(a.shape)), model.params["conv_out"])
    noisy = model._replace(params={**model.params, "conv_out": last})
    monkeypatch.setattr(trained, "load", lambda *_: noisy)


def picture_of(seed, height, width, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def bicubic(picture):
    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(picture).resize((SCALE * width, SCALE * height), Image.Resampling.BICUBIC))


def run(workdir, source, output, *options):
    named = ("--workdir", workdir, "--input", source, "--output", output, "--sampler", "ddpm", "--steps", "2")
    return main(["upscale", *map(str, (*named, "--memory", 1, *options))])


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (1, 5)])
def test_a_network_of_zero_residual_gives_the_bicubic_picture(size, tiny_workdir, tmp_path):
    low = picture_of(0, *size)
    images.write(tmp_path / "low.png", low)
    assert run(tiny_workdir, tmp_path / "low.png", tmp_path / "high.png") == 0
    np.testing.assert_array_equal(images.read(tmp_path / "high.png"), bicubic(low))


def test_transparency_is_enlarged_and_kept_where_the_format_can(tiny_workdir, tmp_path, capsys):
    low = picture_of(1, 16, 16, 4)
    images.write(tmp_path / "low.webp", low)
    for name in "high.tif", "high.jpg":
        assert run(tiny_workdir, tmp_path / "low.webp", tmp_path / name) == 0
    colours, alpha = images.read_with_alpha(tmp_path / "high.tif")
    np.testing.assert_array_equal(colours, bicubic(low[..., :3].copy()))
    np.testing.assert_array_equal(alpha, bicubic(low[..., 3].copy()))
    assert images.read_with_alpha(tmp_path / "high.jpg")[1] is None
    assert "transparency" in capsys.readouterr().err


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
    assert run(tiny_workdir, source, output) == 1
    results = [output / name for name in names]
    assert images.list_pictures(output) == results
    for name, result in zip(names, results, strict=True):
        np.testing.assert_array_equal(images.read(result), bicubic(images.read(source / name)))
    errors = capsys.readouterr().err
    assert str(source / "bad.png") in errors and "1 of 4 pictures failed; 3 enlarged" in errors

    (source / "bad.png").unlink()
    results[1].unlink()
    kept = results[0].stat().st_mtime_ns
    assert run(tiny_workdir, source, output) == 0
    assert "1 enlarged" in (said := capsys.readouterr().out) and "2 already there" in said
    assert results[1].exists() and results[0].stat().st_mtime_ns == kept

    assert run(tiny_workdir, source, output, "--overwrite") == 0
    assert "already there" not in capsys.readouterr().out
    assert results[0].stat().st_mtime_ns > kept


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


@pytest.mark.parametrize("divisor", [1, 4, 12])
def test_network_sides(divisor):
    sides = np.arange(1, 2000)
    filled = np.array([upscale.network_side(int(side), divisor) for side in sides])
    assert np.all(filled % divisor == 0) and np.all(filled >= sides)
    assert np.all((filled - sides < divisor) | (filled <= sides * 9 / 8))
    for start in 64, 500, 1000:
        assert len(set(filled[(sides > start) & (sides <= 2 * start)])) <= 10


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize(
    ("source", "output", "reason"),
    [
        ("missing.png", "high.png", "no such picture"),
        ("empty", "high", "no pictures found"),
        ("one.png", "one.png", "would replace"),
        ("one.png", "there.png", "--overwrite"),
        ("one.png", "high.gif", "suffix"),
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
        ("missing", (), "config.json"),
        ("low.png", (), "config.json"),
        ("unconditional", (), "unconditional"),
    ],
)
def test_mistakes_in_options(workdir, options, reason, tiny_workdir, tmp_path, capsys):
    images.write(tmp_path / "low.png", picture_of(0, 4, 4))
    (tmp_path / "unconditional").mkdir()
    changes = "task.name=unconditional", "task.residual=False"
    config.save(tiny.tiny_config(*changes), tmp_path / "unconditional" / "config.json")
    chosen = tiny_workdir if workdir == "good" else tmp_path / workdir
    assert run(chosen, tmp_path / "low.png", tmp_path / "high.png", *options) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
