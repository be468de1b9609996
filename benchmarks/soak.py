"""Runs that are killed, asked to stop, robbed of their disk or of whole checkpoints: all must end as one that was not.

    python -m benchmarks.soak [--kills 40] [--terms 10] [--pairs 10] [--flips 100] [--cuts 20] [--disks 6]

Every trial is a run of its own of one small training, interrupted at a random moment, some of them while a checkpoint
is being written, and repeated with the same command. It passes where the repeated run's last state (the checksums of
every array), metrics.jsonl, evaluation and sample pictures are those of the run that nothing happened to, bit for bit.

--kills: SIGKILL. --terms: SIGTERM and SIGINT. --pairs: two processes, of which one is killed, or both are asked to
stop. --flips, --cuts: a bit of a checkpoint's files is flipped, a file cut; the checkpoint must be found damaged, and
an older one used, or hold what it held. --disks: the run's file system (a small tmpfs, Linux only) is full at some
moment; the run must stop with a message, and go on where there is room. On a GPU, with `deterministic`, runs are killed
by `benchmarks.against_pytorch --then`.

Prints a table, writes it to benchmarks/results/, and exits with 1 where any trial fails.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.progress import track

from benchmarks import report

STEPS = 40
CHANGES = (
    *(f"steps={STEPS}", "batch_size=4", "image_size=16", "log_every=4", "optimizer.learning_rate=1e-3"),
    *("task.name=unconditional", "objective.kind=eps", "objective.distance=l2", "data.flip=True"),
    *("network.channels=8", "network.channel_multipliers=1,", "network.num_res_blocks=1", "network.norm_groups=4"),
    *("network.patch=2", "network.attention_resolutions=()", "network.dropout=0.2"),
    *("checkpoint.every=10", "samples.every=10", "samples.count=2", "samples.steps=1"),
    *("evaluation.samplers=ddim,", "evaluation.steps=1,", "evaluation.pictures=2", "evaluation.batch_size=2"),
)
COUNTS = {"kills": 40, "terms": 10, "pairs": 10, "flips": 100, "cuts": 20, "disks": 6}
# Seconds after which a run counts as hung.
TIMEOUT = 300
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


class Trials:
    """One small training in processes of its own, in a folder that also keeps what they compile."""

    def __init__(self, folder: Path, seed: int, quick: bool = False, gpu: bool = False, changes: tuple = ()):
        self.folder, self.rng, self.quick = folder, random.Random(seed), quick
        self.changes = (*CHANGES, *(["deterministic=True"] if gpu else []), *changes)
        self.environment = os.environ | {
            "JAX_PLATFORMS": "cuda" if gpu else "cpu",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        if quick:
            # What is compiled is shared with other tests.
            self.environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        else:
            self.environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
            self.environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        self._straight = {}

    def command(self, workdir, processes: int = 1, restarts: int = 0) -> list:
        alone = [sys.executable, "-m", "dream_jax"]
        several = [sys.executable, report.ROOT / "launch" / "local.py", "--processes", str(processes)]
        several += ["--restarts", str(restarts), "--"]
        options = ["--config", report.ROOT / "configs" / "base.py", "--workdir", workdir]
        return [*(alone if processes == 1 else several), "train", *options, *(f"--config.{c}" for c in self.changes)]

    def begin(self, workdir, processes: int = 1, restarts: int = 0, devices: int = 1) -> subprocess.Popen:
        """devices: of each process, where they are CPUs."""
        command, environment = self.command(workdir, processes, restarts), self.environment
        environment = environment | {"JAX_NUM_CPU_DEVICES": str(devices)}
        return subprocess.Popen(command, cwd=report.ROOT, env=environment, **PIPES)

    def straight(self, processes: int = 1):
        """(the run that nothing happens to, the seconds that it takes).

        It is the second of two, which compiles nothing. Where it is to be quick, it is the first, of one process, which
        starts in half the time, with as many devices: a sum of two numbers is the same in either order.
        """
        if processes not in self._straight:
            for name in ("straight",) if self.quick else ("compiling", "straight"):
                workdir, since = self.folder / f"{name}_{processes}" / "run", time.monotonic()
                finish(self.begin(workdir, devices=processes) if self.quick else self.begin(workdir, processes))
            self._straight[processes] = workdir, time.monotonic() - since
        return self._straight[processes]

    def repeat(self, workdir, processes: int = 1) -> str:
        """Repeats an interrupted run; what it said. Raises Failed where it does not end as the straight one."""
        said = finish(self.begin(workdir, processes))
        changed = differences(workdir, self.straight(processes)[0])
        if changed:
            raise Failed(f"{workdir}: {', '.join(changed)} differ; the repeated run said:\n{said}")
        return said

    def interrupted(self, number: int, processes: int = 1, in_save: bool = False, victim: int | None = None) -> dict:
        """A run that is sent a signal at a random moment of its life and repeated; what was met.

        Args:
          in_save: at a random moment after a checkpoint's writing has begun.
          victim: of several processes the one to have the signal; the launcher itself where None.
        """
        seconds = 0 if in_save else self.straight(processes)[1]
        while True:
            # All runs have one name, which tables of evaluations tell.
            workdir = Path(tempfile.mkdtemp(prefix="trial-", dir=self.folder)) / "run"
            process = self.begin(workdir, processes)
            if in_save:
                wait_for_save(workdir / "checkpoints", process, self.rng.randint(1, STEPS // 10))
                time.sleep(self.rng.uniform(0, 0.05))
            else:
                time.sleep(self.rng.uniform(0.3, 1.0) * seconds)
            if victim is not None and len(started := children(process.pid)) <= victim:
                # The launcher has not started it yet.
                process.kill()
                process.communicate()
                shutil.rmtree(workdir.parent)
                continue
            target = process.pid if victim is None else started[victim]
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, number)
            said, _ = process.communicate(timeout=TIMEOUT)
            if process.returncode != 0:
                break
            # It had ended before: no interruption.
            shutil.rmtree(workdir.parent)
        steps = newest_step(workdir)
        if number != signal.SIGKILL and process.returncode not in (128 + number, -number):
            raise Failed(f"{workdir}: status {process.returncode} after {signal.Signals(number).name}:\n{said}")
        torn = bool(half_written(workdir / "checkpoints"))
        self.repeat(workdir, processes)
        shutil.rmtree(workdir.parent)
        return {"step": steps, "half_written": torn, "status": process.returncode}

    def robbed(self, kilobytes: int) -> dict:
        """A run on a file system of that size, repeated on one with room."""
        saved, met = self.rob(kilobytes)
        self.repeat(saved)
        shutil.rmtree(saved.parent.parent)
        return met

    def rob(self, kilobytes: int) -> tuple[Path, dict]:
        """(what a run on a file system of that size leaves, copied to one with room; what was met)."""
        folder = Path(tempfile.mkdtemp(prefix="disk-", dir=self.folder))
        small, saved = folder / "small", folder / "saved" / "run"
        small.mkdir()
        saved.parent.mkdir()
        script = 'mount -t tmpfs -o "size=$1k" tmpfs "$2" && "${@:4}"; status=$?; cp -r "$2/run" "$3"; exit $status'
        rooted = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        private = ["unshare", *rooted, "--mount", "bash", "-c", script, "bash", str(kilobytes), small, saved]
        command = [*private, *self.command(small / "run")]
        done = subprocess.run(command, cwd=report.ROOT, env=self.environment, timeout=TIMEOUT, **PIPES)
        step = newest_step(saved)
        messages = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
        if done.returncode and (done.returncode != 2 or len(messages) != 1 or "Traceback" in done.stdout):
            raise Failed(f"a disk of {kilobytes} kB: status {done.returncode}, not one message:\n{done.stdout}")
        said = messages[0].replace(str(small / "run"), "WORKDIR") if messages else "had room"
        return saved, {"kilobytes": kilobytes, "status": done.returncode, "step": step, "said": said}

    def damaged(self, flips: int, cuts: int) -> dict:
        """{(damage, what came of it): count} over copies of the straight run's checkpoints, the newest one damaged."""
        counts = {}
        workdir, _ = self.straight()
        restore = make_restore(workdir)
        whole = workdir / "checkpoints"
        last = str(STEPS)
        files = sorted(path.relative_to(whole) for path in (whole / last).rglob("*") if path.is_file())
        sizes = [(whole / file).stat().st_size for file in files]
        for number in track(range(flips + cuts), "damaging checkpoints"):
            flip = number < flips
            with tempfile.TemporaryDirectory(dir=self.folder) as copy:
                directory = shutil.copytree(whole, Path(copy) / "checkpoints")
                # Half of them by size, which hits the numbers, half in any file.
                file = directory / self.rng.choices(files, sizes if number % 2 else [size > 0 for size in sizes])[0]
                content = bytearray(file.read_bytes())
                if flip:
                    content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
                else:
                    del content[self.rng.randrange(len(content)) :]
                file.write_bytes(content)
                step, leaves, told = restore(directory)
                as_saved = leaves == json.loads((whole / str(step) / "about" / "metadata").read_text())["leaves"]
                moved = (directory.parent / "damaged" / f"{last}-1").exists()
                if not as_saved or moved != (step != STEPS) or bool(told) != moved:
                    what = "SILENT"
                else:
                    what = "found; the older one used" if moved else "harmless: the state is as saved"
                kind = "a flipped bit" if flip else "a cut file"
                counts[kind, what] = counts.get((kind, what), 0) + 1
        return counts


