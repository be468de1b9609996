import hashlib
import json

import jax
import numpy as np
import pytest
import tiny
from rich.console import Console
from safetensors.numpy import save_file

from dream_jax import experiment, metrics
from dream_jax.__main__ import main
from dream_jax.data import held_out
from dream_jax.errors import UserError
from dream_jax.evaluation import measuring
from dream_jax.files import images
from dream_jax.inference import drawing, trained
from dream_jax.metrics import perceptual
from dream_jax.tasks import value_range

QUIET = Console(quiet=True)
KEY = jax.random.key(0, impl="threefry2x32")


@pytest.fixture(scope="module")
def model(tiny_workdir):
    return trained.load(tiny_workdir)


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


def test_the_baseline_is_the_low_resolution_picture_enlarged(model):
    pictures = held_out.eval_pictures(model.experiment.config)
    low, cond, enlarged = drawing.degraded(model.experiment, pictures)
    assert low.shape[1:3] == (pictures.shape[1] // 2, pictures.shape[2] // 2) and low.dtype == np.uint8
    np.testing.assert_array_equal(value_range.to_uint8(cond), enlarged)
    record, _ = measuring.evaluate({"tiny": model}, pictures, QUIET)
    assert record["rows"][0]["psnr"] == pytest.approx(float(np.mean(metrics.psnr(enlarged, pictures))), rel=1e-6)


def test_a_picture_does_not_depend_on_its_batch():
    built = experiment.build(tiny.tiny_config("task.residual=False", "objective.kind=eps"))
    mesh = trained.sharding.make_mesh()
    params = built.network.init(KEY, np.zeros(built.inputs_shape(), np.float32), np.ones(1, np.float32))["params"]
    drawer, rows = drawing.make_draw(built, mesh), drawing.make_rows(built, "ddpm", 3)
    inputs = {"cond": np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)}
    alone, together = (drawing.draw_pictures(drawer, params, inputs, rows, KEY, mesh, size) for size in (1, 2))
    assert np.ptp(alone) > 0
    assert np.abs(alone.astype(int) - together).max() <= 1


