import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny

from dream_jax.config import records

LAUNCHER = tiny.ROOT / "launch" / "local.py"
spec = importlib.util.spec_from_file_location("local", LAUNCHER)
local = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)

# Each writes its process id to a file, so that a test can see that none is left.
PRELUDE = "import os, signal, sys, time; k = os.environ['K']; open(f'{k}.pid', 'w').write(str(os.getpid()))\n"
# Nothing happens before all have come so far.
MEET = "while len([n for n in os.listdir() if n.endswith('.pid')]) < {count}: time.sleep(0.01)\n"


def supervise(script, count, *restarting):
    environments = [dict(os.environ, K=str(k)) for k in range(count)]
    command = [sys.executable, "-c", PRELUDE + MEET.format(count=count) + script]
    return local.supervise(command, lambda: environments, *restarting)


def left_running(folder):
    alive = []
    for file in folder.glob("*.pid"):
        try:
            os.kill(int(file.read_text()), 0)
            alive.append(file.name)
        except ProcessLookupError:
            pass
    return alive


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_process_has_its_number_devices_and_one_coordinator(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    first, second, third = local.make_environments(3, devices=2)
    assert [e["DREAM_JAX_PROCESS"] for e in (first, second, third)] == ["0", "1", "2"]
    assert first["DREAM_JAX_COORDINATOR"] == third["DREAM_JAX_COORDINATOR"]
    assert {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "DREAM_JAX_PROCESSES": "3"}.items() <= second.items()
    (alone,) = local.make_environments(1)
    assert not any(name.startswith("DREAM_JAX") for name in alone)


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in local.make_environments(2)] == ["4,5", "6,7"]
    with pytest.raises(ValueError, match="3 processes cannot share 4 GPUs"):
        local.make_environments(3)


def test_process_0_speaks_plainly_and_the_others_with_their_number(here, capfd):
    assert supervise("print('out', k); print('err', k, file=sys.stderr)", 3) == 0
    out, err = capfd.readouterr()
    assert out == "out 0\n"
    assert sorted(err.splitlines()) == ["[process 1] err 1", "[process 2] err 2", "err 0"]


