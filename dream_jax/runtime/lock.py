"""The lock of a run's folder, so that no two runs write to it."""

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
    """Holds a lock on the file `workdir/lock`. The operating system frees it when this process ends, however it ends.

    The file names the holder, and stays when there is none. Processes that this one starts do not hold the lock.
    `tell` is called with a message where the file system has no locks.

    Raises UserError where another run holds it, with its host, process and start, and where nothing can be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Python closes its descriptors in the programs that it starts.
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
        # The holder has not written its name yet.
        return "it has only begun"


def _let_go():
    """Closes the copies of descriptors in a forked process, which would hold the lock after its holder has ended."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
