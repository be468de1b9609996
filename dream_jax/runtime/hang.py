"""A watch on the training loop: a run that makes no step for too long shows where it hangs, and ends."""

import contextlib
import datetime
import faulthandler
import os
import threading
import time
from pathlib import Path

import jax

# The exit status of a run that may be started again: EX_TEMPFAIL of sysexits.h.
STATUS = 75
# Seconds until the process ends. In them the other processes notice the hang too, and show where they are.
GRACE = 3.0
# The descriptor itself, because sys.stderr may have been replaced by something that is no file.
_STDERR = 2


@contextlib.contextmanager
def watched(minutes: float | None, first_minutes: float, folder: Path):
    """`beat(step)`, to be called after every step.

    A run hangs when it makes no step for `minutes` (None: there is no limit), or no first step, which compiles, for
    `first_minutes`. Then the stacks of all threads are written to stderr and to `folder/hang-TIME-PROCESS.txt`, and the
    process ends with STATUS, after which launchers start it again.
    """
    last, ended = [None, time.monotonic()], threading.Event()

    def beat(step: int):
        last[:] = step, time.monotonic()

    def watch():
        waited, seen = 0.0, last[1]
        while True:
            allowed = 60 * (first_minutes if last[0] is None else minutes)
            period = min(allowed / 10, 10.0)
            # For a hang that holds the interpreter's lock: this thread would wait for the lock, faulthandler does not.
            faulthandler.dump_traceback_later(allowed + 60, file=_STDERR, exit=True)
            if ended.wait(period):
                return
            # The waits are counted and no clock is read: a process that was suspended has not hung.
            waited, seen = (waited + period if seen == last[1] else 0.0), last[1]
            if waited >= allowed:
                _end(last[0], allowed / 60, folder)

    if minutes is None:
        yield beat
        return
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield beat
    finally:
        ended.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()


def _end(step, minutes, folder):
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = folder / f"hang-{now}-{jax.process_index()}.txt"
    faulthandler.dump_traceback(_STDERR, all_threads=True)
    where = "are above"
    with contextlib.suppress(OSError), open(path, "w") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        where = f"are in {path}"
    after = "no first step" if step is None else f"no step after step {step}"
    message = f"this run hangs: {after} for {minutes:g} minutes. The stacks of all threads {where}\n"
    with contextlib.suppress(OSError):  # stderr may be closed
        os.write(_STDERR, message.encode())
    time.sleep(GRACE)
    os._exit(STATUS)
