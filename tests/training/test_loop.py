import contextlib
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from rich.console import Console

from dream_jax import experiment
from dream_jax.data import batches, bundled, sources
from dream_jax.errors import UserError
from dream_jax.runtime import sharding, stopping
from dream_jax.training import bad_step_files, flat, loop, train_state
from dream_jax.training.bad_numbers import QUARTILES
from dream_jax.training.run import open_run

QUIET = Console(quiet=True)
BATCH, SIZE = 4, 16


@pytest.fixture
def begin(monkeypatch):
    """`begin(workdir, *changes, nan=(), breaks=None) -> Run`, done to its end, of one weight to which every step adds.

    Steps of `nan` have a loss that is not finite; step `breaks` breaks the weight, and the losses after it are large.
    """

    def start_state(built, optimizer, mesh):
        def init():
            return train_state.start({"w": jnp.zeros(())}, optimizer)

        return jax.jit(init), sharding.state_specs(jax.eval_shape(init), mesh)

    def make_train_step(wrong, *_):
        def train_step(state, batch, rectify):
            number = int(state.step) + 1
            broken = weight(state) > 1e6
            loss = np.float32(np.nan if number in wrong["nan"] else 100 if broken else 1 + 0.1 * (-1) ** number)
            counts = np.ones(QUARTILES, np.float32)
            metrics = {name: loss for name in ("loss", "gradient_norm", "update_norm", "eps_error", "lam")}
            metrics |= {"level_losses": counts * loss, "level_counts": counts}
            if np.isfinite(loss):
                change = 1e9 if number == wrong["breaks"] else number
                state = state.replace(params=jax.tree.map(lambda a: a + change, state.params))
            return state.replace(step=state.step + 1), metrics

        return train_step

    def begin(workdir, *changes, nan=(), breaks=None):
        monkeypatch.setattr("dream_jax.training.run.start_state", start_state)
        wrong = functools.partial(make_train_step, {"nan": nan, "breaks": breaks})
        monkeypatch.setattr("dream_jax.training.run.make_train_step", wrong)
        common = "steps=40", "log_every=4", "checkpoint.every=6", "checkpoint.keep=9", "samples.every=100"
        common = *common, "watch.warmup=10", "watch.memory=20"
        built = experiment.build(tiny.tiny_config(*tiny.SMALL, *common, *changes))
        workdir.mkdir(exist_ok=True)
        said = []
        run = open_run(built, sources.open_source(built.config, "train"), sharding.make_mesh(), workdir, said.append)
        loop.loop(run, lambda params: np.zeros((8, 8, 3), np.uint8), QUIET)
        run.said = said
        return run

    return begin


def weight(state):
    return float(flat.trees(state.params)["w"])


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def ends_as(run, other):
    jax.tree.map(np.testing.assert_array_equal, run.state, other.state)
    assert run.stats | {"in_a_row": 0} == other.stats
    assert (run.workdir / "metrics.jsonl").read_text() == (other.workdir / "metrics.jsonl").read_text()


def left_out_from_the_start(begin, workdir, steps, *changes, **wrong):
    workdir.mkdir()
    (workdir / "skipped_steps.json").write_text(json.dumps(steps))
    run = begin(workdir, *changes, **wrong)
    assert not (workdir / "rollbacks.jsonl").exists()
    return run


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, begin, monkeypatch):
    changes = "data.flip=True", "samples.every=5", "checkpoint.every=10"
    straight = begin(tmp_path / "straight", *changes)

    def interrupted(self, k, call=batches.Batches.__call__):
        if k == 13:
            raise KeyboardInterrupt
        return call(self, k)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batches.Batches, "__call__", interrupted)
        begin(tmp_path / "stopped", *changes)
    assert saved_steps(tmp_path / "stopped") == [10]
    written = (tmp_path / "stopped" / "metrics.jsonl").read_text()
    ends_as(begin(tmp_path / "stopped", *changes), straight)
    metrics = (tmp_path / "straight" / "metrics.jsonl").read_text()
    assert metrics.startswith(written) and '"step": 12' in written
    # A line is written before every checkpoint, too.
    steps = [json.loads(line)["step"] for line in metrics.splitlines()]
    assert steps == sorted({*range(4, 41, 4), *range(10, 41, 10)})


