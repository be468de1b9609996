import json

import jax
import numpy as np
import pytest
import tiny

from dream_jax import experiment
from dream_jax.__main__ import main
from dream_jax.config import records
from dream_jax.errors import UserError
from dream_jax.inference import trained
from dream_jax.optimizers import make_optimizer
from dream_jax.runtime import sharding
from dream_jax.training import checkpoint, flat, integrity, parent, weights
from dream_jax.training.train_step import start_state

LOSSES = {1: 0.5, 2: 0.3, 3: None}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with three checkpoints, and their states; not to be changed."""
    workdir = tmp_path_factory.mktemp("parent")
    built = experiment.build(tiny.tiny_config())
    records.save(tiny.tiny_config(), workdir / "config.json")
    init, _ = start_state(built, make_optimizer(built.config.optimizer), sharding.make_mesh())
    first, states = init(), {}
    with checkpoint.open_manager(workdir / "checkpoints", keep=3) as manager:
        for step, loss in LOSSES.items():
            params, ema = (jax.tree.map(lambda a, n=n: a + n, first.params) for n in (step, 10 * step))
            states[step] = first.replace(step=first.step + step, params=params, ema=ema)
            checkpoint.save(manager, states[step], {"loss": loss})
            checkpoint.wait(manager)
    return workdir, flat.trees(states)


def read(workdir, *changes):
    """What a run of the tiny config with these changes begins with, and what it was told."""
    built = experiment.build(tiny.tiny_config(f"init.path={workdir}", *changes))
    shapes, told = weights.shapes_of(built), []
    fresh = jax.tree.map(lambda shape: np.full(shape.shape, -7, shape.dtype), shapes)
    params, about = parent.read(built, shapes, lambda: fresh, told.append)
    return params, about, "\n".join(told)


@pytest.mark.parametrize(
    ("changes", "step", "field"),
    [
        ((), 3, "ema"),
        (("init.weights=live",), 3, "params"),
        (("init.checkpoint=1",), 1, "ema"),
        (("init.checkpoint=best", "optimizer.learning_rate=0.1", "objective.name=standard", "batch_size=8"), 2, "ema"),
    ],
)
def test_a_run_begins_with_the_weights_that_are_named(saved, changes, step, field):
    workdir, states = saved
    params, about, told = read(workdir, *changes)
    jax.tree.map(np.testing.assert_array_equal, params, getattr(states[step], field))
    assert about["step"] == step and not about["partial"] and not told


def test_arrays_that_do_not_fit_are_named_and_may_begin_at_random(saved):
    """Those of a network that generates, which is given no condition."""
    workdir, states = saved
    changes = "task.name=unconditional", "task.residual=False", "objective.kind=v"
    with pytest.raises(
        UserError, match=r"1 of \d+ arrays do not fit.*(\n.*)*conv_in.*\(3, 3, 24, 8\) -> \(3, 3, 12, 8\)"
    ):
        read(workdir, *changes)
    params, about, told = read(workdir, *changes, "init.partial=True")
    named, theirs = integrity.named_leaves(params), integrity.named_leaves(states[3].ema)
    random = [name for name, leaf in named.items() if np.all(leaf == -7)]
    assert len(random) == 1 and "conv_in" in random[0] and random[0] in told and about["partial"]
    for name in named.keys() - set(random):
        np.testing.assert_array_equal(named[name], theirs[name])


@pytest.mark.parametrize(
    ("which", "reason"),
    [("9", "no checkpoint of step 9; steps: 1, 2, 3"), ("newest", "say latest, best or a step"), ("-1", "say latest")],
)
def test_checkpoints_that_are_not_there_are_refused(saved, which, reason):
    workdir, _ = saved
    with pytest.raises(UserError, match=reason):
        read(workdir, f"init.checkpoint={which}")
    with pytest.raises(UserError, match=reason):
        trained.load(workdir, (), which)


def test_the_best_has_the_lowest_loss(saved):
    workdir, _ = saved
    assert [trained.load(workdir, (), which).step for which in ("best", "1", "latest")] == [2, 1, 3]


def test_a_run_of_no_steps_is_its_parent_to_the_bit(saved, tmp_path):
    workdir, states = saved
    tests = str(tiny.ROOT / "tests")
    (tmp_path / "c.py").write_text(
        f"import sys\nsys.path.insert(0, {tests!r})\nimport tiny\nfrom ml_collections import ConfigDict\n\n"
        "def get_config():\n    return ConfigDict(tiny.tiny_config().to_dict())\n"
    )
    command = "train", "--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "child"), "--config.steps=0"
    assert main([*command, "--init_from", str(workdir), "--checkpoint", "2"]) == 0
    model = trained.load(tmp_path / "child")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(model.params), states[2].ema)
    about = json.loads((tmp_path / "child" / "parent.json").read_text())
    assert about["step"] == 2 and about["sha256"] == integrity.digest(states[2].ema)
