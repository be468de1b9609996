"""From files to results: maps of classes from conditions, and pictures of a class."""

import json

import numpy as np
import pytest
import tifffile
import tiny
from PIL import Image
from stand_ins import QUIET, fake, nothing

from dream_jax import commands, experiment
from dream_jax.__main__ import main
from dream_jax.config import keys, records
from dream_jax.data import scenes, sources
from dream_jax.data.indexed import Pair, Source
from dream_jax.errors import UserError
from dream_jax.evaluation import measuring, whole
from dream_jax.files import images
from dream_jax.files.picture import Picture
from dream_jax.inference import observation

SIDE = 32


def write_maps(folder, bad=None):
    """Conditions, and maps of three classes and void as indices of a palette, as many programs write them."""
    for name in ("conditions", "maps"):
        (folder / name).mkdir(parents=True)
    for number in range(4):
        scene = scenes._made(number, 2, single=False)
        classes = scene.classes[:SIDE, :SIDE, 0].astype(np.uint8)
        classes[0, :5] = 255
        if number == bad:
            classes[3, 3] = 7
        indexed = Image.fromarray(classes, "P")
        indexed.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
        indexed.save(folder / "maps" / f"{number}.png")
        levels = (255 * np.clip(scene.picture[:SIDE, :SIDE], 0, 1)).astype(np.uint8)
        images.write(folder / "conditions" / f"{number}.jpg", levels)


def of_maps(folder):
    return tiny.tiny_config(
        *("task.name=paired", "task.target=classes", "task.num_classes=3", "task.residual=False", "data.channels=1"),
        *(f"data.folder={folder / 'maps'}", f"data.condition_folder={folder / 'conditions'}", "data.eval_percent=50"),
        *(f"data.cache_dir={folder / 'cache'}", "objective.name=standard"),
    )