class Failed(Exception):
    """A trial whose end is not as it must be."""


def finish(process) -> str:
    """What a run said until its end, which must be a good one."""
    said, _ = process.communicate(timeout=TIMEOUT)
    if process.returncode:
        raise Failed(f"status {process.returncode}:\n{said}")
    return said


def result(workdir) -> dict:
    """What must be the same: every bit of the last state, by its checksums, the log, the evaluation, the pictures."""
    step = newest_step(workdir)
    about = json.loads((workdir / "checkpoints" / str(step) / "about" / "metadata").read_text())
    return {
        "the last state": (step, about["leaves"]),
        "metrics.jsonl": (workdir / "metrics.jsonl").read_text(),
        "evaluation.json": json.loads((workdir / "evaluation.json").read_text())["rows"],
        "samples": {path.name: path.read_bytes() for path in (workdir / "samples").iterdir()},
    }


def differences(workdir, other) -> list[str]:
    """Which results of two runs are not the same."""
    ours, theirs = result(workdir), result(other)
    return [name for name in ours if ours[name] != theirs[name]]


def newest_step(workdir) -> int | None:
    names = os.listdir(workdir / "checkpoints") if (workdir / "checkpoints").exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=None)


def wait_for_save(checkpoints, process, count, known=frozenset()):
    """Returns when the writing of the `count`-th checkpoint is seen, or the run has ended; `known` do not count."""
    seen = set()
    while process.poll() is None and len(seen) < count:
        seen |= {name.split(".")[0] for name in half_written(checkpoints) - known}
        time.sleep(0.001)


