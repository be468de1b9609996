import hashlib
import json

import numpy as np
import pytest
import tiny
from rich.console import Console
from safetensors.numpy import save_file
from stand_ins import QUIET, fake, its_input, nothing, pictures_of, random_weights

from dream_jax import commands, metrics
from dream_jax.__main__ import main
from dream_jax.data.indexed import Pair
from dream_jax.errors import UserError
from dream_jax.evaluation import measuring, tables
from dream_jax.evaluation.inputs import make_inputs
from dream_jax.evaluation.journal import read_rows
from dream_jax.files import images
from dream_jax.inference import drawing
from dream_jax.metrics import perceptual
from dream_jax.training import integrity


def test_an_untrained_residual_is_worth_exactly_its_baseline(tiny_workdir):
    record = json.loads((tiny_workdir / "evaluation.json").read_text())
    baseline, *rows = record["rows"]
    assert baseline["name"] == "bicubic" and record["protocol"] == "standard" and record["step"] == 1
    assert [(row["sampler"], row["steps"]) for row in rows] == [("ddim", 1)]
    for row in rows:
        assert {name: row[name] for name in ("psnr", "ssim", "consistency")} == {
            name: baseline[name] for name in ("psnr", "ssim", "consistency")
        }
    assert images.read(tiny_workdir / "evaluation.png").shape[2] == 3


