import contextlib
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding
from rich.console import Console

from benchmarks import agreement, bad_numbers
from dream_jax import commands, experiment
from dream_jax.data import batches, sources
from dream_jax.errors import UserError
from dream_jax.runtime import sharding, stopping
from dream_jax.training import checkpoint, loop, train_state, watch
from dream_jax.training import run as runs
from dream_jax.training.optimizer import make_optimizer
from dream_jax.training.train_step import QUARTILES, make_losses, make_train_step, rectifies, start_state

QUIET = Console(quiet=True)
BATCH, SIZE, EPOCH = 4, 16, 5
SMALL = (
    "image_size=16",
    "batch_size=4",
    "network.dropout=0.2",
    "data.flip=False",
    "objective.distance=l1",
    "network.channel_multipliers=1,",
)
CONSERVATIVE = (
    *("objective.name=conservative_dream", "objective.kind=eps", "task.name=unconditional", "task.residual=False"),
    *("objective.distance=l2", "objective.minimum=0.1", "objective.maximum=0.5", "objective.ramp_epochs=20"),
    *("objective.start_epoch=10", "schedule.continuous=False"),
)


def small(*changes):
    return experiment.build(tiny.tiny_config(*SMALL, *changes))


def losses_of(built):
    return make_losses(built, jax.random.key(7, impl="threefry2x32"), EPOCH)


def batch_of(rows):
    """The pictures of a step's rows: each a function of its row."""
    pictures = np.random.default_rng(3).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    return {"image": jnp.asarray(pictures[np.asarray(rows)]), "row": jnp.asarray(rows, jnp.int32)}


def weights(built):
    create = functools.partial(train_state.create, built.network, optax.sgd(0.1), jax.random.key(0))
    shapes = jax.eval_shape(lambda: create(built.inputs_shape()).params)
    return jax.tree.map(jnp.asarray, agreement.weights(shapes))


def lowered(built, rectify=True):
    """The gradient of the mean loss, as a program not yet compiled."""
    losses = losses_of(built)
    gradient = jax.jit(jax.value_and_grad(lambda params, batch, step: losses(params, batch, step, rectify)[0].mean()))
    return gradient.lower(weights(built), batch_of(range(BATCH)), jnp.int32(0))


def test_p_none_is_the_standard_objective_to_the_letter():
    standard, off, on = (
        lowered(small(change)) for change in ("objective.name=standard", "objective.p=None", "objective.p=1.0")
    )
    # The same program has the same loss and gradient to the bit.
    assert off.as_text() == standard.as_text() != on.as_text()
    # Forward and backward are three passes, and the self-estimate is a fourth.
    assert on.cost_analysis()["flops"] / standard.cost_analysis()["flops"] == pytest.approx(4 / 3, rel=0.05)


def test_conservative_dream_is_the_standard_objective_before_its_start():
    conservative = small(*CONSERVATIVE)
    standard = small(*CONSERVATIVE, "objective.name=standard")
    assert lowered(conservative, rectify=False).as_text() == lowered(standard).as_text()
    assert [rectifies(conservative.config, step, EPOCH) for step in (0, 49, 50, 99)] == [False, False, True, True]


class Recorder:
    """A network of one number, that keeps what it is given."""

    def __init__(self):
        self.calls = []

    def apply(self, variables, inputs, level, dropout_keys=None):
        # The condition comes first.
        x = inputs[..., -3:]
        output = jnp.tanh(variables["params"] * x)
        self.calls.append((np.float64(x), np.float64(level), np.float64(output), dropout_keys))
        return output


