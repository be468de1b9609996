import csv
import json
import re

import numpy as np
import pytest
from stand_ins import QUIET

from dream_jax import metrics
from dream_jax.__main__ import main
from dream_jax.config import keys
from dream_jax.errors import UserError
from dream_jax.evaluation import folders, measuring
from dream_jax.files import images
from dream_jax.files.picture import Picture
from dream_jax.metrics import dense


def write(folder, names, *shape, seed=0):
    """Pictures of these names; the same seed gives the same ones."""
    rng = np.random.default_rng(seed)
    made = {name: rng.integers(0, 256, (*shape, 3), np.uint8) for name in names}
    for name, picture in made.items():
        images.write(folder / name, picture, overwrite=True)
    return list(made.values())


def run(*arguments):
    return main(["measure", *map(str, arguments)])


def test_pairs_are_found_by_name(tmp_path, capsys):
    a = write(tmp_path / "a", ("x.png", "s/y.png", "alone.png"), 40, 36, seed=1)
    b = write(tmp_path / "b", ("x.bmp", "s/y.tif"), 40, 36, seed=2)
    output = tmp_path / "t.json"
    assert run(tmp_path / "a", tmp_path / "b", "--output", output, "--channel", "y", "--border", 2) == 0
    record = json.loads(output.read_text())
    assert record["pairs"] == 2 and "alone.png" in record["notes"][-1]
    expected = [float(metrics.psnr(p[None], q[None], "y", 2)[0]) for p, q in zip(a, b, strict=False)]
    with output.with_suffix(".csv").open() as file:
        rows = {row["picture"]: float(row["psnr"]) for row in csv.DictReader(file)}
    assert [rows["x"], rows["s/y"]] == pytest.approx(expected)
    assert record["values"]["psnr"] == pytest.approx(np.mean(expected)) and record["values"]["swd"] > 0
    assert "PSNR" in capsys.readouterr().out


def test_equal_folders_are_equal(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, ("x.png", "y.png"), 32, 32)
    assert run(tmp_path / "a", tmp_path / "b", "--output", tmp_path / "t.json") == 0
    values = json.loads((tmp_path / "t.json").read_text())["values"]
    assert (
        values["ssim"] == pytest.approx(1)
        and values["mean_colour"] == 0
        and values["swd"] == pytest.approx(0, abs=1e-6)
    )