def test_ddim_with_all_its_noise_is_ddpm():
    built = experiment.build(tiny.tiny_config("sampling.eta=1.0"))
    ours, theirs = drawing.make_rows(built, "ddim", 5), drawing.make_rows(built, "ddpm", 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


def test_an_earlier_table_is_kept(tmp_path):
    columns = {"black": np.zeros((1, 4, 4, 3), np.uint8)}
    row = {"name": "ddim 1", "model": "a", "sampler": "ddim", "steps": 1, "psnr": 20.0, "swd": 1.0}
    record = {
        "notes": [],
        "rows": [{"name": "bicubic", "model": None, "sampler": None, "steps": 0, "psnr": 19.0, "swd": 2.0}, row],
    }
    path = tmp_path / "evaluation.json"
    for step in (1, 1, 2):
        measuring.write({**record, "step": step}, columns, path, overwrite=False)
    kept = {file.name for file in tmp_path.iterdir()}
    assert {name for name in kept if name.endswith("json")} == {
        "evaluation.json", "evaluation-1.json", "evaluation-1-1.json",
    }  # fmt: skip
    assert {"evaluation-1-1.csv", "evaluation-1-1.png", "evaluation-1-1-steps.png"} <= kept
    assert json.loads(path.read_text())["step"] == 2
    measuring.write({**record, "step": 3}, columns, path, overwrite=True)
    assert {file.name for file in tmp_path.iterdir()} == kept


def test_the_command_says_where_no_run_is(tmp_path, capsys):
    assert main(["evaluate", "--workdir", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_refused_before_the_work(tiny_workdir, tmp_path, capsys):
    (tmp_path / "folder.json").mkdir()
    for output in ("table.txt", "folder.json"):
        assert main(["evaluate", "--workdir", str(tiny_workdir), "--output", str(tmp_path / output)]) == 2
        assert output in capsys.readouterr().err


def fake(residual_of, *changes, step=1):
    """A model whose network, of x0 residuals, is a plain function of (inputs [cond, x_t], level)."""

    class Network:
        def told(self, schedule, alpha):
            return alpha

        def apply(self, variables, inputs, level, dropout_keys=None):
            return residual_of(inputs[..., 3:], level)

    built = experiment.build(tiny.tiny_config(*changes))._replace(network=Network())
    return drawing.Model(built, {"w": np.zeros(1, np.float32)}, step, trained.sharding.make_mesh(), "nowhere")


def nothing(x_t, level):
    return 0 * x_t


def its_input(x_t, level):
    return 0.3 * x_t


def pictures_of(model):
    return held_out.eval_pictures(model.experiment.config)


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
    assert record["seeds"] == [3, 4] and record["models"]["noisy"]["step"] == 2
    assert record["models"]["noisy"]["sha256"] == drawing.digest(models["noisy"].params)

    measuring.show(record, Console(width=200))
    shown = capsys.readouterr().out
    assert "noisy" in shown and "±" in shown and "bicubic" in shown
    path = tmp_path / "table.json"
    measuring.write(record, columns, path, overwrite=False)
    for file in measuring.files(path).values():
        assert file.stat().st_size > 0
    assert len(measuring.files(path)["csv"].read_text().splitlines()) == 1 + len(record["rows"])
    grid = images.read(tmp_path / "table.png")
    assert grid.shape[1] > 4 * 128


def test_what_cannot_be_measured_is_refused_before_the_work(tmp_path):
    models = {"long": fake(nothing, "evaluation.steps=1,300"), "short": fake(nothing, "schedule.num_steps=200")}
    with pytest.raises(UserError, match="short: 300 sampling steps"):
        measuring.check_models(models)
    coarse = fake(nothing, "network.channel_multipliers=1,2,2,2,2,2", "image_size=64")
    models = {"fine": fake(nothing, "evaluation.crop=48"), "coarse": coarse}
    with pytest.raises(UserError, match=r"evaluation\.crop = 48.* 64, by which coarse"):
        measuring.check_models(models)
    assert measuring.check_models({"a": fake(nothing)}) is None
    other = fake(nothing, f"data.folder={tmp_path}")
    assert "a's; others" in measuring.check_models({"a": fake(nothing), "b": other})


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
    assert len(lines) == 3 and measuring._Journal(journal).rows.keys() == {json.loads(lines[i])["key"] for i in (0, 2)}
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


def random_weights(shapes, seed):
    """He-scaled weights for a network's shapes; positive where they are variances or LPIPS's heads."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        scale = np.sqrt(2 / max(np.prod(shape[1:]), 1))
        value = rng.standard_normal(shape) * scale
        positive = name.startswith("lin") or name.endswith("running_var") or len(shape) == 1
        weights[name] = np.float32(np.abs(value) if positive else value)
    return weights


def test_networks_weights_from_a_persons_folder_are_used_and_recorded(tmp_path):
    save_file(random_weights(perceptual.shapes("squeeze"), 0), tmp_path / "lpips_squeeze.safetensors")
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


def test_unconditional_models_are_measured_as_sets():
    changes = "task.name=unconditional", "evaluation.pictures=2"

    class Network:
        def told(self, schedule, alpha):
            return alpha

        def apply(self, variables, inputs, level, dropout_keys=None):
            return 0 * inputs

    model = fake(nothing, *changes)
    model = model._replace(experiment=model.experiment._replace(network=Network()))
    record, columns = measuring.evaluate({"a": model}, pictures_of(model), QUIET)
    assert record["rows"][0]["name"] == "training pictures"
    assert set(record["rows"][1]) == {"name", "model", "sampler", "steps", "swd"}
    assert record["rows"][1]["swd"] > record["rows"][0]["swd"] and "held out" in columns


def test_starting_noises_are_ranked():
    model = fake(its_input, "evaluation.steps=1,")
    ranking = measuring.find_start(model, pictures_of(model), 3, QUIET)
    assert sorted(entry["start_seed"] for entry in ranking) == [0, 1, 2]
    scores = [entry["psnr"] for entry in ranking]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    best = fake(its_input, "evaluation.steps=1,", f"sampling.start_seed={ranking[0]['start_seed']}")
    record, _ = measuring.evaluate({"a": best}, pictures_of(best), QUIET)
    assert record["rows"][1]["psnr"] == pytest.approx(scores[0], rel=1e-6)


def test_the_command_takes_several_runs(tiny_workdir, tmp_path, capsys):
    two = ["--workdir", str(tiny_workdir), str(tiny_workdir)]
    assert main(["evaluate", *two]) == 2 and "--output" in capsys.readouterr().err
    assert main(["evaluate", *two, "--output", str(tmp_path / "t.json")]) == 2 and "twice" in capsys.readouterr().err


def test_the_gap_and_a_start_are_commands(tiny_workdir, tmp_path, capsys):
    one = ["evaluate", "--workdir", str(tiny_workdir), "--output"]
    with tiny.quick_compiles():
        assert main([*one, str(tmp_path / "gap.json"), "--gap"]) == 0
        assert main([*one, str(tmp_path / "start.json"), "--find_start", "2"]) == 0
    assert json.loads((tmp_path / "gap.json").read_text())["models"]["workdir"]["gap"] > 0
    assert len(json.loads((tmp_path / "start.json").read_text())["ranking"]) == 2
    assert "start_seed=" in capsys.readouterr().out
    for wrong in (["--find_start", "0"], ["--find_start", "2", "--gap"]):
        assert main([*one, str(tmp_path / "t.json"), *wrong]) == 2 and "--find_start" in capsys.readouterr().err


def test_weights_are_not_used_as_what_they_are_not(tiny_workdir, capsys):
    for wrong in ("objective.kind=eps", "task.gain=2.0", "network.channels=16"):
        assert main(["evaluate", "--workdir", str(tiny_workdir), f"--config.{wrong}"]) == 2
        error = capsys.readouterr().err
        assert wrong.split("=")[0] in error and "trained as" in error
