"""Joining the processes of a run, which a launcher started."""

import contextlib
import os
import sys
import threading

import jax

from dream_jax.runtime import environment, hang, sharding


def join(config) -> None:
    """Waits for the other processes, where there are any, for at most `supervision.meet_seconds`.

    From then on a process that is lost ends the others, `supervision.heartbeat_seconds` later at the latest.
    """
    if not environment.is_one_of_several():
        return
    limit = config.supervision.meet_seconds
    # JAX would abort without a word to the person, so it is given more time.
    options = {"initialization_timeout": limit + 60, "heartbeat_timeout_seconds": config.supervision.heartbeat_seconds}
    where = os.environ[environment.COORDINATOR]
    if where != "auto":
        number, count = os.environ[environment.PROCESS], os.environ[environment.PROCESSES]
        options |= {"coordinator_address": where, "num_processes": int(count), "process_id": int(number)}
    with _patience(limit, where):
        jax.distributed.initialize(**options)
        sharding.meet(sharding.make_mesh(config.mesh.shard))


@contextlib.contextmanager
def _patience(limit, where):
    def give_up():
        who = "process {DREAM_JAX_PROCESS} of {DREAM_JAX_PROCESSES}".format_map({**_UNKNOWN, **os.environ})
        print(
            f"error: {who} waited {limit} s at {where} for the others. Are all of them started, do they reach that "
            "address (process 0 listens there)? A longer time is supervision.meet_seconds",
            file=sys.stderr,
            flush=True,
        )
        os._exit(hang.STATUS)

    timer = threading.Timer(limit, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_UNKNOWN = {"DREAM_JAX_PROCESS": "?", "DREAM_JAX_PROCESSES": "?"}
