import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import tiny
from rich.console import Console

from dream_jax import commands
from dream_jax.errors import UserError
from dream_jax.runtime import lock

HOLD = """
import pathlib, subprocess, sys, time
from dream_jax.runtime import lock
with lock.hold(pathlib.Path(sys.argv[1]), print):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_told_who_has_the_workdir(tmp_path):
    with lock.hold(tmp_path, pytest.fail):
        who = rf"another run is at work in it \(on {socket.gethostname()}, process {os.getpid()}, since 20"
        with pytest.raises(UserError, match=who), lock.hold(tmp_path, pytest.fail):
            pass
        with pytest.raises(UserError, match=who):
            commands.train_and_evaluate(tiny.tiny_config(), tmp_path, Console(quiet=True))
        assert os.listdir(tmp_path) == ["lock"]
    with lock.hold(tmp_path, pytest.fail):
        pass


def test_a_killed_run_frees_its_workdir_though_its_children_live(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True, cwd=tiny.ROOT)
    with holder:
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(UserError, match=f"process {holder.pid},"), lock.hold(tmp_path, pytest.fail):
                pass
            holder.kill()
            holder.wait()
            os.kill(child, 0)
            with lock.hold(tmp_path, pytest.fail):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_process_does_not_hold_the_lock(tmp_path):
    script = "import os, pathlib, sys, time\nfrom dream_jax.runtime import lock\n"
    script += "with lock.hold(pathlib.Path(sys.argv[1]), print):\n"
    script += "    child = os.fork()\n    if not child:\n        time.sleep(60)\n"
    script += "    print(child, flush=True)\n    os.kill(os.getpid(), 9)"
    command = [sys.executable, "-c", script, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tiny.ROOT) as process:
        child = int(process.stdout.readline())
        process.wait()
        try:
            os.kill(child, 0)
            for attempt in range(100):
                # The child lets go when it first runs, which may be after its parent's end.
                time.sleep(0.1 if attempt else 0)
                with contextlib.suppress(UserError), lock.hold(tmp_path, pytest.fail):
                    break
            else:
                pytest.fail("the child holds the lock")
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_is_used_with_a_word(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    told = []
    with lock.hold(tmp_path, told.append):
        assert "without locks" in told[0]
