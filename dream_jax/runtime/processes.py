"""Joining the processes of a run, which a launcher started.

JAX is imported only where it is needed, so that the command line can ask `several` without waiting for it.
"""

import contextlib
import os
import sys
import threading

# Variables that a launcher sets. Where the processes meet, HOST:PORT, or "auto" on a TPU, whose hosts know each other;
# the number of this process, from 0; and how many there are.
COORDINATOR, PROCESS, PROCESSES = "DREAM_JAX_COORDINATOR", "DREAM_JAX_PROCESS", "DREAM_JAX_PROCESSES"


def several() -> bool:
    """Whether a launcher started this process as one of several."""
    return COORDINATOR in os.environ


def is_first() -> bool:
    """Whether this process is number 0, or the only one."""
    return os.environ.get(PROCESS, "0") == "0"


def join(config) -> None:
    """Waits for the other processes, where there are any, for at most `supervision.meet_seconds`.

    If a process is lost later, the others end within `supervision.heartbeat_seconds`.
    """
    if not several():
        return
    import jax

    from dream_jax.runtime import sharding

    limit = config.supervision.meet_seconds
    # JAX gets a longer time than `_time_limit`, because it ends the process without an explanation.
    options = {"initialization_timeout": limit + 60, "heartbeat_timeout_seconds": config.supervision.heartbeat_seconds}
    where = os.environ[COORDINATOR]
    if where != "auto":
        options |= {
            "coordinator_address": where,
            "num_processes": int(os.environ[PROCESSES]),
            "process_id": int(os.environ[PROCESS]),
        }
    with _time_limit(limit, where):
        jax.distributed.initialize(**options)
        sharding.meet(sharding.make_mesh(config.mesh.shard))


@contextlib.contextmanager
def _time_limit(seconds, where):
    """Ends the process with a message where what is within takes longer."""
    from dream_jax.runtime import hang

    def give_up():
        who = f"process {os.environ.get(PROCESS, '?')} of {os.environ.get(PROCESSES, '?')}"
        print(
            f"error: {who} waited {seconds} s at {where} for the others. Are all of them started, do they reach that "
            "address (process 0 listens there)? A longer time is supervision.meet_seconds",
            file=sys.stderr,
            flush=True,
        )
        os._exit(hang.STATUS)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
