import contextlib
import subprocess
import sys

import pytest
import tiny
from rich.console import Console

from dream_jax import commands
from dream_jax.runtime import hang

# Beats three times and then waits for ever, in a function that its stacks must name.
HANGING = """
import pathlib, sys, threading, time
from dream_jax.runtime import hang
hang.GRACE = 0.0
def stuck_here():
    threading.Event().wait()
with hang.watched({minutes}, {first_minutes}, pathlib.Path(sys.argv[1])) as beat:
    for step in range({beats}):
        time.sleep(0.05)
        beat(step + 1)
    stuck_here()
"""


def run(folder, **choices):
    command = [sys.executable, "-c", HANGING.format(**choices), str(folder)]
    return subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=60)


def test_a_run_that_makes_no_step_says_where_it_hangs_and_ends(tmp_path):
    done = run(tmp_path, minutes=0.005, first_minutes=1.0, beats=3)
    assert done.returncode == hang.STATUS
    (file,) = tmp_path.glob("hang-*-0.txt")
    for stacks in (file.read_text(), done.stderr):
        assert "stuck_here" in stacks and "Thread" in stacks
    assert f"no step after step 3 for 0.005 minutes. The stacks of all threads are in {file}" in done.stderr


def test_the_first_step_has_its_own_time_and_stacks_need_no_folder(tmp_path):
    done = run(tmp_path / "missing", minutes=60.0, first_minutes=0.005, beats=0)
    assert done.returncode == hang.STATUS
    assert "no first step for 0.005 minutes. The stacks of all threads are above" in done.stderr


def test_a_hang_that_holds_the_interpreter_is_noticed_too(tmp_path):
    script = "import faulthandler, time, sys; from dream_jax.runtime import hang\nfrom pathlib import Path\n"
    # The margin of the second watch, and then code that never lets another thread run.
    script += "later = faulthandler.dump_traceback_later\n"
    script += "faulthandler.dump_traceback_later = lambda seconds, **rest: later(seconds - 60, **rest)\n"
    script += "sys.setswitchinterval(1000)\nwith hang.watched(0.01, 0.01, Path('.')) as beat:\n"
    script += "    while True: pass\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=tiny.ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Timeout" in done.stderr


def test_without_a_limit_and_with_steps_nothing_happens(tmp_path):
    script = HANGING.replace("    stuck_here()\n", "").format
    for minutes, first in ((None, 1.0), (0.01, 1.0)):
        command = [sys.executable, "-c", script(minutes=minutes, first_minutes=first, beats=30), str(tmp_path)]
        done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and not done.stderr and not list(tmp_path.iterdir())


class Enough(Exception):
    """Ends a run that has shown what was to be seen."""


def test_training_beats_after_every_step(tmp_path, monkeypatch):
    beats = []

    def beat(step):
        beats.append(step)
        if step == 3:
            raise Enough

    @contextlib.contextmanager
    def watched(minutes, first_minutes, folder):
        assert (minutes, first_minutes, folder) == (3.0, 4.0, tmp_path)
        yield beat

    monkeypatch.setattr(hang, "watched", watched)
    changes = "supervision.hang_minutes=3.0", "supervision.first_minutes=4.0", "samples.every=10", "steps=10"
    with pytest.raises(Enough):
        commands.train_and_evaluate(tiny.tiny_config(*tiny.UNCONDITIONAL, *changes), tmp_path, Console(quiet=True))
    assert beats == [1, 2, 3]


@pytest.mark.parametrize(
    "change", ["hang_minutes=0", "first_minutes=-1", "heartbeat_seconds=0", "meet_seconds=0", "first_minutes=None"]
)
def test_mistakes(change):
    with pytest.raises(ValueError, match=rf"supervision\.{change.partition('=')[0]}"):
        tiny.tiny_config(f"supervision.{change}")
