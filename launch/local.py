"""Runs a dream_jax command on this machine: python launch/local.py [--processes N] [--restarts K] -- train ...

One process drives all devices, the fastest way on one machine. With --processes N, N processes train together as they
would on N machines; GPUs are shared out evenly among them (CUDA_VISIBLE_DEVICES). With --devices M, each process works
on M virtual CPU devices.

With --restarts K, training that crashed, lost a process or hangs is started again, after a pause that grows, and goes
on from its newest checkpoint, until K restarts in a row reached no new one. What a signal stopped is not started again,
nor what ended with a mistake to mend.

What process 0 says is shown as it is; what the others write to stderr, with their number before it. When one fails,
the others are stopped: left alone, they would wait for it. Ctrl-C and SIGTERM are passed on; a second one kills. The
exit status is that of the process that failed first, or 128 + the signal that ended it: 130 and 143 say that training
stopped as Ctrl-C or SIGTERM asked, has saved, and goes on when repeated.
"""

import argparse
import collections
import contextlib
import functools
import glob
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Seconds. Processes that lost one can do no more; those that are asked to stop may have a checkpoint to finish.
GRACE_AFTER_FAILURE, GRACE_AFTER_SIGNAL = 5.0, 30.0
# The exit statuses of processes that stopped because one of them had a signal: all save, and end together.
STOPPED = 128 + signal.SIGINT, 128 + signal.SIGTERM
# The exit statuses after which a restart would end in the same way, or is not wanted: done, a mistake to mend, stopped.
FINAL = 0, 2, *STOPPED
# Seconds before the first restart, doubled for each further one, and their limit.
PAUSE, LONGEST_PAUSE = 2.0, 300.0
# Seconds that a line of several processes' stderr is held back, until it is known that none had failed before.
DELAY = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument("--devices", type=int, metavar="M", help="virtual CPU devices of each process")
    parser.add_argument("--restarts", type=int, default=0, metavar="K", help="in a row, without a new checkpoint")
    parser.add_argument("command", nargs="+", help="after --: what would follow `python -m dream_jax`")
    options = parser.parse_args()
    if options.processes < 1 or (options.devices is not None and options.devices < 1):
        parser.error("--processes and --devices must be at least 1")
    if options.processes > 1 and options.command[0] != "train":
        parser.error(f"{options.command[0]} runs in one process; only train runs in several")
    if options.restarts and (options.restarts < 0 or options.command[0] != "train"):
        parser.error("--restarts is a number of at least 1, of train")
    make = functools.partial(make_environments, options.processes, options.devices)
    try:
        make()
    except ValueError as error:
        parser.error(str(error))
    newest = functools.partial(newest_checkpoint, options.command)
    return supervise([sys.executable, "-m", "dream_jax", *options.command], make, options.restarts, newest)


def make_environments(processes: int, devices: int | None = None) -> list[dict[str, str]]:
    """The environment of each process. Raises ValueError where the GPUs there are cannot be shared out."""
    common = dict(os.environ)
    # Found whatever the current folder, which paths on the command line are relative to.
    common["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), common.get("PYTHONPATH")]))
    if devices is not None:
        common |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if processes == 1:
        return [common]
    common |= {"DREAM_JAX_COORDINATOR": f"127.0.0.1:{free_port()}", "DREAM_JAX_PROCESSES": str(processes)}
    gpus = [] if common.get("JAX_PLATFORMS") == "cpu" else _gpus()
    if len(gpus) % processes:
        raise ValueError(f"{processes} processes cannot share {len(gpus)} GPUs evenly; choose another --processes")
    environments = []
    for process in range(processes):
        own = {"DREAM_JAX_PROCESS": str(process)}
        if gpus:
            share = len(gpus) // processes
            own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[process * share : (process + 1) * share])
        environments.append(common | own)
    return environments


def _gpus() -> list[str]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu]
    return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def newest_checkpoint(arguments: list[str]) -> int | None:
    """The step of the newest checkpoint of the training run with these arguments; None where none is to be seen."""
    # Abbreviated, --config would be taken for the key below.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir", default="")
    parser.add_argument("--config.checkpoint.directory", dest="directory")
    given, _ = parser.parse_known_args(arguments)
    workdir, directory = Path(given.workdir), given.directory
    with contextlib.suppress(OSError, ValueError, KeyError, ImportError):
        # Only process 0 is sure to see the workdir; a directory on the command line is seen by all.
        directory = directory or json.loads((workdir / "config.json").read_text())["checkpoint"]["directory"]
        folder = workdir / "checkpoints"
        if directory:
            from etils import epath

            folder = epath.Path(directory)
        return max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=None)
    return None


