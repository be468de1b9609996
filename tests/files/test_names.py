import json
from pathlib import Path

import pytest
from etils import epath

from dream_jax.errors import UserError
from dream_jax.files import names


def test_a_free_name_is_the_first_that_is_new(tmp_path):
    path = tmp_path / "a.old.json"
    for expected in ("a.old.json", "a.old-1.json", "a.old-2.json"):
        free = names.free_name(path)
        assert free == tmp_path / expected
        free.touch()


@pytest.mark.parametrize(("path", "bucket"), [("gs://a/b", True), ("s3://a", True), ("/a/gs:b", False), ("gs", False)])
def test_buckets(path, bucket):
    assert names.is_bucket(path) == names.is_bucket(Path(path)) == names.is_bucket(epath.Path(path)) == bucket


def test_earlier_results_are_renamed_together_after_their_step(tmp_path):
    path, picture = tmp_path / "evaluation.json", tmp_path / "evaluation-psnr.png"
    for count in range(3):
        path.write_text(json.dumps({"step": 20}))
        picture.write_text(str(count))
        names.set_aside(path, [path, picture, tmp_path / "evaluation.csv"])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("evaluation-20-1-psnr.png", "evaluation-20-1.json", "evaluation-20-2-psnr.png", "evaluation-20-2.json"),
        *("evaluation-20-psnr.png", "evaluation-20.json"),
    ]
    path.write_text("no JSON")
    names.set_aside(path, [path])
    assert (tmp_path / "evaluation-before.json").read_text() == "no JSON"


def test_an_interrupted_renaming_is_completed_by_the_next(tmp_path, monkeypatch):
    path, table = tmp_path / "evaluation.json", tmp_path / "evaluation.csv"
    path.write_text('{"step": 1}')
    table.touch()
    replace = names.os.replace

    def interrupted(old, new):
        replace(old, new)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(names.os, "replace", interrupted)
        names.set_aside(path, [path, table])
    names.set_aside(path, [path, table])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evaluation-1.csv", "evaluation-1.json"]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    for check in (names.check_folder, lambda folder: names.check_output(folder / "a.json")):
        with pytest.raises(UserError, match=r"file/below: nothing can be written there \(Not a directory\)"):
            check(tmp_path / "file" / "below")
    with pytest.raises(UserError, match=r"end --output in \.json"):
        names.check_output(tmp_path / "a.csv")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        names.check_output(tmp_path / "folder.json")
    names.check_output(tmp_path / "new" / "a.json")
    assert list((tmp_path / "new").iterdir()) == []
