"""A run with its checkpoints in a bucket, where a server stands for Google's storage; skipped where none is said.

    STORAGE_EMULATOR_HOST=http://127.0.0.1:9000 python -m pytest tests/training/test_buckets.py

with what `pip install gcsfs google-cloud-storage` brings, and github.com/googleapis/storage-testbench as the server, in
an environment of its own. Others may not do: tensorstore wants the generation of an object with what is in it.
"""

import io
import os
import shutil
import uuid

import fsspec
import pytest
import tiny
from etils.epath import backend
from rich.console import Console

from dream_jax import commands
from dream_jax.inference import trained

SERVER = os.environ.get("STORAGE_EMULATOR_HOST")
pytestmark = pytest.mark.skipif(not SERVER, reason="STORAGE_EMULATOR_HOST names no server")


@pytest.fixture
def bucket(monkeypatch):
    pytest.importorskip("gcsfs")
    storage = pytest.importorskip("google.cloud.storage")
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", SERVER)
    # A file system that another test put in the place of Google's may still be remembered.
    monkeypatch.setattr(
        backend.fsspec_backend, "_get_filesystem", lambda name: fsspec.filesystem(name, finalize_on_close=True)
    )
    # google-cloud-storage asks for a project; without one it looks for credentials.
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test")
    return storage.Client().create_bucket(f"test-{uuid.uuid4().hex}")


def names(bucket, prefix):
    """The folders and files right under a prefix."""
    return sorted({blob.name.removeprefix(prefix).split("/")[0] for blob in bucket.list_blobs(prefix=prefix)})


def damage(bucket, prefix):
    """Flips bits in the middle of the largest file of arrays."""
    blob = max((blob for blob in bucket.list_blobs(prefix=prefix) if "/d/" in blob.name), key=lambda blob: blob.size)
    data = bytearray(blob.download_as_bytes())
    data[len(data) // 2] ^= 0x55
    bucket.blob(blob.name).upload_from_string(bytes(data))


def test_a_run_goes_on_from_its_bucket(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    workdir, directory = tmp_path / "workdir", f"gs://{bucket.name}/run"

    def run(steps):
        small = "image_size=16", "task.name=unconditional", "task.residual=False"
        small += "objective.kind=eps", "checkpoint.every=1", f"checkpoint.directory={directory}"
        said = io.StringIO()
        commands.train_and_evaluate(tiny.tiny_config(f"steps={steps}", *small), workdir, Console(file=said, width=999))
        return said.getvalue()

    assert "a new run" in run(2)
    shutil.rmtree(workdir)
    said = run(4)
    assert f"brought back from {directory}/run_files" in said and "going on from the checkpoint of step 2" in said
    assert "half-written" not in said
    assert names(bucket, "run/") == ["3", "4", "run_files"]

    damage(bucket, "run/4/state/")
    assert trained.load(workdir).step == 3
    assert "the checkpoint of step 4 is damaged" in capsys.readouterr().err
    said = run(5)
    assert f"moved to gs://{bucket.name}/damaged/4-1" in said and "going on from the checkpoint of step 3" in said

    bucket.blob("run/5/commit_success.txt").delete()
    said = run(6)
    assert "the checkpoint 5 is half-written; moved to" in said and "going on from the checkpoint of step 4" in said
    assert names(bucket, "run/") == ["5", "6", "run_files"]
    assert names(bucket, "damaged/") == ["4-1", "5-1", "about"]
    assert trained.load(workdir).step == 6
    assert [path.name for path in tmp_path.iterdir()] == ["workdir"]