def supervise(command: list[str], make, restarts: int = 0, newest=lambda: None) -> int:
    """Runs the command once for each environment of `make()` until all have ended; returns the exit status.

    Where they failed they are started again, at most `restarts` times in a row in which `newest()`, a step, has not
    grown.
    """
    signals, numbers = [], (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in numbers}
    try:
        attempt, reached = 0, newest() if restarts else None
        while True:
            status = _run(command, make(), signals)
            if signals or status in FINAL or not restarts:
                return status
            step = newest()
            if step is not None and (reached is None or step > reached):
                attempt, reached = 0, step
            attempt += 1
            if attempt > restarts:
                print(f"launch: no new checkpoint in {restarts} restarts; given up", file=sys.stderr, flush=True)
                return status
            pause(attempt, restarts, step, signals)
            if signals:
                return 128 + signals[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pause(attempt, restarts, step, signals):
    # Not always as long: what failed together should not start together.
    pause = min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1)
    whence = "from its beginning" if step is None else f"from the checkpoint of step {step}"
    print(
        f"launch: {time.strftime('%Y-%m-%d %H:%M:%S')}: restart {attempt} of {restarts} in {pause:.0f} s, {whence}",
        file=sys.stderr,
        flush=True,
    )
    until = time.monotonic() + pause
    while time.monotonic() < until and not signals:
        time.sleep(0.05)


def _run(command, environments, signals) -> int:
    processes, readers, said = [], {}, collections.deque()
    try:
        for k, environment in enumerate(environments):
            # In sessions of their own, or a terminal's Ctrl-C would reach them twice.
            options = {"env": environment, "stdin": subprocess.DEVNULL, "start_new_session": True}
            if len(environments) > 1:
                options |= {"stderr": subprocess.PIPE, "text": True, "errors": "replace"}
                options |= {"stdout": subprocess.DEVNULL} if k else {}
            processes.append(subprocess.Popen(command, **options))
            if len(environments) > 1:
                readers[k] = threading.Thread(target=_read, args=(k, processes[k].stderr, said), daemon=True)
                readers[k].start()
        return _wait(processes, signals, readers, said)
    finally:
        _send(processes, signal.SIGKILL)
        for process in processes:
            process.wait()


def _read(k, lines, said):
    with lines:
        for line in lines:
            said.append((time.monotonic(), k, line.rstrip()))


def _show(said, until):
    while said and said[0][0] <= until:
        _, k, line = said.popleft()
        print(f"[process {k}] {line}" if k else line, file=sys.stderr, flush=True)


def _wait(processes, signals, readers, said) -> int:
    passed_on, failed, deadline = 0, None, math.inf
    while True:
        running = [process for process in processes if process.poll() is None]
        ended = [k for k, process in enumerate(processes) if process.returncode]
        if ended and failed is None and not signals:
            # Losing one ends the others within milliseconds, by JAX's SIGABRT or with Python's status 1.
            others = 1, -signal.SIGABRT
            failed = min(ended, key=lambda k: processes[k].returncode in others)
            stopped = processes[failed].returncode in STOPPED
            if not stopped:
                _report(failed, processes[failed].returncode, len(processes), readers, said)
                _send(running, signal.SIGTERM)
            deadline = time.monotonic() + (GRACE_AFTER_SIGNAL if stopped else GRACE_AFTER_FAILURE)
        if len(signals) > passed_on:
            _send(running, signal.SIGKILL if passed_on else signals[0])
            passed_on, deadline = len(signals), min(deadline, time.monotonic() + GRACE_AFTER_SIGNAL)
        if time.monotonic() > deadline:
            _send(running, signal.SIGKILL)
        if failed is None:
            _show(said, time.monotonic() - DELAY)
        if not running:
            break
        time.sleep(0.05)
    if failed is not None:
        status = processes[failed].returncode
        return status if status > 0 else 128 - status
    for reader in readers.values():
        reader.join(timeout=1)
    _show(said, math.inf)
    return 128 + signals[0] if signals else 0


def _report(k, status, count, readers, said):
    """Shows what the failed process said last, and nothing of the others: they only say that they lost one."""
    if k in readers:
        readers[k].join(timeout=1)
    _show(collections.deque(entry for entry in list(said) if entry[1] == k), math.inf)
    # One that is alone and ended by itself has said why.
    if count == 1 and status > 0:
        return
    how = f"ended with status {status}" if status > 0 else f"was ended by {signal.Signals(-status).name}"
    others = "; the others are stopped" if count > 1 else ""
    print(f"launch: process {k} {how}{others}", file=sys.stderr, flush=True)


def _send(processes, number):
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main())
