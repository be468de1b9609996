from pathlib import Path

import pytest
import tiny

from dream_jax.config import records
from dream_jax.errors import UserError
from dream_jax.training import workdir


def test_a_workdir_is_no_bucket(tmp_path):
    workdir.check_local(tmp_path)
    for place in ("gs://bucket/run", "s3://bucket/run"):
        with pytest.raises(UserError, match="the workdir is a local folder"):
            workdir.check_local(Path(place))


def test_a_workdir_is_made_and_keeps_the_config_of_its_run(tmp_path):
    folder, chosen = tmp_path / "new" / "workdir", tiny.tiny_config()
    workdir.make_workdir(folder, chosen)
    assert [path.name for path in folder.iterdir()] == ["samples"]
    records.save(chosen, folder / "config.json")
    workdir.make_workdir(folder, tiny.tiny_config("steps=9"))
    with pytest.raises(UserError, match=r"(?s)workdir holds a run with another config.*seed: 0 -> 1"):
        workdir.make_workdir(folder, tiny.tiny_config("seed=1"))


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "samples").touch()
    with pytest.raises(UserError, match="samples: nothing can be written there"):
        workdir.make_workdir(tmp_path, tiny.tiny_config())


def test_checkpoints_are_in_the_workdir_or_where_the_config_says(tmp_path):
    assert workdir.checkpoint_folder(tmp_path, tiny.tiny_config()) == tmp_path / "checkpoints"
    chosen = tiny.tiny_config("checkpoint.directory=gs://bucket/run")
    assert workdir.checkpoint_folder(tmp_path, chosen) == "gs://bucket/run"
