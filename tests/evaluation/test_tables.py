import json

import numpy as np
import pytest
import tiny

from dream_jax import experiment
from dream_jax.evaluation import tables

COLUMNS = {"black": np.zeros((1, 4, 4, 3), np.uint8)}
RECORD = {
    "notes": [],
    "rows": [
        {"name": "bicubic", "model": None, "sampler": None, "steps": 0, "psnr": 19.0, "swd": 2.0},
        {"name": "ddim 1", "model": "a", "sampler": "ddim", "steps": 1, "psnr": 20.0, "swd": 1.0},
    ],
}


def test_an_earlier_table_is_kept(tmp_path):
    path = tmp_path / "evaluation.json"
    for step in (1, 1, 2):
        tables.write({**RECORD, "step": step}, COLUMNS, path, overwrite=False)
    kept = {file.name for file in tmp_path.iterdir()}
    assert {name for name in kept if name.endswith("json")} == {
        "evaluation.json", "evaluation-1.json", "evaluation-1-1.json",
    }  # fmt: skip
    assert {"evaluation-1-1.csv", "evaluation-1-1.png", "evaluation-1-1-steps.png"} <= kept
    assert json.loads(path.read_text())["step"] == 2
    tables.write({**RECORD, "step": 3}, COLUMNS, path, overwrite=True)
    assert {file.name for file in tmp_path.iterdir()} == kept


def test_a_table_is_written_when_its_pictures_are(tmp_path):
    path = tmp_path / "evaluation.json"
    assert not tables.is_written(path, 3)
    tables.write({**RECORD, "step": 3}, COLUMNS, path, overwrite=False)
    assert tables.is_written(path, 3) and not tables.is_written(path, 4)
    tables.files(path)["pictures"].unlink()
    assert not tables.is_written(path, 3)


def test_nothing_is_gained_over_what_is_infinite():
    gains = [
        tables._cell("psnr", {"sampler": "ddim", "psnr": value}, {"psnr": baseline})
        for value, baseline in ((20.0, 19.0), (np.inf, np.inf), (20.0, np.inf))
    ]
    assert gains == ["20.00 (+1.00)", "inf", "20.00"]


CONSERVATIVE = (
    *("objective.name=conservative_dream", "objective.kind=eps", "schedule.continuous=False"),
    *("task.name=unconditional", "task.residual=False"),
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (("objective.p=1.0",), "DREAM"),
        (("objective.p=None",), "standard"),
        (("objective.name=standard",), "standard"),
        (CONSERVATIVE, "conservative DREAM"),
    ],
)
def test_results_are_called_after_what_was_trained(changes, expected):
    built = experiment.build(tiny.tiny_config(*changes))
    assert tables.label(built, "ddim", 1) == f"{expected}, ddim 1 step"
    assert tables.label(built, "ddpm", 8) == f"{expected}, ddpm 8 steps"