def test_the_command_says_where_no_run_is(tmp_path, capsys):
    assert main(["evaluate", "--workdir", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_refused_before_the_work(tiny_workdir, tmp_path, capsys):
    (tmp_path / "folder.json").mkdir()
    for output in ("table.txt", "folder.json"):
        assert main(["evaluate", "--workdir", str(tiny_workdir), "--output", str(tmp_path / output)]) == 2
        assert output in capsys.readouterr().err


def test_masks_that_leave_nothing_to_paint_are_said():
    model = fake(nothing, "task.name=inpainting")
    pictures = pictures_of(model)
    masks = np.zeros((*pictures.shape[:3], 1), np.uint8)
    masks[0, :3] = 255
    for first, said in ((0, "in 1 of 2 pictures the mask leaves nothing to paint"), (255, None)):
        masks[1] = first
        record, _ = measuring.evaluate({"a": model}, Pair(pictures, masks), QUIET)
        assert [note for note in record["notes"] if "mask" in note] == [note for note in record["notes"] if said]
        assert said is None or said in record["notes"][-1]
        assert np.isinf(record["rows"][-1]["psnr"]) == (said is not None)


def test_models_are_measured_side_by_side_over_samplers_steps_and_seeds(tmp_path, capsys):
    changes = "evaluation.samplers=ddpm,dpmpp_2m", "evaluation.steps=1,2", "evaluation.seeds=3,4"
    models = {"bicubic itself": fake(nothing, *changes), "noisy": fake(its_input, *changes, step=2)}
    pictures = pictures_of(models["noisy"])
    record, columns = measuring.evaluate(models, pictures, QUIET)
    baseline, *rows = record["rows"]
    assert [(row["model"], row["sampler"], row["steps"]) for row in rows] == [
        (name, sampler, steps) for name in models for sampler in ("ddpm", "dpmpp_2m") for steps in (1, 2)
    ]
    for row in rows:
        same = row["model"] == "bicubic itself"
        assert (row["psnr"] == baseline["psnr"]) == same and (row["psnr_spread"] == 0) == same
    enlarged = make_inputs(models["noisy"].experiment, pictures).baseline
    assert baseline["psnr"] == pytest.approx(float(np.mean(metrics.psnr(enlarged, pictures))), rel=1e-6)
    assert record["seeds"] == [3, 4] and record["models"]["noisy"]["step"] == 2
    assert record["models"]["noisy"]["sha256"] == integrity.digest(models["noisy"].params)

    tables.show(record, Console(width=200))
    shown = capsys.readouterr().out
    assert "noisy" in shown and "±" in shown and "bicubic" in shown
    path = tmp_path / "table.json"
    tables.write(record, columns, path, overwrite=False)
    for what, file in tables.files(path).items():
        # That is of whole pictures.
        assert file.exists() == (what != "by picture")
    assert len(tables.files(path)["csv"].read_text().splitlines()) == 1 + len(record["rows"])
    grid = images.read(tmp_path / "table.png")
    assert grid.shape[1] > 4 * 128


def test_models_of_other_tasks_are_not_compared():
    models = {"two": fake(nothing), "four": fake(nothing, "task.scale=4")}
    with pytest.raises(UserError, match=r"task\.scale are 2 and 4"):
        measuring.evaluate(models, pictures_of(models["two"]), QUIET)


def test_an_evaluation_goes_on_after_a_stop(tmp_path, monkeypatch):
    model = fake(its_input, "evaluation.steps=1,2")
    journal = tmp_path / "journal.jsonl"
    whole, _ = measuring.evaluate({"a": model}, pictures_of(model), QUIET, journal)
    lines = journal.read_text().splitlines()
    # Stopped while the second row was written.
    journal.write_text(lines[0] + "\n" + lines[1][:20])
    drawn = []
    draw_pictures = drawing.draw_pictures
    monkeypatch.setattr(
        drawing, "draw_pictures", lambda *args: drawn.append(len(args[3].alpha)) or draw_pictures(*args)
    )
    again, _ = measuring.evaluate({"a": model}, pictures_of(model), QUIET, journal)
    assert again == whole
    assert drawn[0] == 2, "the row of one step was there"
    lines = journal.read_text().splitlines()
    assert len(lines) == 3 and read_rows(journal).keys() == {json.loads(lines[i])["key"] for i in (0, 2)}
    other = model._replace(params={"w": np.ones(1, np.float32)})
    drawn.clear()
    measuring.evaluate({"a": other}, pictures_of(model), QUIET, journal)
    assert drawn[:2] == [1, 2], "rows of other weights are no rows of these"


def test_the_official_protocol_scales_consistency():
    changes = "evaluation.protocol=dream_official", "evaluation.steps=1,"
    official, standard = fake(nothing, *changes), fake(nothing)
    rows = [measuring.evaluate({"a": m}, pictures_of(m), QUIET)[0]["rows"][1] for m in (official, standard)]
    assert rows[0]["consistency"] == pytest.approx(1e5 * rows[1]["consistency"], rel=1e-6)
    assert rows[0]["psnr"] == rows[1]["psnr"]


def test_learned_measures_say_which_file_is_missing(tmp_path):
    model = fake(nothing, "evaluation.learned=lpips_alex,", f"evaluation.weights={tmp_path}")
    with pytest.raises(UserError, match="alexnet"):
        measuring.evaluate({"a": model}, pictures_of(model), QUIET)


def test_missing_weights_are_said_before_training(tmp_path):
    config = tiny.tiny_config("evaluation.learned=efficientnet_lite0,", f"evaluation.weights={tmp_path / 'none.pth'}")
    with pytest.raises(UserError, match=r"none\.pth"):
        commands.train_and_evaluate(config, tmp_path / "run", QUIET)
    assert not (tmp_path / "run" / "config.json").exists()


def test_networks_weights_from_a_persons_folder_are_used_and_recorded(tmp_path):
    save_file(random_weights(perceptual.shapes("squeeze")), tmp_path / "lpips_squeeze.safetensors")
    changes = "evaluation.learned=lpips_squeeze,", f"evaluation.weights={tmp_path}", "evaluation.seeds=0,1"
    models = {"exact": fake(nothing, *changes), "noisy": fake(its_input, *changes)}
    pictures = pictures_of(models["noisy"])
    record, _ = measuring.evaluate(models, pictures, QUIET)
    baseline, exact, noisy = record["rows"]
    assert exact["lpips_squeeze"] == pytest.approx(baseline["lpips_squeeze"], rel=1e-5) and noisy["lpips_squeeze"] > 0
    assert exact["lpips_squeeze_diversity"] == pytest.approx(0, abs=1e-6) and noisy["lpips_squeeze_diversity"] > 1e-4
    file = tmp_path / "lpips_squeeze.safetensors"
    assert record["learned"]["lpips_squeeze"]["files"] == [
        {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    ]

    official = fake(its_input, *changes, "evaluation.protocol=dream_official", "evaluation.seeds=0,")
    theirs = measuring.evaluate({"noisy": official}, pictures, QUIET)[0]["rows"][1]["lpips_squeeze"]
    assert theirs != pytest.approx(noisy["lpips_squeeze"], rel=1e-2), "fed with pictures in [0, 1]"


def test_sets_of_too_few_pictures_are_refused_before_the_work():
    model = fake(nothing, "evaluation.learned=inception,", "evaluation.pictures=1")
    with pytest.raises(UserError, match=r"evaluation\.learned: inception .* at least 2 .* 1 held-out"):
        measuring.evaluate({"a": model}, pictures_of(model), QUIET)


def test_one_picture_is_compared_with_its_original():
    """Although measures of sets by the same network need more."""
    model = fake(nothing, "evaluation.learned=efficientnet_lite0,", "evaluation.pictures=1")
    record, _ = measuring.evaluate({"a": model}, pictures_of(model), QUIET)
    assert record["rows"][1]["efficientnet"] == record["rows"][0]["efficientnet"] > 0
    assert "efficientnet_kernel" not in record["rows"][0]


def test_a_new_metric_is_one_entry_of_the_table(tmp_path, monkeypatch, capsys):
    model = fake(its_input, "evaluation.seeds=0,1")
    journal, pictures = tmp_path / "journal.jsonl", pictures_of(model)
    measuring.evaluate({"a": model}, pictures, QUIET, journal)

    def mean_absolute_error(a, b):
        return np.abs(a.astype(np.float32) - b).mean((1, 2, 3))

    function = metrics.each(mean_absolute_error)
    entry = metrics.Metric("MAE", ".3f", False, "mean absolute difference, grey levels", function, paired=True)
    monkeypatch.setitem(metrics.METRICS, "mae", entry)
    record, columns = measuring.evaluate({"a": model}, pictures, QUIET, journal)
    baseline, row = record["rows"]
    enlarged = make_inputs(model.experiment, pictures).baseline
    assert baseline["mae"] == pytest.approx(np.abs(enlarged.astype(float) - pictures).mean(), rel=1e-5)
    assert row["mae"] > 0 and row["mae_spread"] > 0, "the journal's row, which lacks it, is not used"
    assert record["about_protocol"]["mae"] == entry.about
    tables.show(record, Console(width=200))
    tables.write(record, columns, tmp_path / "table.json", overwrite=False)
    assert "MAE" in capsys.readouterr().out and "mae" in (tmp_path / "table.csv").read_text().splitlines()[0]


def test_unconditional_models_are_measured_as_sets():
    model = fake(nothing, "task.name=unconditional", "evaluation.pictures=2")
    record, columns = measuring.evaluate({"a": model}, pictures_of(model), QUIET)
    assert record["rows"][0]["name"] == "training pictures"
    assert set(record["rows"][1]) == {"name", "model", "sampler", "steps", "swd"}
    assert record["rows"][1]["swd"] > record["rows"][0]["swd"] and "held out" in columns


def test_the_command_takes_several_runs(tiny_workdir, tmp_path, capsys):
    two = ["--workdir", str(tiny_workdir), str(tiny_workdir)]
    assert main(["evaluate", *two]) == 2 and "--output" in capsys.readouterr().err
    assert main(["evaluate", *two, "--output", str(tmp_path / "t.json")]) == 2 and "twice" in capsys.readouterr().err


def test_the_gap_and_a_start_are_commands(tiny_workdir, tmp_path, capsys):
    one = ["evaluate", "--workdir", str(tiny_workdir), "--output"]
    assert main([*one, str(tmp_path / "gap.json"), "--gap"]) == 0
    assert main([*one, str(tmp_path / "start.json"), "--find_start", "2"]) == 0
    assert json.loads((tmp_path / "gap.json").read_text())["models"]["workdir"]["gap"] > 0
    assert len(json.loads((tmp_path / "start.json").read_text())["ranking"]) == 2
    assert "start_seed=" in capsys.readouterr().out
    for wrong in (["--find_start", "0"], ["--find_start", "2", "--gap"]):
        assert main([*one, str(tmp_path / "t.json"), *wrong]) == 2 and "--find_start" in capsys.readouterr().err


def test_weights_are_not_used_as_what_they_are_not(tiny_workdir, capsys):
    for wrong in ("objective.kind=eps", "task.gain=2.0", "network.channels=16", "data.channels=1"):
        assert main(["evaluate", "--workdir", str(tiny_workdir), f"--config.{wrong}"]) == 2
        error = capsys.readouterr().err
        assert wrong.split("=")[0] in error and "trained as" in error