@pytest.mark.parametrize("step", [50, 73, 120])
def test_conservative_dream_from_its_start_is_the_mix_by_the_formulas(step):
    recorder = Recorder()
    built = small(*CONSERVATIVE)._replace(network=recorder)
    batch = batch_of(range(8))
    loss, facts = losses_of(built)(jnp.float32(0.7), batch, jnp.int32(step), True)
    (x_t, alpha, eps_hat, first), (x_rect, _, second_hat, second) = recorder.calls

    ramp = min(step // EPOCH / 20, 1)
    lam = 0.1 + 0.4 * (np.float64(facts["t"]) - 1) / built.schedule.num_steps * ramp
    np.testing.assert_allclose(facts["lam"], lam, rtol=1e-5)
    np.testing.assert_array_equal(alpha, np.float32(built.schedule.alpha[facts["t"]]))

    x0 = np.float64(batch["image"]) / 127.5 - 1
    alpha, sigma, lam = (v[:, None, None, None] for v in (alpha, built.schedule.sigma[facts["t"]], lam))
    eps = (x_t - alpha * x0) / sigma
    x0_hat = np.clip((x_t - sigma * eps_hat) / alpha, -1, 1)
    np.testing.assert_allclose(x_rect, alpha * (lam * x0_hat + (1 - lam) * x0) + sigma * eps, atol=1e-4)
    mix = 0.7 * (eps_hat - eps) ** 2 + 0.3 * (second_hat - eps) ** 2
    np.testing.assert_allclose(loss, mix.mean((1, 2, 3)), rtol=1e-3)
    assert not np.any(jax.random.key_data(first) == jax.random.key_data(second))


def test_first_pass_has_no_dropout_and_sees_the_plain_noise():
    recorder = Recorder()
    built = small("task.residual=False", "objective.kind=eps")._replace(network=recorder)
    _, facts = losses_of(built)(jnp.float32(0.7), batch_of(range(4)), jnp.int32(3), True)
    (x_t, alpha, eps_hat, keys), (rectified, _, _, dropout_keys) = recorder.calls
    assert keys is None and dropout_keys is not None
    # x_t and its rectified form differ by sigma lam (eps - eps_hat), with lam = sigma at p = 1.
    sigma = np.sqrt(1 - alpha**2)
    x0 = np.float64(batch_of(range(4))["image"]) / 127.5 - 1
    alpha, sigma = (v[:, None, None, None] for v in (alpha, sigma))
    eps = (x_t - alpha * x0) / sigma
    np.testing.assert_allclose(rectified - x_t, sigma**2 * (eps - eps_hat), atol=1e-3)
    np.testing.assert_allclose(facts["lam"], sigma[:, 0, 0, 0], rtol=1e-3)


def test_an_example_is_a_function_of_its_row_and_the_step_only():
    built = small()
    losses = losses_of(built)
    params = weights(built)
    with tiny.quick_compiles():
        run = jax.jit(lambda batch, step: losses(params, batch, step, True))
        whole = run(batch_of(range(8)), jnp.int32(3))
        order = [5, 2, 7, 0, 1, 6, 3, 4]
        permuted = run(batch_of(order), jnp.int32(3))
        half = run(batch_of(range(4)), jnp.int32(3))
        later = run(batch_of(range(4)), jnp.int32(4))
    for a, b in zip(jax.tree.leaves(permuted), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b[np.array(order)], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b[:4], rtol=1e-5)
    assert not np.any(np.isclose(later[0], half[0], rtol=1e-5))


class Scaled:
    """A network of one number that can be differentiated, and that depends on the level."""

    def apply(self, variables, inputs, level, dropout_keys=None):
        return jnp.tanh(variables["params"] * inputs[..., -3:] + level[:, None, None, None])


def test_a_share_of_the_pictures_trains_on_the_rectified_pair_and_the_others_on_the_standard_one():
    share, rows = 0.75, [0, 1, 2, 4, 5, 6]
    batch, step, params = batch_of(range(8)), jnp.int32(3), jnp.float32(0.7)
    others = np.setdiff1d(range(8), rows)

    def per_example(change, rectify=True):
        losses = losses_of(small(change, "batch_size=8")._replace(network=Scaled()))

        @jax.jit
        def both(params):
            gradient = jax.jacobian(lambda params: losses(params, batch, step, rectify)[0])(params)
            return losses(params, batch, step, rectify), gradient

        return both(params)

    ((loss, facts), gradient), full, standard = (
        per_example(f"objective.estimate_share={share}"),
        per_example("objective.estimate_share=1"),
        per_example("objective.estimate_share=1", rectify=False),
    )
    for chosen, ((their_loss, their_facts), their_gradient) in ((rows, full), (others, standard)):
        chosen = np.array(chosen)
        np.testing.assert_allclose(loss[chosen], their_loss[chosen], rtol=1e-5)
        np.testing.assert_allclose(gradient[chosen], their_gradient[chosen], rtol=1e-5)
        for name in facts:
            np.testing.assert_allclose(facts[name][chosen], their_facts[name][chosen], rtol=1e-5)
    assert not np.any(np.isclose(full[0][0], standard[0][0], rtol=1e-4))


def test_the_cheaper_self_estimates_cost_what_they_promise():
    standard = lowered(small(), rectify=False).cost_analysis()["flops"]
    for share, pick in ((0.25, "random"), (0.5, "heaviest")):
        cheaper = lowered(small(f"objective.estimate_share={share}", f"objective.estimate_pick={pick}"))
        assert cheaper.cost_analysis()["flops"] / standard == pytest.approx(1 + share / 3, rel=0.03)


def test_at_their_defaults_the_cheaper_self_estimates_leave_the_program_as_it_is():
    default = lowered(small()).as_text()
    same = "objective.estimate_share=1", "objective.estimate_pick=heaviest", "objective.estimate_dtype=float32"
    assert lowered(small(*same)).as_text() == default
    # With it the estimate alone is computed in other precision: the program that is differentiated has no bfloat16.
    cheaper = lowered(small("objective.estimate_dtype=bfloat16")).as_text()
    assert "bf16" in cheaper and "bf16" not in default
    count = cheaper.count("stablehlo.convolution"), default.count("stablehlo.convolution")
    in_bfloat16 = [line for line in cheaper.splitlines() if "stablehlo.convolution" in line and "bf16" in line]
    assert count[0] == count[1] and 0 < len(in_bfloat16) < count[1] / 3


def test_which_pictures_are_estimated_does_not_depend_on_how_the_batch_is_cut():
    built = small("objective.estimate_share=0.5", "objective.estimate_pick=heaviest", "batch_size=8")
    losses, params = losses_of(built), weights(built)
    with tiny.quick_compiles():
        run = jax.jit(lambda batch: losses(params, batch, jnp.int32(3), True))
        whole = run(batch_of(range(8)))
        # All of one shape, so that one program serves them.
        for rows in ([0, 1], [4, 5], [6, 7]):
            part = run(batch_of(rows))
            for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
                np.testing.assert_allclose(a, b[np.array(rows)], rtol=1e-5)
    assert np.count_nonzero(whole[1]["lam"]) == 4


def test_steps_that_rectify():
    def steps(*changes, count=12):
        config = tiny.tiny_config(*changes)
        return [step for step in range(count) if rectifies(config, step, EPOCH)]

    assert steps() == list(range(12))
    assert steps("objective.estimate_every=4") == [0, 4, 8]
    assert steps("objective.start_step=7") == [7, 8, 9, 10, 11]
    assert steps("objective.start_step=7", "objective.start_epoch=2") == [10, 11]
    assert steps("objective.start_epoch=1", "objective.estimate_every=3") == [6, 9]


def make_stepper():
    """(train_step, start, batch): a train step of two microbatches, and what to feed it."""
    built = small("accumulation=2", "optimizer.learning_rate=0.01", "ema_decay=0.5")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(built.config.optimizer)
    state = train_state.start(weights(built), optimizer)
    specs = sharding.state_specs(state, mesh)
    state = jax.device_put(state, sharding.named(specs, mesh))
    train_step = make_train_step(built, optimizer, mesh, specs, EPOCH)
    batch = jax.device_put(batch_of(range(BATCH)), NamedSharding(mesh, sharding.BATCH))
    return train_step, lambda: jax.tree.map(jnp.copy, state), batch


@pytest.fixture(scope="module")
def stepper():
    with tiny.quick_compiles():
        yield make_stepper()


def test_a_step_reduces_once_outside_the_loop_over_microbatches(stepper):
    train_step, make, batch = stepper

    def names(jaxpr, within=False):
        for equation in jaxpr.eqns:
            if within:
                yield equation.primitive.name
            inner = within or equation.primitive.name in ("scan", "while")
            for value in equation.params.values():
                for sub in value if isinstance(value, (tuple, list)) else [value]:
                    sub = getattr(sub, "jaxpr", sub)
                    if hasattr(sub, "eqns"):
                        yield from names(sub, inner)

    looped = set(names(train_step.trace(make(), batch, True).jaxpr.jaxpr))
    assert "conv_general_dilated" in looped
    assert not [name for name in looped if name.startswith(("psum", "all_", "reduce_scatter", "ppermute"))]


def test_the_network_is_traced_once_for_the_estimate_and_once_for_the_gradient(monkeypatch):
    traced, predict = [], experiment.Experiment.predict
    monkeypatch.setattr(experiment.Experiment, "predict", lambda *given: traced.append(None) or predict(*given))
    train_step, make, batch = make_stepper()
    train_step.trace(make(), batch, True)
    assert len(traced) == 2


def test_a_step_donates_its_state(stepper):
    train_step, make, batch = stepper
    state = make()
    train_step(state, batch, True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_the_average_starts_as_a_copy_and_follows_the_weights(stepper):
    train_step, make, batch = stepper
    state = make()
    expected = jax.tree.map(np.asarray, state.params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, expected)
    for step in range(8):
        state, _ = train_step(state, batch, True)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * np.asarray(p), expected, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.ema, expected)
    assert int(state.step) == 8


def test_a_step_that_is_not_finite_is_not_applied(stepper):
    train_step, make, batch = stepper
    state, metrics = train_step(make(), batch, True)
    poisoned = state.replace(
        params=state.params | {"conv_in": jax.tree.map(lambda a: a * 1e38, state.params["conv_in"])}
    )
    before = jax.tree.map(np.asarray, poisoned)
    after, bad = train_step(poisoned, batch, True)
    assert not np.isfinite(bad["gradient_norm"])
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=before.step), before)
    assert int(after.step) == int(before.step) + 1
    metrics, bad = jax.device_get((metrics, bad))
    assert loop.summarise([metrics, bad, None, metrics], last=13) == (
        loop.summarise([metrics] * 2, last=2) | {"skipped": 2, "skipped_steps": [11, 12]}
    )


