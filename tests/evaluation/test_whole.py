import csv
import json

import numpy as np
import pytest
from stand_ins import QUIET, fake, its_input, nothing

from dream_jax import metrics
from dream_jax.__main__ import main
from dream_jax.data.indexed import Source
from dream_jax.errors import UserError
from dream_jax.evaluation import measuring, whole
from dream_jax.files import images
from dream_jax.inference import drawing, trained

SIDES = (32, 32), (45, 62), (36, 33)


def pictures(*sides):
    rng = np.random.default_rng(0)
    smooth = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in sides]
    return [
        np.array(images.Image.fromarray(small).resize(side[::-1], 2)) for small, side in zip(smooth, sides, strict=True)
    ]


def source_of(some):
    return Source(some.__getitem__, len(some), name=lambda i: f"p{i}.png")


def test_pictures_of_one_size_have_the_values_of_an_evaluation_of_crops(tiny_workdir):
    some = pictures((32, 32), (32, 32))
    models = {"run": trained.load(tiny_workdir, ["--config.evaluation.steps=1,2"])}
    record, columns = whole.evaluate(models, source_of(some), QUIET)
    expected, _ = measuring.evaluate(models, np.stack(some), QUIET)
    names = [name for name in metrics.METRICS if name in record["rows"][0]]
    assert names == ["psnr", "ssim", "consistency", "mean_colour"]
    for row, other in zip(record["rows"], expected["rows"], strict=True):
        assert row["name"] == other["name"]
        np.testing.assert_allclose([row[name] for name in names], [other[name] for name in names], rtol=1e-5)
    assert all(pictures.shape[0] == 2 for pictures in columns.values())


def test_each_picture_is_read_once_and_seeds_have_a_spread():
    some, read = pictures((32, 32), (32, 32), (32, 32)), []
    models = {"run": fake(its_input, "evaluation.seeds=0,1", "evaluation.steps=1,2", "evaluation.pictures=3")}
    source = Source(lambda i: read.append(i) or some[i], 3)
    record, _ = whole.evaluate(models, source, QUIET)
    assert read == [0, 1, 2] and len(record["by_picture"]) == 9
    expected, _ = measuring.evaluate(models, np.stack(some), QUIET)
    assert "psnr_spread" not in record["rows"][0]
    for row, other in zip(record["rows"][1:], expected["rows"][1:], strict=True):
        for name in ("psnr", "ssim"):
            assert row[name] == pytest.approx(other[name], rel=1e-5)
            assert row[f"{name}_spread"] == pytest.approx(other[f"{name}_spread"], rel=1e-3) and row["psnr_spread"] > 0


@pytest.fixture
def folder(tmp_path):
    for number, picture in enumerate(pictures(*SIDES)):
        images.write(tmp_path / "in" / f"p{number}.png", picture, overwrite=True)
    return tmp_path / "in"


