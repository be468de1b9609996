"""Copies of a run's files beside checkpoints that are elsewhere, so that a run outlives its machine's disk.

Checkpoints are written to `checkpoint.directory` itself, all other files to the workdir. These are copied to the folder
`run_files` in that directory before each checkpoint, because a run that goes on from the checkpoint needs them.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from etils import epath

from dream_jax.errors import UserError
from dream_jax.files import atomic
from dream_jax.files.names import is_bucket

# The packages that read and write a bucket; orbax asks the second one about the bucket itself.
_PACKAGES = "gcsfs", "google.cloud.storage"
_INSTALL = "pip install gcsfs google-cloud-storage google-cloud-storage-control"


def check(directory) -> None:
    """Raises UserError for what is no folder in a bucket of Google's, and where the packages for one are missing."""
    kind, separator, path = str(directory or "").partition("://")
    if not separator:
        return
    bucket, _, folder_in_it = path.partition("/")
    # A folder, as damaged checkpoints are put beside it.
    if kind != "gs" or not bucket or not folder_in_it.strip("/"):
        # orbax writes descriptions to s3://, but no arrays: those go to local folders and gs:// alone.
        why = "orbax cannot save to s3://; " if kind == "s3" else ""
        raise UserError(f"checkpoint.directory = {directory}: {why}a local folder or gs://BUCKET/FOLDER")
    missing = [name for name in _PACKAGES if not _is_there(name)]
    if missing:
        raise UserError(f"checkpoint.directory = {directory}: {' and '.join(missing)} is missing; {_INSTALL}")


def _is_there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def folder(directory) -> epath.Path:
    """Where the copies are."""
    return epath.Path(directory) / "run_files"


class Mirror:
    """Copies the files of a workdir beside the checkpoints in `directory`; does nothing where that is None."""

    def __init__(self, workdir: Path, directory: str | None, tell: Callable[[str], None]):
        self._workdir, self._tell, self._copied = workdir, tell, {}
        self._folder = directory and folder(directory)

    def update(self) -> None:
        """Copies the files that have changed since the last call.

        A failure does not stop the run: `tell` is called, and the next call copies the rest.
        """
        if not self._folder:
            return
        try:
            for path in _files(self._workdir):
                about = path.stat()
                state = about.st_size, about.st_mtime_ns
                if self._copied.get(path) != state:
                    copy(path, self._folder / path.relative_to(self._workdir).as_posix())
                    self._copied[path] = state
        except Exception as error:  # a bucket has exceptions of its own
            self._tell(f"{self._folder}: the run's files were not copied there ({error}); tried again with the next")


def bring_back(workdir: Path, directory, accept, tell) -> None:
    """Copies a run's files from beside the checkpoints in `directory` into a workdir that has no run yet.

    Args:
      accept: called with the folder of the copies; may raise UserError.
      tell: called with a message where files were copied.

    Raises UserError where the copies cannot be read.
    """
    there = folder(directory)
    try:
        if (workdir / "config.json").exists() or not (there / "config.json").exists():
            return
        accept(there)
        # The config comes last. Without it the workdir has no run yet, so an interrupted return is begun again.
        for path in sorted(_files(there), key=lambda path: path.name == "config.json"):
            copy(path, epath.Path(workdir) / path.relative_to(there).as_posix())
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{there}: cannot be read ({error})") from error
    tell(f"{workdir}: this run's files are brought back from {there}")


def _files(folder):
    """The run's files and its samples, without the lock, files that are still being written, and TensorBoard's."""
    samples = folder / "samples"
    paths = [*folder.iterdir(), *(samples.iterdir() if samples.exists() else ())]
    return [
        path for path in paths if path.suffix in (".json", ".jsonl", ".csv", ".png", ".txt") and path.name[0] != "."
    ]


def copy(source, target) -> None:
    """Copies a file from or to a bucket, or between folders; the copy appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_bucket(target):
        # A bucket itself shows a file only when all of it has arrived.
        target.write_bytes(source.read_bytes())
    else:
        atomic.write_bytes(Path(target), source.read_bytes())