def test_a_run_stops_at_a_step_that_is_not_finite(tmp_path, begin):
    with pytest.raises(UserError, match=r"^step 11: .*not finite, and the step not applied") as error:
        begin(tmp_path / "run", nan=(11,))
    source = bundled.photographs("train")
    with np.load(tmp_path / "run" / "bad_batches" / "step_0000011.npz") as kept:
        pictures = batches.train_pictures(source, 0, SIZE)
        np.testing.assert_array_equal(kept["image"], [pictures[10 * BATCH + row] for row in range(BATCH)])
        # What it is called is what it was cut from.
        for picture, index, name in zip(kept["image"], kept["index"], kept["name"], strict=True):
            assert name == source.label(index) and name in str(error.value)
            crops = np.lib.stride_tricks.sliding_window_view(source[index], picture.shape)
            assert (crops == picture).all((-3, -2, -1)).any()
    assert (tmp_path / "run" / "bad_batches" / "step_0000011.png").exists()
    assert saved_steps(tmp_path / "run") == [6] and "the last checkpoint is of step 6" in str(error.value)
    # The same run may go on with another policy.
    run = begin(tmp_path / "run", "watch.not_finite=skip", nan=(11,))
    ends_as(run, left_out_from_the_start(begin, tmp_path / "left_out", [11]))


@pytest.mark.parametrize("step", [2, 11, 18, 40])
def test_a_step_that_is_not_finite_is_skipped_or_rolled_back(tmp_path, begin, step):
    expected = left_out_from_the_start(begin, tmp_path / "left_out", [step])
    skipped = begin(tmp_path / "skip", "watch.not_finite=skip", nan=(step,))
    ends_as(skipped, expected)
    assert not (tmp_path / "skip" / "skipped_steps.json").exists()
    rolled_back = begin(tmp_path / "rollback", "watch.not_finite=rollback", nan=(step,))
    ends_as(rolled_back, expected)
    (record,) = lines(tmp_path / "rollback" / "rollbacks.jsonl")
    assert record["steps"] == [step] and record["to"] == (step - 1) // 6 * 6
    assert json.loads((tmp_path / "rollback" / "skipped_steps.json").read_text()) == [step]
    (line,) = (line for line in lines(tmp_path / "rollback" / "metrics.jsonl") if line["skipped"])
    assert line["skipped"] == 1 and line["skipped_steps"] == [step] and line["step"] - 4 < step <= line["step"]
    for workdir in (tmp_path / "skip", tmp_path / "rollback"):
        assert [path.name for path in workdir.glob("bad_batches/*.npz")] == [f"step_{step:07d}.npz"]


@pytest.mark.parametrize("killed_in", ["record", "write", "a later step"])
def test_a_run_that_is_killed_about_its_rollback_and_repeated_ends_the_same(tmp_path, begin, monkeypatch, killed_in):
    changes, wrong = (
        ("watch.not_finite=rollback", "watch.rise=rollback"),
        {"nan": (11, 38), "breaks": 23},
    )
    straight = begin(tmp_path / "straight", *changes, **wrong)
    assert {11, 23, 24, 38} <= straight.skipped
    ends_as(
        straight, left_out_from_the_start(begin, tmp_path / "left_out", sorted(straight.skipped), *changes, **wrong)
    )

    def kill(*arguments):
        raise KeyboardInterrupt

    def killed_at(step, call=batches.Batches.__call__):
        return lambda self, k: kill() if k == step else call(self, k)

    for interruption in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            if killed_in == "a later step":
                patch.setattr(batches.Batches, "__call__", killed_at(16 * interruption))
            else:
                patch.setattr(bad_step_files, killed_in, kill)
            begin(tmp_path / "killed", *changes, **wrong)
        # The workdir's own list is lost; the checkpoints know.
        if killed_in == "a later step" and interruption == 2:
            (tmp_path / "killed" / "skipped_steps.json").unlink()
    killed = begin(tmp_path / "killed", *changes, **wrong)
    ends_as(killed, straight)
    assert json.loads((tmp_path / "killed" / "skipped_steps.json").read_text()) == sorted(straight.skipped)