def test_any_folder_is_measured_by_one_command(tiny_workdir, folder, tmp_path, capsys):
    output = tmp_path / "out" / "t.json"
    options = "--config.evaluation.channel=y", "--config.evaluation.border=2", "--config.evaluation.tile=32"
    command = ["evaluate", "--workdir", str(tiny_workdir), "--pictures", str(folder), "--output", str(output)]
    more = "--config.evaluation.overlap=6", "--config.evaluation.pictures=9"
    assert main([*command, *options, *more]) == 0
    record = json.loads(output.read_text())
    assert record["whole"] and record["pictures"] == 3 and "worst PSNR" in record["notes"][0]
    with output.with_name("t-pictures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == 2 * [f"p{i}.png" for i in range(3)]
    built = trained.open_experiment(tiny_workdir)
    for row, picture in zip(rows, pictures(*SIDES), strict=False):
        cut = picture[None, : picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
        _, _, baseline = drawing.observe(built, cut)
        assert float(row["psnr"]) == pytest.approx(float(metrics.psnr(baseline, cut, "y", 2)[0]), rel=1e-6)
    mean = np.mean([float(row["psnr"]) for row in rows[3:]])
    assert record["rows"][1]["psnr"] == pytest.approx(mean) and images.read(output.with_suffix(".png")).std() > 0


def test_what_is_measured_is_not_measured_again(tiny_workdir, tmp_path, monkeypatch):
    """Where it was stopped after one picture; but for those that are shown, whose results are drawn again."""
    journal, model = (
        tmp_path / "j.jsonl",
        trained.load(tiny_workdir, ["--config.samples.count=1", "--config.evaluation.pictures=3"]),
    )
    source, measured = source_of(pictures((32, 32), (32, 34), (32, 34))), []
    make = whole._make_values

    def counting(*arguments):
        values = make(*arguments)

        def count(inputs, result):
            measured.append(inputs.pictures.shape)
            if len(measured) == 6:
                raise KeyboardInterrupt
            return values(inputs, result)

        return count

    monkeypatch.setattr(whole, "_make_values", counting)
    with pytest.raises(KeyboardInterrupt):
        whole.evaluate({"run": model}, source, QUIET, journal)
    measured.append(None)
    again, _ = whole.evaluate({"run": model}, source, QUIET, journal)
    # Three baselines and three results; then three baselines and the one that was stopped.
    assert len(measured) == 6 + 1 + 3 + 1
    monkeypatch.setattr(whole, "_make_values", make)
    assert whole.evaluate({"run": model}, source, QUIET)[0]["by_picture"] == again["by_picture"]


def test_what_is_to_be_known_of_data_is_said_of_held_out_pictures():
    models, source = {"a": fake(nothing), "b": fake(nothing, "data.eval_percent=50")}, source_of(pictures((32, 32)))
    for given in (False, True):
        notes = whole.evaluate(models, source, QUIET, given=given)[0]["notes"]
        assert any("held-out pictures are a's" in note for note in notes) != given


def test_pictures_of_a_folder_that_are_not_measured_are_counted():
    models, source = {"a": fake(nothing, "evaluation.pictures=2")}, source_of(3 * pictures((32, 32)))
    notes = [whole.evaluate(models, source, QUIET, given=given)[0]["notes"] for given in (True, False)]
    asked = [[note for note in some if "evaluation.pictures=3" in note] for some in notes]
    assert asked == [["the first 2 of 3; --config.evaluation.pictures=3 measures all"], []]


def test_results_that_are_the_original_itself_are_said():
    # Of one colour, enlarging gives a picture back.
    source = source_of([*pictures((32, 32)), np.full((32, 32, 3), 90, np.uint8)])
    notes = whole.evaluate({"a": fake(nothing)}, source, QUIET)[0]["notes"]
    assert "infinite PSNR, dB: 1 results are the original itself, p1.png the first" in notes


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("tile=30", "evaluation.tile 30"),
        ("overlap=3", "evaluation.overlap 3: a multiple of 2 below 32"),
        ("overlap=32", "below 32"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(tiny_workdir, option, reason):
    model = trained.load(tiny_workdir, [f"--config.evaluation.{option}"])
    with pytest.raises(UserError, match=reason):
        whole.evaluate({"run": model}, source_of(pictures((32, 32))), QUIET)


def test_a_network_may_be_measured_at_another_scale(tiny_workdir):
    """At which it was not trained, as in the paper's Table 4."""
    models = {"run": trained.load(tiny_workdir, ["--config.task.scale=4"])}
    record, _ = whole.evaluate(models, source_of(pictures((48, 40))), QUIET)
    assert record["scale"] == 4 and np.isfinite(record["rows"][1]["psnr"])
    with pytest.raises(UserError, match=r"task\.gain"):
        trained.load(tiny_workdir, ["--config.task.gain=2.0"])


def test_pictures_are_degraded_each_in_its_own_way():
    """Two equal pictures have other noise, as crops of a batch have, and the classical method sees the same of them."""
    (some,) = pictures((32, 32))
    models = {"run": fake(nothing, "task.name=denoising", "task.deviation=25,")}
    record, columns = whole.evaluate(models, source_of([some, some]), QUIET)
    assert [row["name"] for row in record["rows"]] == ["noisy", "non-local means", "ddim 1"]
    of_noisy = [row["psnr"] for row in record["by_picture"] if row["name"] == "noisy"]
    assert of_noisy[0] != of_noisy[1] and len(columns) == 4
    crops, _ = measuring.evaluate(models, np.stack([some, some]), QUIET)
    for row, other in zip(record["rows"], crops["rows"], strict=True):
        assert row["psnr"] == pytest.approx(other["psnr"], rel=1e-5)


def test_scales_need_not_be_whole():
    """Pictures are cut to sides that a result has, by less than the scale."""
    models = {"run": fake(nothing, "task.scale=2.7", "evaluation.whole=True")}
    record, _ = whole.evaluate(models, source_of(pictures((64, 63), (62, 65))), QUIET)
    baseline, result = record["rows"]
    assert baseline["psnr"] == pytest.approx(result["psnr"], rel=1e-5) and record["scale"] == 2.7
