import os
import subprocess
import sys

import pytest

from dream_jax.__main__ import main


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("upscale", "--workdir", "w", "--input", "a", "--output", "b", "--step", "100"), "did you mean --steps?"),
        (("generate", "--workdir", "w", "--output", "b", "--cout=3"), "did you mean --count?"),
        (("train", "--config", "quickstart", "--workdir", "w", "--steps=3"), "--config.KEY=VALUE?"),
        (("keys", "--sampling"), "it has none"),
        (("keys", "sampling", "objective"), "objective: keys takes no more"),
        (("evaluate", "--workdir", "w", "--config.evaluation.steps"), "its value is missing"),
    ],
)
def test_an_option_is_not_guessed(command, reason, tmp_path, monkeypatch, capsys):
    """Nor abbreviated; the nearest one is named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "config.json").write_text("{}")
    assert main(list(command)) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1 and list(tmp_path.iterdir()) == [tmp_path / "w"]


@pytest.mark.parametrize("platform", ["cuda", "nosuch"])
def test_devices_that_are_not_there_are_named_in_one_line(platform, tmp_path):
    command = "train", "--config", "quickstart", "--config.steps=0", "--workdir", str(tmp_path / "w")
    environment = os.environ | {"JAX_PLATFORMS": platform}
    ended = subprocess.run(
        [sys.executable, "-m", "dream_jax", *command], env=environment, capture_output=True, text=True, timeout=120
    )
    if ended.returncode == 0 and platform == "cuda":
        pytest.skip("there is a GPU here")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and f"JAX_PLATFORMS={platform}" in ended.stderr
    assert "Traceback" not in ended.stderr and not (tmp_path / "w").exists()
