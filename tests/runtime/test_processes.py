import os
import socket
import subprocess
import sys

import jax
import pytest
import tiny

from dream_jax.runtime import hang, processes


@pytest.mark.parametrize("where", ["host:1234", "auto"])
def test_the_config_says_how_long_silence_and_meeting_may_take(where, monkeypatch):
    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: asked.update(options))
    chosen = tiny.tiny_config("supervision.heartbeat_seconds=7", "supervision.meet_seconds=90")
    processes.join(chosen)
    assert not asked
    for name, value in (("COORDINATOR", where), ("PROCESSES", "4"), ("PROCESS", "2")):
        monkeypatch.setenv(f"DREAM_JAX_{name}", value)
    processes.join(chosen)
    assert asked.pop("heartbeat_timeout_seconds") == 7
    # JAX's own limit would abort the process without a word of explanation.
    assert asked.pop("initialization_timeout") > 90
    address = {"coordinator_address": where, "num_processes": 4, "process_id": 2}
    assert asked == ({} if where == "auto" else address)


def test_a_process_that_stays_alone_says_so():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = dict(os.environ, DREAM_JAX_COORDINATOR=address, DREAM_JAX_PROCESSES="2")
    command = [sys.executable, "-m", "dream_jax", "train", "--config", "configs/quickstart.py", "--workdir", "missing"]
    command += ["--config.supervision.meet_seconds=1"]
    environment["DREAM_JAX_PROCESS"] = "1"
    done = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == hang.STATUS, done.stderr
    assert "process 1 of 2 waited 1 s" in done.stderr and "supervision.meet_seconds" in done.stderr
    assert "Traceback" not in done.stderr and not (tiny.ROOT / "missing").exists()


def test_a_process_knows_whether_it_is_one_of_several_and_the_first(monkeypatch):
    for name in (processes.COORDINATOR, processes.PROCESS):
        monkeypatch.delenv(name, raising=False)
    assert not processes.several() and processes.is_first()
    monkeypatch.setenv(processes.COORDINATOR, "auto")
    for number in ("0", "1"):
        monkeypatch.setenv(processes.PROCESS, number)
        assert processes.several() and processes.is_first() == (number == "0")