@pytest.mark.parametrize("place", ["gradient", "loss", "picture"])
def test_a_nan_in_one_place_is_not_applied(place):
    with bad_numbers.wrong(place, step=1), tiny.quick_compiles():
        train_step, make, batch = make_stepper()
        if place == "picture":
            batch = batches.Batches(np.asarray(batch["image"]).repeat(3, 0), BATCH, batch["image"].sharding)(0)
        state, metrics = train_step(make(), batch, True)
    before = jax.tree.map(np.asarray, make())
    jax.tree.map(np.testing.assert_array_equal, state.replace(step=before.step), before)
    assert np.isfinite(metrics["loss"]) == (place == "gradient")
    assert np.isfinite(metrics["gradient_norm"]) == (place == "loss")
    assert not watch.is_finite(jax.device_get(metrics))


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory):
    """Runs of the same programs share them."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs

    def keep(folder, seconds):
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
        # JAX decides once whether it has a cache.
        compilation_cache.reset_cache()

    keep(str(tmp_path_factory.mktemp("compiled")), 0.0)
    with tiny.quick_compiles():
        yield
    keep(*before)


def newest(config, workdir):
    """The newest checkpoint's state as it lies on the disk."""
    built = experiment.build(config)
    mesh = sharding.make_mesh()
    init, specs = start_state(built, make_optimizer(config.optimizer), mesh)
    layout = sharding.named(specs, mesh)
    return checkpoint.restore(workdir / "checkpoints", jax.eval_shape(init), layout, tell=pytest.fail)[0]


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, compile_once, monkeypatch):
    config = tiny.tiny_config(
        *SMALL,
        *("steps=20", "checkpoint.every=10", "log_every=4", "samples.every=5", "data.flip=True", "optimizer.clip=1.0"),
        *("optimizer.learning_rate=0.001", "optimizer.warmup_steps=5", "task.name=unconditional"),
    )
    straight = commands.train_and_evaluate(config, tmp_path / "straight", QUIET)

    batch = batches.Batches.__call__

    def interrupted(self, k):
        if k == 13:
            raise KeyboardInterrupt
        return batch(self, k)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batches.Batches, "__call__", interrupted)
        commands.train_and_evaluate(config, tmp_path / "stopped", QUIET)
    assert int(newest(config, tmp_path / "stopped").step) == 10
    written = (tmp_path / "stopped" / "metrics.jsonl").read_text()

    resumed = commands.train_and_evaluate(config, tmp_path / "stopped", QUIET)
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
    jax.tree.map(np.testing.assert_array_equal, newest(config, tmp_path / "stopped"), straight)
    metrics = (tmp_path / "straight" / "metrics.jsonl").read_text()
    assert (tmp_path / "stopped" / "metrics.jsonl").read_text() == metrics
    assert metrics.startswith(written) and '"step": 12' in written
    assert [line.split(",")[0] for line in metrics.splitlines()] == [
        f'{{"step": {step}' for step in (4, 8, 10, 12, 16, 20)
    ]


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
            broken = float(state.params["w"]) > 1e6
            loss = np.float32(np.nan if number in wrong["nan"] else 100 if broken else 1 + 0.1 * (-1) ** number)
            counts = np.ones(QUARTILES, np.float32)
            metrics = {name: loss for name in ("loss", "gradient_norm", "update_norm", "eps_error", "lam")}
            metrics |= {"level_losses": counts * loss, "level_counts": counts}
            if np.isfinite(loss):
                change = 1e9 if number == wrong["breaks"] else number
                state = state.replace(params={"w": state.params["w"] + change})
            return state.replace(step=state.step + 1), metrics

        return train_step

    def begin(workdir, *changes, nan=(), breaks=None):
        monkeypatch.setattr(runs, "start_state", start_state)
        monkeypatch.setattr(runs, "make_train_step", functools.partial(make_train_step, {"nan": nan, "breaks": breaks}))
        common = "steps=40", "log_every=4", "checkpoint.every=6", "checkpoint.keep=9", "samples.every=100"
        common = *common, "watch.warmup=10", "watch.memory=20"
        built = experiment.build(tiny.tiny_config(*SMALL, *common, *changes))
        workdir.mkdir(exist_ok=True)
        said = []
        run = runs.Run(built, experiment.make_source(built.config, "train"), sharding.make_mesh(), workdir, said.append)
        loop.loop(run, lambda params: np.zeros((8, 8, 3), np.uint8), QUIET)
        run.said = said
        return run

    return begin


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


