"""Parts of a measurement, each in a process of its own with a cap, into a folder that has what was measured at once.

A part's process prints a line of facts when it is ready, and then answers each line of its standard input, all in JSON.
"""

import contextlib
import hashlib
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from dream_jax.errors import UserError, shown

MEASURED, LOG, DONE = "measured.jsonl", "log.txt", "done"
# Seconds: the fewest that a part is started with.
LEAST = 10
# Bytes of a file of what is kept, and the most files.
PIECE, PIECES = 15 * 2**20, 4
# What compilers keep, by the variables that name its folders; what is first is kept first. XLA takes a program for
# another one where the folder has another name, so JAX's is relative to where parts run.
JAX = "JAX_COMPILATION_CACHE_DIR"
KEPT = {JAX: "jax", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
# Starts a command that is killed when the process that started it is.
MORTAL = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"


class NotMeasured(Exception):
    """Why something is not measured."""


class Part(NamedTuple):
    """What one process measures.

    Attributes:
      command: of the process.
      cap: the seconds that it is given.
      questions: what it is asked.
      program: names what takes long to compile, for parts that share it.
      kept: it is measured only where an earlier part has compiled the program.
      missing: why it cannot be measured here.
    """

    command: list
    cap: float
    questions: tuple
    program: str | None = None
    kept: bool = False
    missing: str | None = None


def read(out: Path) -> dict:
    """{part: {"ended": how, "seconds", "facts", "questions", "answers"}} of a folder, the newest of each."""
    parts = {}
    for line in (out / MEASURED).read_text().splitlines()[1:]:
        try:
            said = json.loads(line)
        except ValueError:  # cut by a full disk or a crash of the machine
            continue
        part = parts.get(said.pop("part", None))
        if "began" in said:
            parts[said["began"]] = {"ended": "cut off", "seconds": None, "facts": {}, "questions": [], "answers": []}
        elif "answer" in said:
            part["questions"].append(said["question"])
            part["answers"].append(said["answer"])
        else:
            part |= said
    return parts


class Process:
    """The other side of a part."""

    def __init__(self, part: Part, folder: Path, environment: dict, log, until: float):
        # Without a buffer: one that cannot be written any more could not be closed either.
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "bufsize": 0}
        mortal = [sys.executable, "-S", "-c", MORTAL] if sys.platform == "linux" else []
        # A session of its own, so that it can be killed with all that it has started.
        self.process = subprocess.Popen(
            [*mortal, *part.command], cwd=folder, env=environment, start_new_session=True, **pipes
        )
        self.begun, self.until, self.left = time.monotonic(), until, b""

    def ask(self, question: dict) -> dict:
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
        except BrokenPipeError:
            raise NotMeasured(f"its process ended with status {self.process.wait()}, see {LOG}") from None
        return self.answer()

    def answer(self) -> dict:
        """The next line of JSON; raises NotMeasured at the cap, or where the process ends."""
        while True:
            line, found, rest = self.left.partition(b"\n")
            if not found:
                left, pipe = self.until - time.monotonic(), self.process.stdout
                if not select.select([pipe], [], [], min(max(left, 0), threading.TIMEOUT_MAX))[0]:
                    raise NotMeasured(f"stopped after {time.monotonic() - self.begun:.0f} s")
                if not (more := os.read(pipe.fileno(), 2**16)):
                    raise NotMeasured(f"its process ended with status {self.process.wait()}, see {LOG}")
                self.left += more
                continue
            self.left = rest
            if line.startswith(b"{"):  # all else is what libraries print
                return json.loads(line)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Runner:
    """Measures parts into a folder until a moment of `time.monotonic()`; to be used as a context.

    What is compiled is kept in the folder's files cache.0, cache.1, ..., and taken from those of `carried`.

    Args:
      head: what all measurements of the folder have in common; raises UserError where it has others.
      changed: is called whenever there is more to read.
    """

    def __init__(self, out: Path, head: dict, until: float, changed, carried: Path | None = None):
        out.mkdir(parents=True, exist_ok=True)
        measured = out / MEASURED
        if not measured.exists():
            measured.write_text(json.dumps(head) + "\n")
        elif (before := json.loads(measured.read_text().partition("\n")[0])) != head:
            raise UserError(f"{shown(out)}: it holds measurements of {before}, not of {head}; name another folder")
        self.out, self.head, self.until, self.changed, self.packed = out, head, until, changed, None
        self.work = Path(tempfile.mkdtemp(prefix="benchmark-"))
        self.cache = self.work / "cache"
        (self.cache / KEPT[JAX]).mkdir(parents=True)
        unpack(carried or out, self.cache)
        folders = {variable: str(self.cache / folder) for variable, folder in KEPT.items()}
        paths = {"PYTHONPATH": str(report.ROOT), "TMPDIR": str(self.work), JAX: KEPT[JAX]}
        self.environment = os.environ | folders | paths | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.work, ignore_errors=True)

    def measure(self, parts: dict[str, Part]) -> None:
        """Measures parts that take turns, one question a turn, but for those of which the folder has all."""
        running, found = {}, read(self.out)
        try:
            with open(self.out / LOG, "a") as log:
                for name, part in parts.items():
                    if found.get(name, {}).get("ended") != DONE:
                        self._tell({"began": name})
                        if missing := self._missing(part):
                            self._tell({"part": name, "ended": f"not measured: {missing}"})
                            continue
                        print(f"-- {name}", file=log, flush=True)
                        until = min(time.monotonic() + part.cap, self.until)
                        running[name] = Process(part, self.cache, self.environment, log, until)
            for name in list(running):
                self._hear(name, parts[name], running, None)
            for turn in range(max((len(part.questions) for part in parts.values()), default=0)):
                for name in list(running):
                    self._hear(name, parts[name], running, turn)
        finally:
            for process in running.values():
                process.stop()

    def _missing(self, part: Part) -> str | None:
        if self.until - time.monotonic() < LEAST:
            return "no time is left"
        return "its program is not kept" if part.kept and not self._mark(part).exists() else part.missing

    def _mark(self, part: Part) -> Path:
        said = json.dumps([self.head, part.program])
        return self.cache / KEPT[JAX] / f"kept-{hashlib.sha256(said.encode()).hexdigest()}"

    def _hear(self, name: str, part: Part, running: dict, turn: int | None) -> None:
        """Keeps a process's facts (turn None) or its answer to a question; stops it after the last, or if it fails."""
        process, ended = running[name], None
        try:
            if turn is None:
                facts = process.answer()
                self._tell({"part": name, "facts": facts})
                if "not_measured" in facts:
                    raise NotMeasured(f"not measured: {facts['not_measured']}")
                if part.program:
                    self._mark(part).touch()
            else:
                question = part.questions[turn]
                self._tell({"part": name, "question": question, "answer": process.ask(question)})
                ended = DONE if turn + 1 == len(part.questions) else None
        except NotMeasured as reason:
            ended = str(reason)
        if ended:
            running.pop(name).stop()
            self._tell({"part": name, "ended": ended, "seconds": time.monotonic() - process.begun})
        # What took long to compile is kept before anything else happens.
        self._pack()

    def _tell(self, said: dict) -> None:
        with open(self.out / MEASURED, "a") as file:
            file.write(json.dumps(said) + "\n")
        self.changed()

    def _pack(self) -> None:
        """Writes what compilers have kept to the folder, if there is more of it than the last time."""
        now = {path: path.stat().st_size for path in self.cache.rglob("*") if path.is_file()}
        if now != self.packed:
            pack(self.cache, self.out)
            self.packed = now


