"""One writer: the lock of a run's folder."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from pathlib import Path

from dream_jax.errors import UserError

_held = set()


@contextlib.contextmanager
def hold(workdir: Path, tell):
    """Holds `workdir/lock`, a lock of the operating system's, which frees it when this process ends, however it ends.

    The file says who holds it, and stays when nobody does. Processes that this one starts do not share the lock.

    Raises UserError, with the holder's host, process and start, where another run has it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Python's descriptors are closed in programs that are started.
        descriptor = os.open(workdir / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{workdir}: the workdir cannot be written ({error.strerror or error})") from error
    _held.add(descriptor)
    try:
        _lock(descriptor, workdir, tell)
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "start": now}).encode(), 0)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor, workdir, tell):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{workdir}: another run is at work in it ({_holder(descriptor)})") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise UserError(f"{workdir}: the workdir cannot be locked ({error.strerror or error})") from error
        tell(f"{workdir} is on a file system without locks: see to it yourself that no other run writes to it")


def _holder(descriptor):
    try:
        return "on {host}, process {pid}, since {start}".format(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, KeyError, TypeError):
        # It has the lock, and has not yet written its name.
        return "it has only begun"


def _let_go():
    """In a forked process: a copy of the descriptor would hold the lock beyond its holder's end."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
