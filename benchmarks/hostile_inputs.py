"""Does any file hurt? Malformed pictures, weights and configs, each read by every reader of its kind.

    python -m benchmarks.hostile_inputs --data FOLDER

makes files by mutation from photographs in FOLDER (default: those within scikit-image) and by hand, and reads each in a
worker process that is watched: it must be read, or be refused with a UserError that names it on one line, within 10 s
and 1 GiB above what the program takes by itself, and no code in it may run. Seconds are of computing, so that other
programs do not count; what waits is ended after a minute. Prints a table, writes it to
benchmarks/results/, and exits with 1 for anything else. Linux only: the memory is what /proc says.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import hostile_files, report
from benchmarks.torch_files import official_weights
from dream_jax import experiment
from dream_jax.config import checks, command_line, records
from dream_jax.data import folders, listing
from dream_jax.errors import UserError
from dream_jax.files import images, limits, picture_files, tensors, windows
from dream_jax.metrics import weights as metric_weights
from dream_jax.networks import pytorch
from dream_jax.training import model_folder
from dream_jax.training import weights as training_weights

SECONDS, WAITING, BYTES = 10.0, 6, 2**30
FORMATS = (".png", ".jpg", ".webp", ".tif", ".bmp", ".gif", ".ppm", ".jp2")


def read_picture(path):
    """As training, evaluation and upscaling read it; what is kept beside its pixels is written again."""
    pages = images.read_pages(path)
    for page in pages:
        assert page.colours.dtype == page.numbers.levels and page.colours.ndim == 3
        assert 0 < page.colours[..., 0].size <= limits.most_pixels()
        assert page.alpha is None or page.alpha.shape == page.colours.shape[:2]
    if sum(page.colours.size for page in pages) <= 2**20 and max(pages[0].colours.shape) < 2**14:
        with tempfile.TemporaryDirectory() as folder:
            for suffix in FORMATS if len(pages) == 1 and pages[0].colours.shape[2] in (1, 3) else (".tif",):
                images.write_pages(Path(folder, f"a{suffix}"), pages)
    colours, alpha = images.read_with_alpha(path)
    assert colours.dtype == np.uint8 and colours.shape[2] == 3 and colours.shape[:2] == pages[0].colours.shape[:2]
    assert (alpha is None) == (pages[0].alpha is None)
    return "read"


def read_folder(path):
    """Prepares a folder for training, with and without leaving out what cannot be read."""
    crop = 1024 if Path(path).name == "large" else 16
    with tempfile.TemporaryDirectory() as cache:
        try:
            folders.prepare_folder(path, crop=crop, cache_dir=cache)
        except UserError as error:
            assert "skip_unreadable" in str(error), error
        source = folders.folder_source(
            path, split="train", crop=crop, cache_dir=cache, skip_unreadable=True, eval_percent=50
        )
        assert len(source) and source[0].dtype == np.uint8
    return "read"


def read_weights(path):
    """As a network to start from, and as that of a learned metric."""
    arrays = tensors.read_weights(path)
    for name in ("lpips_squeeze", "inception"):
        with contextlib.suppress(UserError):
            metric_weights.load(name, path)
            raise AssertionError(f"{path} passes for {name}")
    try:
        pytorch.load_sr3(arrays, 4)
    except UserError as error:
        # load_sr3 knows the arrays only; who calls it adds the file.
        raise UserError(f"{images.shown(path)}: {error}") from error
    return "read"


def read_config(path):
    """As the file of an experiment, of a workdir, or the options of a command line."""
    path = Path(path)
    if path.suffix == ".py":
        config = command_line.override(command_line.load(str(path)), [])
    elif path.suffix == ".json":
        config = records.read(path)
    else:
        try:
            config = command_line.override(
                command_line.load(str(report.ROOT / "configs" / "base.py")), json.loads(path.read_text())
            )
            experiment.build(checks.validate(config))
        except UserError as error:
            raise UserError(f"{images.shown(path)}: {error}") from error
        return "read"
    try:
        experiment.build(checks.validate(config))
    except UserError as error:
        # It names the key, which is what a person looks for.
        raise UserError(f"{images.shown(path)}: {error}") from error
    return "read"


def read_large(path):
    """A TIFF in windows, as a picture too large for memory."""
    with windows.open_tiff(path) as file:
        height, width, channels = file.shape
        for top in range(0, min(height, 256), 16):
            assert file.rows(top, min(top + 16, height)).shape[1:] == (width, channels)
    return "read"


def read_archive(path):
    """All pictures of a file that holds many."""
    entries = listing.pictures(path)
    with contextlib.suppress(UserError):
        for entry in list(entries.values())[:8]:
            picture = listing.read(entry.picture)
            assert picture.dtype == np.uint8 and picture.ndim == 3
    return "read"


def read_model(path):
    """A model's folder, as upscaling takes it."""
    loaded = experiment.build(checks.validate(model_folder.read_config(Path(path))))
    model_folder.read(Path(path), training_weights.shapes_of(loaded))
    return "read"


