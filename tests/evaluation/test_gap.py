import json

import numpy as np
import pytest
from rich.console import Console
from stand_ins import QUIET, fake, its_input, nothing, pictures_of

from dream_jax.evaluation import gap
from dream_jax.files import images
from dream_jax.inference import drawing

CHANGES = "evaluation.samplers=ddim,ddpm", "evaluation.steps=1,4"


def test_a_network_that_ignores_its_input_has_no_gap():
    model = fake(nothing, *CHANGES)
    pictures = pictures_of(model)
    record = gap.measure({"constant": model}, pictures, QUIET)
    assert (record["sampler"], record["steps"], record["pictures"]) == ("ddim", 4, len(pictures))
    x0, _ = model.experiment.task.make_pair(None, pictures)
    rows = record["models"]["constant"]["rows"]
    assert len(rows) == 4
    for row in rows:
        # It predicts x0 = 0: the error of its noise is alpha / sigma times x0, whatever x_t.
        expected = (row["alpha"] / row["sigma"]) ** 2 * np.mean(np.square(x0))
        for where in ("training", "sampling"):
            assert row[f"eps_error_{where}"] == pytest.approx(expected, rel=1e-4)
        assert row["noise_square_training"] == pytest.approx(1, abs=0.06)
    assert record["models"]["constant"]["gap"] == pytest.approx(1, abs=1e-4)


def test_a_network_that_passes_on_its_input_has_one():
    record = gap.measure({"amplifier": fake(its_input, *CHANGES)}, pictures_of(fake(nothing)), QUIET)
    first, *_, last = record["models"]["amplifier"]["rows"]
    assert first["eps_error_ratio"] == pytest.approx(1, rel=0.1), "the first input is noise in both"
    assert last["eps_error_ratio"] > 1.5 and record["models"]["amplifier"]["gap"] > 1.1


def test_without_originals_the_statistics_are_compared():
    model = fake(nothing, "task.name=unconditional")
    record = gap.measure({"black": model}, pictures_of(model), QUIET)
    row = record["models"]["black"]["rows"][0]
    assert "eps_error_ratio" not in row and row["eps_hat_square_ratio"] > 0
    assert len(gap.panels_of(record)) == 2


def test_tables_and_plots_are_written_and_kept(tmp_path, capsys):
    models = {name: fake(residual, *CHANGES) for name, residual in (("a", nothing), ("b", its_input))}
    record = gap.measure(models, pictures_of(models["a"]), QUIET)
    gap.show(record, Console(width=200))
    assert "gap 1.000" in capsys.readouterr().out
    for _ in range(2):
        gap.write(record, tmp_path / "gap.json", overwrite=False)
    assert {file.name for file in tmp_path.iterdir()} == {
        f"gap{step}.{kind}" for step in ("", "-1") for kind in ("json", "csv", "png")
    }
    assert json.loads((tmp_path / "gap.json").read_text()) == record
    assert images.read(tmp_path / "gap.png").std() > 0


def test_a_batch_changes_nothing():
    small, large = (fake(its_input, *CHANGES, f"evaluation.batch_size={size}") for size in (1, 2))
    a, b = (gap.measure({"m": model}, pictures_of(model), QUIET)["models"]["m"] for model in (small, large))
    assert a["gap"] == pytest.approx(b["gap"], rel=1e-5)
    assert drawing.make_rows(small.experiment, "ddim", 4).alpha[0] == pytest.approx(a["rows"][0]["alpha"])