def test_a_run_stops_at_a_step_that_is_not_finite(tmp_path, begin):
    with pytest.raises(UserError, match=r"^step 11: .*not finite, and not applied") as error:
        begin(tmp_path / "run", nan=(11,))
    source = sources.bundled("train")
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
                patch.setattr(runs.rollback, killed_in, kill)
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
    assert run.state.params["w"] < 1e6
    # They are moved aside, not lost.
    assert sorted(path.name for path in (tmp_path / "run" / "damaged").iterdir()) == [
        f"{step}-1" for step in range(24, record["at"], 2)
    ]
    assert 24 in saved_steps(tmp_path / "run")
    with pytest.raises(UserError, match="no whole checkpoint before step 23"):
        begin(tmp_path / "none", *changes, "checkpoint.keep=1", breaks=23)


def test_a_rise_is_warned_of(tmp_path, begin):
    run = begin(tmp_path, breaks=23)
    assert [line for line in run.said if "the loss has risen since step 24" in line]
    assert not run.skipped and run.state.params["w"] > 1e6


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


def test_a_checkpoint_of_other_data_or_of_another_config_is_not_continued():
    config = tiny.tiny_config().to_dict()
    about = {"config": config, "data": "2 pictures, crc32 00000001"}
    runs.check_origin(about, about, "here")
    runs.check_origin(about, about | {"config": config | {"steps": 9}}, "here")
    with pytest.raises(UserError, match="training pictures"):
        runs.check_origin(about, about | {"data": "3 pictures, crc32 00000001"}, "here")
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        runs.check_origin(about, about | {"config": config | {"seed": 1}}, "here")
    objective = {key: value for key, value in config["objective"].items() if not key.startswith("estimate_")}
    runs.check_origin(about | {"config": config | {"objective": objective}}, about, "here")


def test_a_share_of_pictures_that_does_not_divide_over_the_devices_is_refused():
    config = tiny.tiny_config("objective.estimate_share=0.5", "batch_size=8", "accumulation=2")
    loop.check_devices(config, 2)
    with pytest.raises(UserError, match=r"objective\.estimate_share = 0\.5: .* must divide by 2"):
        loop.check_devices(config, 4)
