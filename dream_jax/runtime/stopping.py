"""Stopping when asked: SIGTERM, as schedulers send before they take a machine away, and SIGINT, Ctrl-C."""

import contextlib
import itertools
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

SIGNALS = signal.SIGINT, signal.SIGTERM


class Stopped(KeyboardInterrupt):
    """Training has stopped as a signal asked; what was done is saved. `status` is the exit status, 128 + the signal."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


@contextlib.contextmanager
def asked(tell):
    """`asked_to_stop() -> signal number or None`, to be called before every step, in every process alike.

    Within it a first SIGINT or SIGTERM is told of and remembered, and a second one ends the process at once, even while
    it compiles. In several processes the answer is the same in all, a few steps after any of them had a signal. SIGTERM
    is then watched by JAX, which counts no second one; a SIGINT is raised again as SIGTERM.

    Outside the main thread, where Python allows no handlers, nothing is asked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    several = jax.process_count() > 1
    watched = (signal.SIGINT,) if several else SIGNALS
    # Of calls, not of steps: a run that is rolled back counts its steps twice.
    calls, received = itertools.count(), []

    def read():
        # A thread, as Python's own handlers wait for the main thread, which may be compiling for minutes.
        while number := os.read(reader, 1)[0]:
            if number not in watched:
                continue
            received.append(number)
            if len(received) > 1:
                os._exit(128 + number)
            tell(f"{signal.Signals(number).name}: stopping after this step; a second one ends the run without saving")
            if several:
                os.kill(os.getpid(), signal.SIGTERM)

    def asked_to_stop():
        if several and multihost_utils.reached_preemption_sync_point(next(calls)):
            return received[0] if received else signal.SIGTERM
        return received[0] if received and not several else None

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    earlier_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # The number is written to the pipe whatever the handler does.
    earlier = {number: signal.signal(number, lambda *_: None) for number in watched}
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield asked_to_stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        if several:
            # JAX's watch would swallow it, and nobody asks any more.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(earlier_writer)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)
