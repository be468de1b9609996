"""Stopping at a signal: SIGINT, which is Ctrl-C, or SIGTERM, which job schedulers send before they take a machine."""

import contextlib
import itertools
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

SIGNALS = signal.SIGINT, signal.SIGTERM


class Stopped(KeyboardInterrupt):
    """Training has stopped at a signal, and is saved. `status` is the exit status, 128 + the signal's number."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


@contextlib.contextmanager
def asked(tell):
    """`asked_to_stop() -> signal number or None`, to be called before every step, by all processes.

    The first SIGINT or SIGTERM is remembered, and `tell` is called. The second one ends the process at once, even while
    it compiles. All processes get the same answer, a few steps after one of them had a signal. With several processes
    JAX watches SIGTERM: it ignores a second one, and a SIGINT is sent on to it as SIGTERM.

    In another thread than the main one Python allows no handlers, and the answer is always None.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    several = jax.process_count() > 1
    watched = (signal.SIGINT,) if several else SIGNALS
    # Calls are counted, not steps, because a run that is rolled back comes to some steps twice.
    calls, received = itertools.count(), []

    def read():
        # In a thread: Python's own handlers wait for the main thread, which may compile for minutes.
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
    # Python writes the signal's number to the pipe, whatever the handler does.
    earlier = {number: signal.signal(number, lambda *_: None) for number in watched}
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield asked_to_stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        if several:
            # JAX still catches SIGTERM, but nobody asks for it any more.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(earlier_writer)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)