def pack(cache: Path, out: Path) -> None:
    """Writes a folder's files to out/cache.0, cache.1, ..., the oldest of each compiler's first, as far as they fit."""
    content, left = io.BytesIO(), PIECE * PIECES - 2**20
    with tarfile.open(fileobj=content, mode="w") as archive:
        for folder in KEPT.values():
            files = [path for path in (cache / folder).rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda path: path.stat().st_mtime):
                if (size := path.stat().st_size + 2048) <= left:
                    archive.add(path, path.relative_to(cache))
                    left -= size
    content = content.getvalue()
    content += hashlib.sha256(content).digest()
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    for number, piece in enumerate(pieces):
        (out / f"cache.{number}.part").write_bytes(piece)
    for old in sorted(out.glob("cache.?"))[len(pieces) :]:
        old.unlink()
    for number in range(len(pieces)):
        (out / f"cache.{number}.part").replace(out / f"cache.{number}")


def unpack(out: Path, cache: Path) -> None:
    """Restores what `pack` wrote, if it is whole."""
    content = b"".join(path.read_bytes() for path in sorted(out.glob("cache.?")))
    content, check = content[:-32], content[-32:]
    if check and hashlib.sha256(content).digest() != check:
        print(f"{out}: its compiled programs are not whole, and are not used", file=sys.stderr)
    elif check:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(cache, filter="data")