READERS = {
    **{"picture": read_picture, "folder": read_folder, "weights": read_weights, "config": read_config},
    **{"large": read_large, "archive": read_archive, "model": read_model},
}


def judge(reader, path) -> tuple[str, str]:
    """("read" or "refused" or "violation", what was said)."""
    try:
        reader(path)
        return "read", ""
    except UserError as error:
        said = str(error)
        if images.shown(path) not in said.partition("\n")[0]:
            return "violation", f"the message does not name the file: {said[:300]}"
        if not all(line.isprintable() for line in said.split("\n")) or len(said) > 5000:
            return "violation", f"a message that cannot be shown: {said[:300]!r}"
        return "refused", said
    except BaseException:
        return "violation", traceback.format_exc()[-1500:]


def _status(pid, name):
    try:
        return int(re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) * 1024
    except (OSError, TypeError):
        return 0


def _computed(pid):
    """Seconds that a process has computed."""
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _work(pipe, readers):
    warnings.simplefilter("ignore")
    for name in "lpips_squeeze", "inception":
        with contextlib.suppress(UserError):
            metric_weights.load(name, "/dev/null")
    base = _status("self", "VmRSS")
    pipe.send(base)
    while True:
        reader, path = pipe.recv()
        # The peak begins anew.
        Path("/proc/self/clear_refs").write_text("5")
        start = time.process_time()
        outcome, said = judge(readers[reader], path)
        pipe.send((outcome, said, time.process_time() - start, max(_status("self", "VmHWM") - base, 0)))


class Worker:
    """A process that reads files one by one; one that dies or has to be ended is replaced."""

    def __init__(self, readers=READERS):
        self._readers = readers
        self._start()

    def _start(self):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, self._readers), daemon=True)
        self._process.start()
        other.close()
        self._base = self._pipe.recv()

    def read(self, reader: str, path: str, limit: float = SECONDS) -> dict:
        """{outcome, said, seconds, bytes} of one file."""
        start, before, peak, why = time.monotonic(), _computed(self._process.pid), 0, None
        self._pipe.send((reader, path))
        while why is None:
            try:
                if self._pipe.poll(0.02):
                    outcome, said, seconds, used = self._pipe.recv()
                    break
            except (EOFError, OSError):
                self._process.join()
                why = f"the process died ({self._process.exitcode})"
            peak = max(peak, _status(self._process.pid, "VmRSS") - self._base)
            # Twice the limit is enough to know, and spares the machine.
            if peak > 2 * BYTES:
                why = "ended at twice the memory allowed"
            elif _computed(self._process.pid) - before > 2 * limit:
                why = "ended at twice the time allowed"
            elif time.monotonic() - start > WAITING * limit:
                why = "ended, as it waits without end"
        else:
            self._process.kill()
            self._process.join()
            self._start()
            outcome, said, seconds, used = "violation", why, time.monotonic() - start, peak
        if outcome != "violation" and used > BYTES:
            outcome, said = "violation", f"took {used / 2**30:.2f} GiB; {outcome} {said}"
        if outcome != "violation" and seconds > limit:
            outcome, said = "violation", f"took {seconds:.1f} s; {outcome} {said}"
        return {"outcome": outcome, "said": said, "seconds": seconds, "bytes": used}

    def close(self):
        self._process.kill()
        self._process.join()


class Finding(NamedTuple):
    kind: str
    path: str
    outcome: str
    said: str
    seconds: float
    bytes: int