@pytest.mark.parametrize(
    ("fate", "status", "words"),
    [("sys.exit(3)", 3, "ended with status 3"), ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was ended by SIGKILL")],
)
def test_when_one_fails_the_others_are_stopped(fate, status, words, here, capfd):
    begin = time.monotonic()
    assert supervise(f"if k == '1': {fate}\ntime.sleep(60)", 3) == status
    assert time.monotonic() - begin < local.GRACE_AFTER_FAILURE
    assert capfd.readouterr().err == f"launch: process 1 {words}; the others are stopped\n"
    assert not left_running(here)


def test_what_ignores_sigterm_is_killed_in_the_end(here, monkeypatch):
    monkeypatch.setattr(local, "GRACE_AFTER_FAILURE", 0.5)
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen(f'{k}.deaf', 'w')\n"
    script += (
        "while k == '0' and not os.path.exists('1.deaf'): time.sleep(0.01)\nif k == '0': sys.exit(5)\ntime.sleep(60)"
    )
    assert supervise(script, 2) == 5
    assert not left_running(here)


# Counts its starts; fails the first two times.
COUNTING = "open('starts', 'a').write(k); n = len(open('starts').read())\nif n < {until}: sys.exit({status})"


def starts(folder):
    return len((folder / "starts").read_text())


def test_what_crashed_is_started_again(here, capfd, monkeypatch):
    monkeypatch.setattr(local, "PAUSE", 0.1)
    assert supervise(COUNTING.format(until=3, status=1), 1, 2) == 0
    said = capfd.readouterr().err
    assert starts(here) == 3
    assert said.count("launch: ") == 2 and "restart 1 of 2 in 0 s, from its beginning" in said
    assert "restart 2 of 2" in said


@pytest.mark.parametrize("status", [2, 130, 143])
def test_mistakes_and_stops_are_not_started_again(status, here, capfd):
    assert supervise(COUNTING.format(until=9, status=status), 1, 3) == status
    assert starts(here) == 1 and "restart" not in capfd.readouterr().err


def test_only_restarts_without_a_new_checkpoint_are_counted(here, capfd, monkeypatch):
    monkeypatch.setattr(local, "PAUSE", 0.01)
    steps = iter([None, 10, 20, 20, 10])
    assert supervise(COUNTING.format(until=99, status=75), 1, 2, lambda: next(steps)) == 75
    said = capfd.readouterr().err
    assert starts(here) == 4
    assert said.count("restart 1 of 2 ") == 2 and said.count("restart 2 of 2 ") == 1
    assert "from the checkpoint of step 20" in said
    assert said.endswith("launch: no new checkpoint in 2 restarts; given up\n")


def test_pauses_grow_and_end_with_a_signal(here, monkeypatch, capfd):
    pauses, clock = [], [0.0]
    monkeypatch.setattr(local.time, "monotonic", lambda: clock[0])

    def sleep(seconds):
        clock[0] += seconds

    monkeypatch.setattr(local.time, "sleep", sleep)
    for attempt in (1, 2, 5, 20):
        before = clock[0]
        local.pause(attempt, 20, None, [])
        pauses.append(clock[0] - before)
    for pause, most in zip(pauses, (2, 4, 32, 300), strict=True):
        assert most / 2 <= pause <= most + 0.1
    before = clock[0]
    local.pause(20, 20, None, [signal.SIGINT])
    assert clock[0] == before


def test_the_newest_checkpoint_is_found_where_the_run_keeps_it(tmp_path):
    workdir = tmp_path / "run"
    arguments = ["train", "--config", "c.py", "--workdir", str(workdir)]
    assert local.newest_checkpoint(arguments) is None
    for name in ("9", "10", "11.orbax-checkpoint-tmp"):
        (workdir / "checkpoints" / name).mkdir(parents=True)
    records.save(tiny.tiny_config(), workdir / "config.json")
    assert local.newest_checkpoint(arguments) == 10
    (tmp_path / "elsewhere" / "30").mkdir(parents=True)
    records.save(tiny.tiny_config(f"checkpoint.directory={tmp_path}/elsewhere"), workdir / "config.json")
    assert local.newest_checkpoint([*arguments[:3], f"--workdir={workdir}"]) == 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("deaf", [False, True])
def test_signals_are_passed_on_and_a_second_one_kills(number, deaf, here):
    children = PRELUDE + "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    if deaf:
        children += "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    children += "open(f'{k}.ready', 'w')\ntime.sleep(60)"
    parent = f"import os, runpy, sys; local = runpy.run_path({str(LAUNCHER)!r})\n"
    parent += "environments = [dict(os.environ, K=str(k)) for k in range(2)]\n"
    parent += f"sys.exit(local['supervise']([sys.executable, '-c', {children!r}], lambda: environments))"
    launcher = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.DEVNULL)
    while len(list(here.glob("*.ready"))) < 2:
        time.sleep(0.02)
    launcher.send_signal(number)
    if deaf:
        time.sleep(0.5)
        assert launcher.poll() is None and len(left_running(here)) == 2
        launcher.send_signal(number)
    assert launcher.wait(timeout=20) == 128 + number
    assert not left_running(here)


def launch(*arguments):
    # Compiling without optimizations is three times faster.
    environment = dict(os.environ, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    command = [sys.executable, LAUNCHER, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--processes", "0", "--", "train"), "at least 1"),
        (("--processes", "2", "--", "upscale"), "one process"),
        (("--restarts", "2", "--", "upscale"), "of train"),
        (("--", "train", "--config", "missing.py", "--workdir", "w"), "missing.py"),
    ],
)
def test_mistakes(arguments, reason):
    done = launch(*arguments)
    assert done.returncode == 2 and reason in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_a_mistake_that_one_process_sees_ends_all(tmp_path):
    records.save(tiny.tiny_config("steps=7", "seed=1"), tmp_path / "config.json")
    where = "--config", tiny.ROOT / "configs" / "base.py", "--workdir", tmp_path
    done = launch("--processes", 2, "--devices", 1, "--", "train", *where, *settings(tiny.TINY))
    assert done.returncode == 2 and "seed: 1 -> 0" in done.stderr
    assert done.stderr.endswith("launch: process 0 ended with status 2; the others are stopped\n")
    assert "Traceback" not in done.stderr


def settings(changes):
    return [f"--config.{change}" for change in changes]