def test_a_rise_is_rolled_back_to_before_it_past_checkpoints_that_hold_it(tmp_path, begin):
    changes = "watch.rise=rollback", "checkpoint.every=2", "log_every=100"
    run = begin(tmp_path / "run", *changes, breaks=23)
    (record,) = lines(tmp_path / "run" / "rollbacks.jsonl")
    assert record["steps"][:2] == [23, 24] and record["to"] == 22 and record["at"] > 26
    assert weight(run.state) < 1e6
    # They are moved aside, not lost.
    assert sorted(path.name for path in (tmp_path / "run" / "rolled_back").iterdir()) == [
        f"{step}-1" for step in range(24, record["at"], 2)
    ]
    assert not (tmp_path / "run" / "damaged").exists()
    assert 24 in saved_steps(tmp_path / "run")
    with pytest.raises(UserError, match="no whole checkpoint before step 23"):
        begin(tmp_path / "none", *changes, "checkpoint.keep=1", breaks=23)


def test_a_rise_is_warned_of(tmp_path, begin):
    run = begin(tmp_path, breaks=23)
    assert [line for line in run.said if "the loss has risen since step 24" in line]
    assert not run.skipped and weight(run.state) > 1e6


def test_a_run_that_comes_no_further_stops(tmp_path, begin):
    changes = "watch.not_finite=rollback", "watch.limit=3", "log_every=1"
    with pytest.raises(UserError, match="rolled back to step 6 3 times"):
        begin(tmp_path, *changes, nan=range(8, 20))
    assert json.loads((tmp_path / "skipped_steps.json").read_text()) == [8, 9, 10]
    # Nor when it is repeated.
    with pytest.raises(UserError, match="rolled back to step 6 3 times"):
        begin(tmp_path, *changes, nan=range(8, 20))
    with pytest.raises(UserError, match=r"3 steps in a row.*weights"):
        begin(tmp_path / "skip", "watch.not_finite=skip", "watch.limit=3", nan=range(8, 20))


def test_a_signal_before_a_rollback_saves_nothing_of_what_is_rolled_back(tmp_path, begin, monkeypatch):
    asked = iter([None] * 11 + [15])
    with monkeypatch.context() as patch, pytest.raises(stopping.Stopped):
        patch.setattr(stopping, "asked", lambda tell: contextlib.nullcontext(lambda: next(asked)))
        begin(tmp_path / "run", "watch.not_finite=rollback", nan=(11,))
    assert saved_steps(tmp_path / "run") == [6]
    run = begin(tmp_path / "run", "watch.not_finite=rollback", nan=(11,))
    ends_as(run, left_out_from_the_start(begin, tmp_path / "left_out", [11]))


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_signal_amid_a_window_keeps_what_was_skipped_in_it(tmp_path, begin, monkeypatch, policy):
    nan = (11,) if policy == "skip" else (9,)
    asked = iter([None] * (11 if policy == "skip" else 12 + 4 + 5) + [15])
    changes = f"watch.not_finite={policy}", "log_every=20", "checkpoint.every=12"
    with monkeypatch.context() as patch, pytest.raises(stopping.Stopped):
        patch.setattr(stopping, "asked", lambda tell: contextlib.nullcontext(lambda: next(asked)))
        begin(tmp_path / "run", *changes, nan=nan)
    assert saved_steps(tmp_path / "run")[-1] in (9, 11)
    run = begin(tmp_path / "run", *changes, nan=nan)
    ends_as(run, left_out_from_the_start(begin, tmp_path / "left_out", list(nan), *changes))


def test_a_bad_list_of_skipped_steps_is_named(tmp_path, begin):
    (tmp_path / "skipped_steps.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"skipped_steps.json: must be a list"):
        begin(tmp_path)
