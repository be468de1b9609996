import io
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from rich.console import Console

from dream_jax import experiment
from dream_jax.runtime import sharding
from dream_jax.training import screen


def run_of(*changes, **attributes):
    """What the screen shows of a run, without its program."""
    built = experiment.build(tiny.tiny_config(*changes))
    state = types.SimpleNamespace(params={"a": jnp.zeros((10, 200))})
    shown = {"experiment": built, "config": built.config, "state": state, "workdir": Path("workdir"), "total": 100}
    shown |= {"source": types.SimpleNamespace(pictures=7), "step": 40, "resumed": False, "skipped": set()}
    return types.SimpleNamespace(**shown | attributes)


def introduced(run):
    console = Console(file=io.StringIO(), width=200)
    screen.introduce(console, run, np.zeros((3, 8, 8, 3)), sharding.make_mesh())
    return console.file.getvalue()


def test_the_introduction_names_the_objective_and_where_the_run_begins():
    said = introduced(run_of())
    assert said.startswith(f"DREAM (x0), network of 2,000 parameters in float32 on {jax.device_count()} x ")
    assert "7 training pictures" in said and "3 held out; 100 steps of 4" in said and "a new run" in said
    assert introduced(run_of("objective.p=None")).startswith("standard (x0)")
    said = introduced(run_of(resumed=True, skipped={12, 3}))
    assert "going on from the checkpoint of step 40" in said and "steps that are left out: 3, 12" in said


@pytest.mark.parametrize(("rate", "left"), [(0.0, "?"), (10.0, "0:06"), (0.1, "10:00"), (0.01, "1:40:00")])
def test_a_line_has_the_means_the_rate_and_the_time_left(rate, left):
    values = {"loss": 0.25, "eps_error": 0.5, "lam": 0.125, "skipped": 0}
    line = screen.line(run_of(), values, rate)
    assert line == (f"step 40/100  loss 0.2500  |eps-eps_hat| 0.5000  lam 0.125  {4 * rate:.1f} images/s  {left} left")
    assert "no step applied  5 skipped" in screen.line(run_of(), {"skipped": 5}, rate)


def test_the_bar_shows_the_steps_and_the_rate():
    run, console = run_of(step=0), Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    with screen.progress_bar(console, run) as show:
        run.step = 20
        show(2.5)
        run.step = 21
        show()
    said = console.file.getvalue()
    assert "compiling" in said and "21/100" in said and "2.50 steps/s" in said