def test_maps_of_classes_from_pictures(tmp_path, capsys):
    write_maps(tmp_path)
    workdir = tmp_path / "run"
    commands.train_and_evaluate(of_maps(tmp_path), workdir, QUIET)
    record = json.loads((workdir / "evaluation.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["ddim 1"] and record["notes"] == []
    assert set(record["about_protocol"]) == {"miou", "picture_miou", "boundary_f", "pixel_accuracy"}
    assert all(0 <= record["rows"][0][name] <= 1 for name in record["about_protocol"])
    # Pictures of colours, not of numbers.
    grid = images.read(workdir / "evaluation.png")
    assert np.ptp(grid.astype(int), axis=-1).max() > 100

    made = ["restore", "--workdir", str(workdir), "--input", str(tmp_path / "conditions"), "--steps", "1", "--output"]
    assert main([*made, str(tmp_path / "made"), "--format", "png"]) == 0
    with Image.open(tmp_path / "made" / "0.png") as result:
        levels = np.asarray(result)
    assert levels.shape == (SIDE, SIDE) and levels.dtype == np.uint8 and set(np.unique(levels)) <= {0, 1, 2}
    capsys.readouterr()
    assert main([*made, str(tmp_path / "lossy")]) == 2
    assert "a map's numbers are kept by .png .tif" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, dtype, most",
    [
        ((), "uint8", 255),
        (("data.bits=16",), "uint16", 65535),
        (("data.bits=16", "data.range=0,8000"), "uint16", 8000),
        (("data.range=1.5,80",), "float32", 80),
    ],
)
def test_depth_is_written_in_the_numbers_of_its_range(changes, dtype, most, tmp_path):
    built = experiment.build(
        tiny.tiny_config("task.name=paired", "task.target=depth", "task.residual=False", "data.channels=1", *changes)
    )
    white = 65535 if "data.bits=16" in changes else 255
    drawn = np.array([[0, white // 3, white]], f"uint{white.bit_length()}")[..., None]
    assert observation.result_levels(built, np.uint8) == drawn.dtype
    levels, numbers = observation.with_numbers(built, drawn)
    images.write_pages(tmp_path / "depth.tif", [Picture(levels, numbers=numbers)])
    read = tifffile.imread(tmp_path / "depth.tif").ravel()
    least = 1.5 if dtype == "float32" else 0
    assert read.dtype == dtype
    np.testing.assert_allclose(read, np.array([least, least + (most - least) / 3, most]), atol=0.5, rtol=1e-3)


def test_a_map_without_any_depth_is_refused_by_name():
    changes = "task.name=paired", "task.target=depth", "task.residual=False", "data.channels=1", "data.bundled=scenes"
    model, maps = fake(nothing, *changes), np.full((3, SIDE, SIDE, 1), 9, np.uint8)
    measuring.check_held_out(model.experiment, maps)
    maps[1:] = 0
    with pytest.raises(UserError, match=r"scene \d+1: no pixel that is measured has a depth above 0, as in 1 more"):
        measuring.check_held_out(model.experiment, maps)
    conditions = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    with pytest.raises(UserError, match=r"scene \d+1: no pixel"):
        measuring.evaluate({"run": model}, Pair(maps, conditions), QUIET)
    source = Source(maps.__getitem__, 3, name="{}.png".format, beside=conditions.__getitem__, kind="condition")
    with pytest.raises(UserError, match=r"1\.png: no pixel"):
        whole.evaluate({"run": model}, source, QUIET)


def test_depth_in_floats_needs_its_range(tmp_path):
    tifffile.imwrite(tmp_path / "near.tif", np.full((8, 8), 0.9, np.float32))
    changes = "task.name=paired", "task.target=depth", "task.residual=False", "data.channels=1"
    with pytest.raises(UserError, match=r"near\.tif: floats: say which mean black and white, data\.range=LOW,HIGH"):
        images.read(tmp_path / "near.tif", sources.reading_of(tiny.tiny_config(*changes)))
    read = sources.reading_of(tiny.tiny_config(*changes, "data.range=0,9"))
    assert images.read(tmp_path / "near.tif", read).max() in (25, 26)


@pytest.mark.parametrize("change", ["data.range=0,9", "data.percentile=99", "data.clip=True"])
def test_classes_have_no_range(change):
    changes = "task.name=paired", "task.target=classes", "task.num_classes=3", "task.residual=False", "data.channels=1"
    with pytest.raises(UserError, match=rf"{change.partition('=')[0]} = .*numbers of classes have no black"):
        tiny.tiny_config(*changes, change)
    # Conditions have one.
    tiny.tiny_config(*changes, "data.clip=True", "data.condition_range=0,9")


def test_a_class_that_there_is_not_is_named(tmp_path):
    write_maps(tmp_path, bad=1)
    with pytest.raises(UserError, match=r"1\.png: it has class 7; task\.num_classes = 3 has 0 to 2, and 255"):
        commands.train_and_evaluate(of_maps(tmp_path), tmp_path / "run", QUIET)


def test_pictures_of_the_classes_of_folders(tmp_path):
    for number in range(8):
        levels = np.full((SIDE, SIDE, 3), 20 * number, np.uint8)
        images.write(tmp_path / "animals" / ("cat", "dog")[number % 2] / f"{number}.png", levels)
    config = tiny.tiny_config(
        *("task.name=class_conditional", "task.residual=False", f"data.folder={tmp_path / 'animals'}"),
        *(f"data.cache_dir={tmp_path / 'cache'}", "objective.name=standard", "data.eval_percent=40", "image_size=16"),
        "data.classes=bird,fish",
        "steps=0",
    )
    # The names are to be found.
    config = keys.nest(keys.flatten(config) | {"data.classes": ()})
    commands.train_and_evaluate(config, tmp_path / "run", QUIET, evaluates=False)
    assert tuple(records.read(tmp_path / "run" / "config.json").data.classes) == ("cat", "dog")
    about = "--count", "2", "--steps", "1", "--class", "dog", "--config.sampling.guidance=2"
    assert main(["generate", "--workdir", str(tmp_path / "run"), "--output", str(tmp_path / "dogs"), *about]) == 0
    record = json.loads((tmp_path / "dogs" / "generation.json").read_text())
    assert record["classes"] == [1] and record["sampling"]["guidance"] == 2
