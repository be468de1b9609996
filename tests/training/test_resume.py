"""The short form of `python -m benchmarks.soak`: what happens to a run leaves no trace in its end."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny

from benchmarks import soak


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return soak.Trials(tmp_path_factory.mktemp("soak"), seed=0, quick=True)


def may_mount():
    """Whether this user may mount a small file system (Linux only)."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"]).returncode == 0


def test_a_run_to_which_everything_happens_ends_as_one_to_which_nothing_does(trials, tmp_path):
    """Its disk is full; with room, each signal comes while a checkpoint is written, and the same command goes on.

    SIGTERM comes to the two processes below.
    """
    workdir = tmp_path / "run"
    if may_mount():
        workdir, met = trials.rob(soak.spread(trials.straight()[0], 2)[1])
        assert met["status"] == 2 and "No space left on device" in met["said"]
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        known = soak.half_written(workdir / "checkpoints")
        process = trials.begin(workdir)
        soak.wait_for_save(workdir / "checkpoints", process, 1, known)
        time.sleep(trials.rng.uniform(0, 0.05))
        process.send_signal(number)
        said, _ = process.communicate(timeout=soak.TIMEOUT)
        assert process.returncode == status, said
        if number != signal.SIGKILL:
            step = soak.newest_step(workdir)
            assert f"goes on from the checkpoint of step {step}" in said and "Traceback" not in said
    trials.repeat(workdir)


def test_two_processes_go_on_together(tmp_path):
    """One is killed and both are started again by the launcher; then they are asked to stop.

    One process with two devices repeats the command, and ends as one does that nothing happens to.
    """
    workdir = tmp_path / "run"
    changes = "steps=8", "log_every=1", "checkpoint.every=2", "samples.every=8", "mesh.shard=2", "network.channels=48"
    trials = soak.Trials(tmp_path, seed=0, quick=True, changes=changes)
    launcher = trials.begin(workdir, processes=2, restarts=1)
    soak.wait_for_save(workdir / "checkpoints", launcher, 2)
    os.kill(soak.children(launcher.pid)[1], signal.SIGKILL)
    while soak.children(launcher.pid):
        time.sleep(0.01)
    reached = soak.newest_step(workdir)
    soak.wait_for_save(workdir / "checkpoints", launcher, 1, soak.half_written(workdir / "checkpoints"))
    launcher.send_signal(signal.SIGTERM)
    said, _ = launcher.communicate(timeout=soak.TIMEOUT)
    assert launcher.returncode == 143, said
    launched = [line for line in said.splitlines() if line.startswith("launch: ")]
    assert launched[0] == "launch: process 1 was ended by SIGKILL; the others are stopped"
    assert len(launched) == 2 and f"from the checkpoint of step {reached}" in launched[1]
    assert "Traceback" not in said and f"going on from the checkpoint of step {reached}" in said
    # Both have the one mesh, and process 0 speaks for both.
    assert said.count("on 2 x cpu") == 2 and said.count("step 1/8") == 1
    said = soak.finish(trials.begin(workdir, devices=2))
    assert "going on from the checkpoint of step" in said
    assert soak.differences(workdir, trials.straight(processes=2)[0]) == []


def test_a_difference_is_seen(trials, tmp_path):
    straight, _ = trials.straight()
    workdir = shutil.copytree(straight, tmp_path / "run")
    assert soak.differences(workdir, straight) == []
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write("{}\n")
    assert soak.differences(workdir, straight) == ["metrics.jsonl"]


def test_a_second_signal_ends_the_run_at_once():
    # The main thread is in a call that returns to Python's handlers only much later, as when it compiles.
    script = "import hashlib\nfrom dream_jax.runtime import stopping\n"
    script += "with stopping.asked(lambda told: print(told, flush=True)):\n"
    script += "    print('begun', flush=True)\n    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tiny.ROOT) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline().startswith("SIGTERM: stopping after this step")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
