import shutil

import pytest
import tiny
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from rich.console import Console

from dream_jax import commands
from dream_jax.config import records
from dream_jax.errors import UserError
from dream_jax.training import checkpoint, mirror


class Bucket(MemoryFileSystem):
    """What stands for Google's storage; it has folders only where it has files."""

    protocol, store, pseudo_dirs = "gcs", {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").strip("/")

    def __init__(self, finalize_on_close=True, **options):
        super().__init__(**options)


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setitem(_registry, "gcs", Bucket)
    Bucket.store.clear()
    return "gs://bucket/run"


def test_a_bucket_is_no_local_folder_and_the_runs_files_no_checkpoint(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there, told = epath.Path(bucket), []
    for name in "run_files/config.json", "4/state/d/0":
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("something")
    monkeypatch.setattr(checkpoint.ocp, "CheckpointManager", lambda directory, options: str(directory))
    assert checkpoint.open_manager(bucket) == bucket
    assert checkpoint.restore(bucket, (), (), told.append, move=True) is None
    assert told == ["the checkpoint 4 is half-written; moved to gs://bucket/damaged/4-1"]
    assert [path.name for path in there.iterdir()] == ["run_files"]
    assert not list(tmp_path.iterdir())


def fill(workdir):
    (workdir / "samples").mkdir(parents=True)
    (workdir / "tensorboard").mkdir()
    for name in (
        "config.json",
        "metrics.jsonl",
        "samples/step_1.png",
        "lock",
        ".metrics.tmp",
        "tensorboard/events.json",
    ):
        (workdir / name).write_text(f"what is in {name}")


@pytest.mark.parametrize("where", ["local", "bucket"])
def test_a_lost_workdir_comes_back(where, tmp_path, request):
    directory = request.getfixturevalue("bucket") if where == "bucket" else tmp_path / "remote"
    workdir, told = tmp_path / "workdir", []
    fill(workdir)
    copies = mirror.Mirror(workdir, directory, told.append)
    copies.update()
    (workdir / "metrics.jsonl").write_text("longer by a line")
    copies.update()
    shutil.rmtree(workdir)
    workdir.mkdir()
    mirror.bring_back(workdir, directory, lambda there: None, told.append)
    files = {path.relative_to(workdir).as_posix(): path.read_text() for path in workdir.rglob("*") if path.is_file()}
    assert files == {
        "config.json": "what is in config.json",
        "metrics.jsonl": "longer by a line",
        "samples/step_1.png": "what is in samples/step_1.png",
    }
    assert len(told) == 1 and f"brought back from {epath.Path(directory) / 'run_files'}" in told[0]


def test_only_what_changed_is_copied(tmp_path):
    workdir, there = tmp_path / "workdir", mirror.folder(tmp_path / "remote")
    fill(workdir)
    copies = mirror.Mirror(workdir, tmp_path / "remote", print)
    copies.update()
    (there / "metrics.jsonl").unlink()
    copies.update()
    assert not (there / "metrics.jsonl").exists()
    (workdir / "metrics.jsonl").write_text("more")
    copies.update()
    assert (there / "metrics.jsonl").read_text() == "more"


def test_a_workdir_with_a_run_is_left_alone_and_an_interrupted_return_is_repeated(tmp_path, monkeypatch):
    workdir, remote = tmp_path / "workdir", tmp_path / "remote"
    fill(workdir)
    mirror.Mirror(workdir, remote, print).update()
    (workdir / "metrics.jsonl").write_text("newer")
    mirror.bring_back(workdir, remote, lambda there: None, print)
    assert (workdir / "metrics.jsonl").read_text() == "newer"
    shutil.rmtree(workdir)
    workdir.mkdir()
    copy, count = mirror.copy, []

    def interrupted(*paths):
        count.append(paths)
        if len(count) == 3:
            raise KeyboardInterrupt
        copy(*paths)

    monkeypatch.setattr(mirror, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mirror.bring_back(workdir, remote, lambda there: None, print)
    mirror.bring_back(workdir, remote, lambda there: None, print)
    assert (workdir / "metrics.jsonl").exists() and (workdir / "config.json").exists()


def test_a_failure_to_copy_is_told_of_and_made_up_for(tmp_path):
    workdir, remote, told = tmp_path / "workdir", tmp_path / "remote", []
    fill(workdir)
    remote.write_text("a file where the folder should be")
    copies = mirror.Mirror(workdir, remote, told.append)
    copies.update()
    assert len(told) == 1 and "were not copied" in told[0]
    remote.unlink()
    copies.update()
    assert (mirror.folder(remote) / "config.json").exists() and len(told) == 1


def test_missing_packages_are_named_and_unknown_places_refused(monkeypatch):
    monkeypatch.setattr(mirror.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gcsfs and google.cloud.storage is missing; pip install gcsfs"):
        mirror.check("gs://bucket/run")
    for place in "ftp://host/run", "gs://bucket", "gs://bucket/", "gs:///run":
        with pytest.raises(UserError, match=r": a local folder or gs://BUCKET/FOLDER"):
            mirror.check(place)
    with pytest.raises(UserError, match=r"orbax cannot save to s3://; a local folder or gs://BUCKET/FOLDER"):
        mirror.check("s3://bucket/run")
    mirror.check(None)
    mirror.check("/a/folder")


def test_the_same_command_on_a_new_machine_goes_on(tmp_path):
    remote = tmp_path / "remote" / "checkpoints"

    def run(workdir, steps, *changes):
        kept = "checkpoint.every=1", f"checkpoint.directory={remote}"
        chosen = tiny.tiny_config(*tiny.UNCONDITIONAL, f"steps={steps}", *kept, *changes)
        return commands.train_and_evaluate(chosen, workdir, Console(quiet=True))

    run(tmp_path / "first", 2)
    shutil.move(tmp_path / "first", tmp_path / "lost")
    with pytest.raises(UserError, match=r"(?s)run_files holds a run with another config.*seed: 0 -> 1"):
        run(tmp_path / "second", 3, "seed=1")
    assert not (tmp_path / "second" / "metrics.jsonl").exists()
    assert int(run(tmp_path / "second", 3).step) == 3
    lost, found = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("lost", "second"))
    assert found.startswith(lost) and found.count("\n") == 3
    assert records.read(tmp_path / "second" / "config.json").steps == 3
    names = {path.name for path in (tmp_path / "second" / "samples").iterdir()}
    assert "step_0000002.png" in names and (mirror.folder(remote) / "evaluation.json").exists()
