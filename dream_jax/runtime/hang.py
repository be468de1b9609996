"""A watch on the training loop: a run that makes no step says where it hangs, and ends."""

import contextlib
import datetime
import faulthandler
import os
import threading
import time
from pathlib import Path

import jax

# EX_TEMPFAIL of sysexits.h: to be tried again.
STATUS = 75
# Seconds until the process ends, in which the others notice the same and say where they are.
_GRACE = 3.0
# As a number: what stands for sys.stderr may not be a file.
_STDERR = 2


@contextlib.contextmanager
def watched(minutes: float | None, first_minutes: float, folder: Path):
    """`beat(step)`, to be called after every step: the run hangs when none comes for so many minutes; None: never.

    Then the stacks of all threads go to stderr and into `folder/hang-TIME-PROCESS.txt`, and the process ends with
    STATUS, on which launchers start it again. Until the first beat `first_minutes` are allowed, for compiling.
    """
    last, ended = [None, time.monotonic()], threading.Event()

    def beat(step: int):
        last[:] = step, time.monotonic()

    def watch():
        waited, seen = 0.0, last[1]
        while True:
            allowed = 60 * (first_minutes if last[0] is None else minutes)
            period = min(allowed / 10, 10.0)
            # It needs no interpreter lock: for a hang that holds it, where this thread would wait too.
            faulthandler.dump_traceback_later(allowed + 60, file=_STDERR, exit=True)
            if ended.wait(period):
                return
            # Counted, not measured: a process that was itself suspended has not hung.
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
    with contextlib.suppress(OSError):  # nobody may be listening any more
        os.write(_STDERR, message.encode())
    time.sleep(_GRACE)
    os._exit(STATUS)
