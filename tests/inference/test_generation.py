import json

import numpy as np
import pytest
import tifffile
from stand_ins import untrained_run

from dream_jax.__main__ import main
from dream_jax.files import images
from dream_jax.inference import generation


def run(workdir, output, *options):
    chosen = "--steps", "2", "--batch_size", "2", *options
    return main(["generate", "--workdir", str(workdir), "--output", str(output), *chosen])


def contents(output):
    return {file.name: file.read_bytes() for file in (output / "pictures").iterdir()}


def test_a_picture_depends_on_its_number_alone_and_what_is_there_is_kept(unconditional_workdir, tmp_path, capsys):
    few, many = tmp_path / "few", tmp_path / "many"
    assert run(unconditional_workdir, few, "--count", "3") == 0
    assert run(unconditional_workdir, many, "--count", "5") == 0
    assert sorted(contents(many)) == [f"{i:06d}.png" for i in range(5)]
    first = contents(few)
    assert len(set(first.values())) == 3
    for name in first:
        theirs = images.read(many / "pictures" / name).astype(int)
        assert np.abs(images.read(few / "pictures" / name) - theirs).max() <= 1, "another batch"

    (few / "pictures" / "000001.png").unlink()
    kept = (few / "pictures" / "000002.png").stat().st_mtime_ns
    capsys.readouterr()
    assert run(unconditional_workdir, few, "--count", "3") == 0
    assert "1 of 3 drawn" in capsys.readouterr().out
    assert contents(few) == first and (few / "pictures" / "000002.png").stat().st_mtime_ns == kept
    assert images.read(few / "grid.png").shape == (65, 65, 3)
    about = json.loads((few / "generation.json").read_text())
    assert about["seed"] == 0 and about["sampler"] == "ddim" and about["steps"] == 2 and len(about["sha256"]) == 64


def test_pictures_of_another_size(unconditional_workdir, tmp_path, capsys):
    """A picture of a size is the same whatever the batch, and no size is taken for another."""
    output = tmp_path / "wide"
    assert run(unconditional_workdir, output, "--count", "3", "--size", "16x48") == 0
    assert json.loads((output / "generation.json").read_text())["size"] == [16, 48]
    before = contents(output)
    assert len(set(before.values())) == 3 and images.read(output / "pictures" / "000001.png").shape == (16, 48, 3)
    (output / "pictures" / "000001.png").unlink()
    assert run(unconditional_workdir, output, "--count", "3", "--size", "16x48") == 0
    assert contents(output) == before
    for size, words in (("32x32", "size: [16, 48] -> 32"), ("15x48", "must divide by 2"), ("48", "HEIGHTxWIDTH")):
        capsys.readouterr()
        assert run(unconditional_workdir, output, "--count", "1", "--size", size) == 2
        assert words in capsys.readouterr().err


def test_pictures_of_many_bands_are_tiff_files(tmp_path, monkeypatch):
    """Four bands are no transparency."""
    drawn = np.random.default_rng(0).integers(0, 65536, (2, 16, 16, 4), np.uint16)
    monkeypatch.setattr(generation, "_draw", lambda *about: [(range(2), drawn)])
    changes = "task.name=unconditional", "task.residual=False", "data.channels=4", "data.bits=16", "image_size=16"
    workdir, _ = untrained_run(tmp_path / "run", 7, *changes)
    assert run(workdir, tmp_path / "made", "--count", "2", "--steps", "1") == 0
    assert sorted(contents(tmp_path / "made")) == ["000000.tif", "000001.tif"]
    path = tmp_path / "made" / "pictures" / "000001.tif"
    read = images.read_picture(path)
    assert read.alpha is None
    for made in tifffile.imread(path), read.colours:
        np.testing.assert_array_equal(made, drawn[1])
    assert images.read(tmp_path / "made" / "grid.png").shape == (16, 33, 3)
    generation._claim(tmp_path / "made", {"seed": 1, "count": 1}, overwrite=True)
    assert not contents(tmp_path / "made")


def test_pictures_of_other_settings_are_not_mixed(unconditional_workdir, tmp_path, capsys):
    output = tmp_path / "pictures"
    assert run(unconditional_workdir, output, "--count", "1") == 0
    before = contents(output)
    for other in (["--seed", "1"], ["--sampler", "ddpm"], ["--config.sampling.eta=1"], ["--steps", "3"]):
        capsys.readouterr()
        assert run(unconditional_workdir, output, "--count", "1", *other) == 2
        assert "->" in capsys.readouterr().err
        assert contents(output) == before
    assert run(unconditional_workdir, output, "--count", "1", "--seed", "1", "--overwrite") == 0
    assert contents(output) != before
    assert run(unconditional_workdir, output, "--count", "2", "--seed", "1") == 0
    assert run(unconditional_workdir, output, "--count", "1", "--seed", "2", "--overwrite") == 0
    assert list(contents(output)) == ["000000.png"], "a picture of another seed would pass for one of this"
    (output / "generation.json").unlink()
    assert run(unconditional_workdir, output, "--count", "1") == 2
    assert "unknown origin" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, words",
    [
        (["--count", "0"], "count"),
        (["--seed", "-1"], "--seed -1: it must lie between 0 and 4294967295"),
        (["--batch_size", "0"], "batch_size"),
        (["--sampler", "magic"], "choose one of"),
        (["--steps", "1000"], "100"),
        (["--config.sampling.clip=hard"], "sampling.clip"),
        (["--count"], "expected one argument"),
    ],
)
def test_impossible_options_are_refused(unconditional_workdir, tmp_path, capsys, options, words):
    try:
        status = run(unconditional_workdir, tmp_path / "out", *options)
    except SystemExit as error:
        status = error.code
    assert status == 2 and words in capsys.readouterr().err


def test_other_models_and_places_are_refused(tiny_workdir, unconditional_workdir, tmp_path, capsys):
    assert run(tiny_workdir, tmp_path / "out") == 2
    assert "use restore" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run(unconditional_workdir, tmp_path / "file") == 2
    assert "nothing can be written" in capsys.readouterr().err
