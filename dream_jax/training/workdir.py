"""The folder of a run: made and checked before training, and where its checkpoints lie."""

from pathlib import Path

from dream_jax.config import records
from dream_jax.errors import UserError
from dream_jax.files.names import check_folder, is_bucket


def check_local(workdir: Path) -> None:
    """Raises UserError where a workdir is in a bucket."""
    if is_bucket(workdir):
        raise UserError(
            f"{workdir}: the workdir is a local folder; checkpoints alone may lie in a bucket, checkpoint.directory"
        )


def make_workdir(workdir: Path, config) -> None:
    """Makes the folders; raises UserError where they cannot be written, and where a run there has another config."""
    for folder in (workdir, workdir / "samples"):
        check_folder(folder)
    check_same(workdir, config)


def check_same(folder, config) -> None:
    """Raises UserError where a folder holds the files of a run with another config."""
    path = folder / "config.json"
    if path.exists() and (changed := records.differences(records.read(path), config)):
        listed = "\n  ".join(changed)
        raise UserError(
            f"{folder} holds a run with another config; choose another --workdir (and checkpoint.directory), or undo "
            f"the difference (run's -> given):\n  {listed}"
        )


def checkpoint_folder(workdir: Path, config) -> Path | str:
    """Where a run has its checkpoints: in `checkpoint.directory`, else in its workdir."""
    return config.checkpoint.directory or workdir / "checkpoints"