def run(folder: Path, photos, pictures: int, weights: int, config: int, seed: int = 0, large=True, say=print) -> list:
    """Makes the files in a folder and reads each; a `Finding` of each."""
    base = json.loads(json.dumps(command_line.load(str(report.ROOT / "configs" / "base.py")).to_dict()))
    made = [
        *hostile_files.pictures(folder / "pictures", photos, pictures, seed, large),
        *(hostile_files.large_pictures(folder / "large") if large else ()),
        *hostile_files.archives(folder / "archives", photos, pictures // 4, seed),
        *hostile_files.models(folder / "models", _model(folder / "model"), pictures // 4, seed),
        *hostile_files.weights(folder / "weights", official_weights(), weights, seed, large),
        *hostile_files.configs(folder / "configs", base, config, seed),
    ]
    cases = [(case, case.kind.split(",")[0], SECONDS) for case in made]
    tiffs = [case for case in made if case.path.endswith((".tif", ".tiff")) and windows.is_tiff(case.path)]
    cases += [(hostile_files.Case(case.path, "TIFF in windows"), "large", SECONDS) for case in tiffs]
    for name in ["pictures", "large"] if large else ["pictures"]:
        files = sum(Path(case.path).is_relative_to(folder / name) for case in made)
        cases.append((hostile_files.Case(str(folder / name), "folder of pictures", True), "folder", SECONDS * files))
    worker, found = Worker(), []
    marker = hostile_files.marker(folder / "pictures")
    try:
        for case, reader, limit in cases:
            result = worker.read(reader, case.path, limit)
            if marker.exists():
                marker.unlink()
                result |= {"outcome": "violation", "said": "code was run"}
            wanted = {True: "read", False: "refused"}.get(case.readable)
            if result["outcome"] != "violation" and wanted not in (None, result["outcome"]):
                result |= {
                    "outcome": "violation",
                    "said": f"it should be {wanted}, but is {result['outcome']} {result['said']}",
                }
            found.append(Finding(case.kind, case.path, **result))
            if result["outcome"] == "violation":
                say(f"violation: {images.shown(case.path)}: {result['said']}")
    finally:
        worker.close()
    return found


def _model(folder) -> dict[str, bytes]:
    """The files of a small model by itself."""
    folder.mkdir()
    changes = "network.channels=8", "network.channel_multipliers=1,", "network.num_res_blocks=1"
    changes = *changes, "network.norm_groups=4", "network.attention_resolutions=()", "image_size=16", "task.scale=2"
    base = command_line.load(str(report.ROOT / "configs" / "base.py"))
    config = checks.validate(command_line.override(base, [f"--config.{change}" for change in changes]))
    shapes = training_weights.shapes_of(experiment.build(config))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    model_folder.write(folder, config, params, {"step": 1, "weights": "ema"}, "A model.")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def table(found) -> str:
    rows = []
    for kind in dict.fromkeys(finding.kind for finding in found):
        of_kind = [finding for finding in found if finding.kind == kind]
        counts = [sum(f.outcome == outcome for f in of_kind) for outcome in ("read", "refused", "violation")]
        seconds, used = max(f.seconds for f in of_kind), max(f.bytes for f in of_kind) / 2**20
        rows.append(f"| {kind} | {len(of_kind)} | {' | '.join(map(str, counts))} | {seconds:.2f} | {used:.0f} |")
    return "\n".join(
        ["| files | all | read | refused | violations | longest, s | most memory, MiB |", "|---|" + 6 * "---|", *rows]
    )


def photographs(folder, count: int = 24, side: int = 96) -> list[np.ndarray]:
    """Crops of side x 2/3 side pixels of the first pictures of a folder that can be read and are as large."""
    found = []
    for path in picture_files.list_pictures(folder):
        with contextlib.suppress(UserError):
            picture = images.read(path)
            if min(picture.shape[:2]) >= side:
                found.append(picture[: 2 * side // 3, :side].copy())
        if len(found) == count:
            break
    return found


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.hostile_inputs", description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=500, help="mutated ones, besides those made by hand")
    parser.add_argument("--weights", type=int, default=200)
    parser.add_argument("--configs", type=int, default=150)
    parser.add_argument("--data", nargs="+", help="folders of photographs to mutate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="a new folder for the files, which are else removed")
    options = parser.parse_args()
    folders = options.data or [Path(np.__file__).parent.parent / "skimage" / "data"]
    photos = [photo for folder in folders for photo in photographs(folder)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        found = run(folder, photos, options.pictures, options.weights, options.configs, options.seed)
        if not options.keep:
            shutil.rmtree(folder / "pictures")
    bad = [finding for finding in found if finding.outcome == "violation"]
    versions = report.versions("jax", "pillow", "safetensors", "numpy")
    # Not the folders: a page of results tells nothing of the machine's own.
    command = (
        "python -m benchmarks.hostile_inputs" + " --data" * bool(options.data) + " FOLDER" * len(options.data or ())
    )
    text = f"""# Hostile inputs

`{command}`: {report.listed(versions)}.

{len(found)} files, {len(bad)} violations. A file is read, or refused with a message that names it on one line. Anything
else is a violation: another exception, a death, more than {SECONDS:.0f} s or {BYTES / 2**30:.0f} GiB above what the
program takes by itself, code that ran, a sound file refused, or one read that must not be.

{table(found)}
"""
    kept = [f._asdict() | {"path": os.path.basename(f.path), "said": f.said[-300:]} for f in bad]
    report.write(
        "hostile_inputs", text, {"versions": versions, "seed": options.seed, "files": len(found), "violations": kept}
    )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
