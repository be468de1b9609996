import csv
import json
import os
from pathlib import Path

import pytest

from dream_jax.files import atomic


class Killed(BaseException):
    """What ends a process amid a write."""


def killed(*_, **__):
    raise Killed


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_is_killed_leaves_the_earlier_file_and_is_repeated(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    atomic.write_text(path, "earlier")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, call, killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # nothing tidies up after a kill
        atomic.write_text(path, "later")
    assert path.read_text() == "earlier" and len(list(tmp_path.iterdir())) == 2
    atomic.write_text(path, "later")
    assert path.read_text() == "later" and list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_nothing_else(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.bin"
    atomic.write_bytes(path, b"earlier")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_bytes(path, b"later")
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x" * 251 + ".txt", os.fsdecode(b"\xff.txt")])
def test_any_name_that_a_file_may_have(tmp_path, name):
    atomic.write_text(tmp_path / name, "größer")
    assert [path.read_bytes().decode() for path in tmp_path.iterdir()] == ["größer"]


def test_json_has_null_for_what_is_not_finite(tmp_path):
    record = {"loss": float("nan"), "rows": [{"psnr": float("inf"), "ssim": 0.5}, (1, None, "a")]}
    atomic.write_json(tmp_path / "a.json", record)

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    text = (tmp_path / "a.json").read_text()
    expected = {"loss": None, "rows": [{"psnr": None, "ssim": 0.5}, [1, None, "a"]]}
    assert json.loads(text, parse_constant=refuse) == expected


def test_a_table_has_a_column_for_every_key(tmp_path):
    atomic.write_csv(tmp_path / "a.csv", [{"name": "a", "psnr": 1.5}, {"name": 'b, "c"', "ssim": 0.5}])
    with open(tmp_path / "a.csv", newline="") as file:
        assert list(csv.reader(file)) == [["name", "psnr", "ssim"], ["a", "1.5", ""], ['b, "c"', "", "0.5"]]