def test_folders_without_common_names_are_two_sets(tmp_path):
    write(tmp_path / "a", ("1.png", "2.png"), 32, 32, seed=1)
    write(tmp_path / "b", ("3.png", "4.png", "5.png"), 32, 32, seed=2)
    assert run(tmp_path / "a", tmp_path / "b", "--output", tmp_path / "t.json") == 0
    record = json.loads((tmp_path / "t.json").read_text())
    assert record["pairs"] == 0 and list(record["values"]) == ["swd"] and record["pictures"] == [2, 3]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("a", "missing"), "no such folder"),
        (("a", "other"), "must have one size: .*x.png 32x32 and .*x.png 33x32"),
        (("a", "twice"), "have one name"),
        (("a", "a", "--config.steps=3"), "only --config.evaluation.KEY"),
        (("a", "a", "--config.evaluation.protocol=x"), "evaluation.protocol"),
    ],
)
def test_mistakes(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", ("x.png",), 32, 32)
    write(tmp_path / "other", ("x.png",), 32, 33)
    write(tmp_path / "twice", ("x.png", "x.bmp"), 32, 32)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(reason, error)


def test_depth_and_channels_are_the_files_own(tmp_path):
    """16 bits count in full; grey beside three equal channels is the same picture."""
    rng = np.random.default_rng(0)
    original = rng.integers(1000, 60000, (16, 20, 1), dtype=np.uint16)
    images.write(tmp_path / "originals" / "a.png", original)
    images.write(tmp_path / "results" / "a.tif", np.repeat(original + 1, 3, -1))
    record = folders.measure(tmp_path / "results", tmp_path / "originals", keys.defaults().evaluation, QUIET)
    assert record["values"]["psnr"] == pytest.approx(20 * np.log10(65535), abs=1e-3)
    images.write_pages(tmp_path / "results" / "a.tif", [Picture(np.repeat(original, 5, -1))], overwrite=True)
    with pytest.raises(UserError, match=r"a.png: it has 1 channels, and others 5"):
        folders.measure(tmp_path / "results", tmp_path / "originals", keys.defaults().evaluation, QUIET)


def test_the_luma_of_grey_is_that_of_three_equal_channels(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (2, 16, 20, 1), np.uint8)
    for name, channels in (("grey", 1), ("colour", 3)):
        for folder, picture in zip(("results", "originals"), grey, strict=True):
            images.write(tmp_path / name / folder / "a.png", np.repeat(picture, channels, -1))
    settings = keys.defaults().evaluation
    settings.channel = "y"
    found = [
        folders.measure(tmp_path / n / "results", tmp_path / n / "originals", settings, QUIET)
        for n in ("grey", "colour")
    ]
    assert found[0]["by_picture"] == found[1]["by_picture"] and found[0]["values"]["psnr"] > 0


def test_networks_and_the_luma_are_of_colours(tmp_path, monkeypatch):
    bands = Picture(np.zeros((16, 20, 5), np.uint8))
    for folder in ("results", "originals"):
        images.write_pages(tmp_path / folder / "a.tif", [bands])
    monkeypatch.setattr(measuring.weights, "load", lambda name, folder: ({}, {}))
    for change, words in (({"channel": "y"}, "--channel y"), ({"learned": ("lpips_alex",)}, r"evaluation\.learned")):
        settings = keys.defaults().evaluation
        settings.update(change)
        with pytest.raises(UserError, match=rf"a\.tif: it has 5 channels; {words} measure"):
            folders.measure(tmp_path / "results", tmp_path / "originals", settings, QUIET)


def test_maps_are_measured_as_what_they_are(tmp_path, capsys):
    rng = np.random.default_rng(0)
    maps = {name: rng.integers(0, 4, (2, 20, 30, 1)).astype(np.uint8) for name in ("a", "b")}
    maps["b"][:, :3] = 255
    for name, pictures in maps.items():
        for number, picture in enumerate(pictures):
            images.write(tmp_path / name / f"{number}.png", picture)
    pair, output = (tmp_path / "a", tmp_path / "b"), tmp_path / "t.json"
    assert run(*pair, "--as", "classes", "--output", output) == 0
    values = json.loads(output.read_text())["values"]
    assert set(values) == {"miou", "picture_miou", "boundary_f", "pixel_accuracy"}
    assert values["miou"] == pytest.approx(dense.mean_iou(maps["a"], maps["b"]))
    assert values["picture_miou"] == pytest.approx(dense.picture_iou(maps["a"], maps["b"]).mean())

    assert run(*pair, "--as", "depth", "--output", output) == 0
    values = json.loads(output.read_text())["values"]
    assert values == {name: pytest.approx(getattr(dense, name)(maps["a"], maps["b"]).mean()) for name in values}
    assert list(values) == ["abs_rel", "rmse"]
    capsys.readouterr()
    assert run(tmp_path / "a", tmp_path, "--as", "classes") == 2
    assert "maps are compared in pairs" in capsys.readouterr().err
    images.write(tmp_path / "b" / "1.png", 0 * maps["b"][1], overwrite=True)
    assert run(*pair, "--as", "depth", "--output", tmp_path / "u.json") == 2 and not (tmp_path / "u.json").exists()
    assert "b/1.png: no pixel that is measured has a depth above 0" in capsys.readouterr().err.replace("\n", " ")
    assert run(*pair, "--as", "depth", "--config.evaluation.learned=inception") == 2
    assert "these networks take pictures" in capsys.readouterr().err
