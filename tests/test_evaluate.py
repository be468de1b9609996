import json

import jax
import numpy as np
import pytest
import tiny
from rich.console import Console

from dream_jax import evaluate, experiment, images, metrics, trained
from dream_jax.__main__ import main
from dream_jax.errors import UserError

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
    pictures = experiment.eval_pictures(model.experiment.config)
    low, cond, enlarged = evaluate.degraded(model.experiment, pictures)
    assert low.shape[1:3] == (pictures.shape[1] // 2, pictures.shape[2] // 2) and low.dtype == np.uint8
    np.testing.assert_array_equal(images.to_uint8(cond), enlarged)
    record = evaluate.evaluate(model.experiment, model.params, pictures, model.mesh, Console(quiet=True))[0]
    assert record["rows"][0]["psnr"] == pytest.approx(float(np.mean(metrics.psnr(enlarged, pictures))), rel=1e-6)


def test_a_picture_does_not_depend_on_its_batch():
    built = experiment.build(tiny.tiny_config("task.residual=False", "objective.kind=eps"))
    mesh = trained.sharding.make_mesh()
    params = built.network.init(KEY, np.zeros(built.inputs_shape(), np.float32), np.ones(1, np.float32))["params"]
    draw, rows = evaluate.make_draw(built, mesh), evaluate.make_rows(built, "ddpm", 3)
    cond = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    alone, together = (evaluate.draw_pictures(draw, params, cond, rows, KEY, mesh, size) for size in (1, 2))
    assert np.ptp(alone) > 0
    assert np.abs(alone.astype(int) - together).max() <= 1


def test_ddim_with_all_its_noise_is_ddpm(model):
    ours, theirs = evaluate.make_rows(model.experiment, "ddim", 5, 1.0), evaluate.make_rows(model.experiment, "ddpm", 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


def test_an_earlier_table_is_kept(tmp_path):
    picture = np.zeros((4, 4, 3), np.uint8)
    path = tmp_path / "evaluation.json"
    for step in (1, 1, 2):
        evaluate.write({"step": step}, picture, path, overwrite=False)
    kept = {file.name for file in tmp_path.glob("*.json")}
    assert kept == {"evaluation.json", "evaluation-1.json", "evaluation-1-1.json"}
    assert json.loads(path.read_text()) == {"step": 2}
    evaluate.write({"step": 3}, picture, path, overwrite=True)
    assert {file.name for file in tmp_path.glob("*.json")} == kept


def test_an_unconditional_model_has_nothing_to_be_compared_with():
    built = experiment.build(tiny.tiny_config("task.name=unconditional"))
    with pytest.raises(UserError, match="unconditional"):
        evaluate.evaluate(built, None, np.zeros((1, 32, 32, 3), np.uint8), None, Console(quiet=True))


def test_the_command_says_where_no_run_is(tmp_path, capsys):
    assert main(["evaluate", "--workdir", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_refused_before_the_work(tiny_workdir, tmp_path, capsys):
    (tmp_path / "folder.json").mkdir()
    for output in ("table.txt", "folder.json"):
        assert main(["evaluate", "--workdir", str(tiny_workdir), "--output", str(tmp_path / output)]) == 2
        assert output in capsys.readouterr().err