def half_written(checkpoints) -> frozenset[str]:
    """The names of checkpoints that are being written, or were when their run was killed."""
    names = os.listdir(checkpoints) if checkpoints.exists() else []
    return frozenset(name for name in names if ".orbax-checkpoint-tmp" in name)


def children(pid) -> list[int]:
    """The processes that one has started, the oldest first (Linux)."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def make_restore(workdir):
    """`restore(directory) -> (step, the state's description, what was told)`, as a run does that goes on."""
    import jax

    from dream_jax import experiment
    from dream_jax.config import records
    from dream_jax.optimizers import make_optimizer
    from dream_jax.runtime import sharding
    from dream_jax.training import checkpoint, integrity
    from dream_jax.training.train_step import start_state

    built = experiment.build(records.read(workdir / "config.json"))
    mesh = sharding.make_mesh()
    init, specs = start_state(built, make_optimizer(built.config.optimizer), mesh)
    shapes, layout = jax.eval_shape(init), sharding.named(specs, mesh)

    def restore(directory):
        told = []
        state, _ = checkpoint.restore(directory, shapes, layout, told.append, move=True)
        return int(state.step), integrity.describe(state), told

    return restore


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs go; kept (default: a temporary one)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        return soak(Trials(folder, options.seed), options)


def soak(trials, options) -> int:
    rows, failures = [], []

    def attempt(name, count, trial):
        met = []
        for number in track(range(count), name):
            try:
                met.append(trial(number))
            except (Failed, subprocess.TimeoutExpired) as failure:
                failures.append(f"{name}, trial {number + 1}: {failure}")
                print(failures[-1], file=sys.stderr)
        if count:
            rows.append({"interruption": name, "trials": count, "as uninterrupted": len(met), "met": met})
            write(rows, {}, failures)

    def pair(number):
        # In turns: either process is killed, or the launcher is told to stop.
        if number % 3 == 2:
            return trials.interrupted(signal.SIGTERM, processes=2)
        return trials.interrupted(signal.SIGKILL, processes=2, victim=number % 3)

    attempt("SIGKILL", options.kills, lambda n: trials.interrupted(signal.SIGKILL, in_save=n % 2 == 1))
    attempt("SIGTERM, SIGINT", options.terms, lambda n: trials.interrupted((signal.SIGTERM, signal.SIGINT)[n % 2]))
    attempt("two processes", options.pairs, pair)
    sizes = spread(trials.straight()[0], options.disks) if options.disks else []
    attempt("a full disk", options.disks, lambda n: trials.robbed(sizes[n]))
    damages = trials.damaged(options.flips, options.cuts) if options.flips + options.cuts else {}
    write(rows, damages, failures)
    return int(bool(failures) or any(what == "SILENT" for _, what in damages))


def spread(workdir, count: int) -> list[int]:
    """Sizes of disks, kB: from one that holds hardly anything to one that a run all but fits on."""
    size = sum(path.stat().st_blocks // 2 for path in workdir.rglob("*") if path.is_file())
    return [max(64, (size + 1024) * number // count) for number in range(count)]


def write(rows, damages, failures) -> None:
    table = "\n".join(
        f"| {row['interruption']} | {row['trials']} | {row['as uninterrupted']} | {remark(row['met'])} |"
        for row in rows
    )
    damage = "\n".join(f"| {kind} | {what} | {count} |" for (kind, what), count in sorted(damages.items()))
    disks = [met for row in rows for met in row["met"] if "said" in met]
    robbed = "\n".join(f"| {m['kilobytes']} | {m['step'] or 'none'} | {m['status']} | {m['said']} |" for m in disks)
    versions = report.versions("jax", "jaxlib", "orbax-checkpoint")
    text = f"""# Soak

