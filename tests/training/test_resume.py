"""The short form of `python -m benchmarks.soak`: what happens to a run leaves no trace in its end."""

import shutil
import signal
import subprocess
import sys

import pytest
import tiny

from benchmarks import soak


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return soak.Trials(tmp_path_factory.mktemp("soak"), seed=0, quick=True)


def test_a_run_killed_in_a_save_ends_as_one_that_was_not(trials):
    trials.interrupted(signal.SIGKILL, in_save=True)


def test_a_signal_saves_and_the_run_goes_on_as_if_it_had_not_come(trials):
    trials.interrupted(signal.SIGTERM, in_save=True)


def test_ctrl_c_between_two_checkpoints_saves_one(trials, tmp_path):
    process = trials.begin(tmp_path / "run")
    soak.wait_for_save(tmp_path / "run" / "checkpoints", process, 1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=soak.TIMEOUT)
    step = soak.newest_step(tmp_path / "run")
    assert process.returncode == 130, said
    assert f"goes on from the checkpoint of step {step}" in said and "Traceback" not in said


def test_two_processes_of_which_one_is_killed_go_on_together(trials):
    trials.interrupted(signal.SIGKILL, in_save=True, processes=2, victim=1)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="a small file system is mounted with unshare")
def test_a_run_whose_disk_is_full_says_so_and_goes_on_where_there_is_room(trials):
    if subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"]).returncode:
        pytest.skip("this user may not mount a file system")
    met = trials.robbed(soak.spread(trials.straight()[0], 2)[1])
    assert met["status"] == 2 and "No space left on device" in met["said"]


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
