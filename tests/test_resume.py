"""Runs that are killed or asked to stop, and repeated, end as one that was not: to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import tiny

STEPS = 40
CHANGES = (
    *tiny.TINY,
    *(f"steps={STEPS}", "checkpoint.every=10", "log_every=4", "samples.every=10", "image_size=16", "data.flip=True"),
    *(
        "network.channel_multipliers=1,",
        "network.dropout=0.2",
        "optimizer.learning_rate=1e-3",
        "task.name=unconditional",
    ),
    *("task.residual=False", "objective.kind=eps"),
)


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """`begin(workdir, *options) -> process`, of the same run; all share what they compile."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def begin(workdir, *options):
        command = [sys.executable, tiny.ROOT / "launch" / "local.py", *options, "--"] if options else []
        command = command or [sys.executable, "-m", "dream_jax"]
        command += ["train", "--config", tiny.ROOT / "configs" / "base.py", "--workdir", workdir]
        command += [f"--config.{change}" for change in CHANGES]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=tiny.ROOT, env=os.environ | cache, **pipes)

    return begin


@pytest.fixture(scope="module")
def straight(begin, tmp_path_factory):
    """The result of the run without interruption, and how long it took."""
    workdir, since = tmp_path_factory.mktemp("straight") / "run", time.monotonic()
    finish(begin(workdir))
    return result(workdir), time.monotonic() - since


def finish(process, status=0):
    said, _ = process.communicate(timeout=120)
    assert process.returncode == status, said
    return said


def result(workdir):
    """What must be the same: every bit of the last state (its checksums), the log and the evaluation."""
    about = json.loads((workdir / "checkpoints" / str(STEPS) / "about" / "metadata").read_text())
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    samples = {path.name: path.read_bytes() for path in (workdir / "samples").iterdir()}
    return about["leaves"], (workdir / "metrics.jsonl").read_text(), evaluation["rows"], samples


def wait_for_line(workdir, process, count=1):
    while process.poll() is None:
        path = workdir / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.002)
    pytest.fail(process.communicate()[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_as_if_it_had_not_come(number, begin, straight, tmp_path):
    workdir = tmp_path / "run"
    process = begin(workdir)
    wait_for_line(workdir, process)
    process.send_signal(number)
    said = finish(process, 128 + number)
    (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name not in ("10", "20", "30"))
    assert step < STEPS and f"goes on from the checkpoint of step {step}" in said and "Traceback" not in said
    if number == signal.SIGINT:
        # What follows is as after SIGTERM.
        return
    assert f"from the checkpoint of step {step}" in finish(begin(workdir))
    assert result(workdir) == straight[0]


def test_a_second_signal_ends_the_run_at_once():
    # The main thread is in a call that returns to Python's handlers only much later, as when it compiles.
    script = (
        "import hashlib\nfrom dream_jax import stopping\nwith stopping.asked(lambda told: print(told, flush=True)):\n"
    )
    script += "    print('begun', flush=True)\n    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tiny.ROOT) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline().startswith("SIGTERM: stopping after this step")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130


def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(begin, straight, tmp_path):
    workdir = tmp_path / "run"
    rng = random.Random(0)
    for _ in range(2):
        process = begin(workdir)
        time.sleep(rng.uniform(0.4, 0.95) * straight[1])
        process.kill()
        process.communicate()
    finish(begin(workdir))
    assert result(workdir) == straight[0]