`python -m benchmarks.soak` on CPU ({os.cpu_count()} cores):
{report.listed(versions)}.

{STEPS} steps of a small network, with dropout, flips and a checkpoint every 10 steps, interrupted at a random moment
and repeated. Last state, metrics.jsonl, evaluation and samples are compared bit for bit with those of the run that
nothing happened to.

| interruption | trials | ended as the uninterrupted | met |
|---|---|---|---|
{table}

A checkpoint of it, damaged and restored:

| damage | outcome | count |
|---|---|---|
{damage}

Full disks: the run's last checkpoint, its exit status and its message. Each was repeated where there was room.

| kB | newest checkpoint | status | message |
|---|---|---|---|
{robbed}
"""
    if failures:
        text += "\n## FAILED\n\n" + "\n\n".join(f"```\n{failure}\n```" for failure in failures) + "\n"
    record = {"versions": versions, "rows": rows, "failures": failures}
    record["damages"] = [{"damage": kind, "outcome": what, "count": n} for (kind, what), n in sorted(damages.items())]
    report.write("soak", text, record)


def remark(met) -> str:
    steps = sorted({m["step"] or 0 for m in met})
    parts = [f"newest checkpoint then: of steps {', '.join(map(str, steps))}"]
    if any("half_written" in m for m in met):
        parts.append(f"a half-written one beside it in {sum(m['half_written'] for m in met)}")
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
