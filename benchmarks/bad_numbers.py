"""What training does when numbers go wrong, seen by putting wrong ones in.

    python -m benchmarks.bad_numbers

trains a tiny network on CPU, again and again. In step 11 the gradient, the loss or a picture (after it was turned into
floating point) is made NaN, under each policy; what a rollback leaves is compared, to the bit, with a run that left the
step out from its start, and with one that was killed after its rollback and repeated. Then one gradient is made a
thousand times too large, which breaks the weights though every number is finite. Writes a table to benchmarks/results/,
and exits with 1 where something else happened than should.
"""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import report
from configs import base
from dream_jax import experiment
from dream_jax.config import checks, command_line
from dream_jax.data import batches, sources
from dream_jax.errors import UserError
from dream_jax.runtime import sharding
from dream_jax.training import loop, train_step
from dream_jax.training.run import Run, open_run

STEP, STEPS = 11, 24
CHANGES = (
    *("image_size=16", "batch_size=4", "log_every=4", "checkpoint.every=6", "samples.every=1000", "samples.steps=1"),
    *("task.name=unconditional", "schedule.num_steps=100", "network.channels=8", "network.channel_multipliers=1,"),
    *("network.num_res_blocks=1", "network.norm_groups=4", "network.attention_resolutions=()", "samples.count=2"),
    *("evaluation.samplers=ddim,", "evaluation.steps=1,", "evaluation.pictures=2", "optimizer.learning_rate=1e-3"),
)
COLLAPSE = (
    *("steps=96", "optimizer.name=sgd", "optimizer.learning_rate=0.05", "batch_size=16", "checkpoint.every=16"),
    *("log_every=8", "watch.warmup=20", "watch.memory=50", "objective.distance=l1"),
)
COLLAPSE_STEP = 53


@jax.custom_vjp
def _amplify(params, factor):
    """params, to whose gradient the factor is applied."""
    return params


_amplify.defvjp(
    lambda params, factor: (params, factor),
    lambda factor, gradient: (jax.tree.map(lambda g: g * factor, gradient), jnp.zeros_like(factor)),
)


@contextlib.contextmanager
def wrong(place: str, step: int, factor: float = float("nan")):
    """Within it, training meets a wrong number in step `step`, counted from 1.

    place is "gradient" or "loss", which are multiplied by the factor, or "picture", of which one value becomes NaN.
    """
    make_losses, call = train_step.make_losses, batches.Batches.__call__

    def make_wrong_losses(*arguments):
        losses = make_losses(*arguments)

        def wrong_losses(params, batch, number, rectify):
            applied = jnp.where(number == step - 1, factor, 1.0)
            loss, facts = losses(_amplify(params, applied) if place == "gradient" else params, batch, number, rectify)
            # Added, as the gradient stays finite.
            return loss + jax.lax.stop_gradient(applied - 1.0) if place == "loss" else loss, facts

        return wrong_losses

    def wrong_batch(self, k):
        batch = call(self, k)
        if k == step - 1:
            image = batch["image"].astype(jnp.float32).at[1, 2, 3, 0].set(jnp.nan)
            batch = batch | {"image": jax.device_put(image, batch["image"].sharding)}
        return batch

    with contextlib.ExitStack() as stack:
        if place == "picture":
            stack.enter_context(mock.patch.object(batches.Batches, "__call__", wrong_batch))
        else:
            stack.enter_context(mock.patch.object(train_step, "make_losses", make_wrong_losses))
        yield


def config_of(*changes):
    given = [f"--config.{change}" for change in (*CHANGES, *changes)]
    return checks.validate(command_line.override(base.get_config(), given))


def run(config, workdir):
    """(state or None, error or None, what was said), of a run without its pictures and its evaluation."""
    said = []
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        built, source = experiment.build(config), sources.open_source(config, "train")
        training = open_run(built, source, sharding.make_mesh(), workdir, said.append)
        loop.loop(training, lambda params: np.zeros((8, 8, 3), np.uint8), Console(quiet=True))
        return training.state, None, said
    except UserError as error:
        return None, str(error), said


def same(a, b) -> bool:
    equal = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return all(jax.tree.leaves(equal))


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def listed(path):
    return json.loads(path.read_text()) if path.exists() else []


def killed(config, workdir, step):
    """Runs until, after a rollback, the batch of a step is asked for, as if it were killed there."""
    call, rolled_back = batches.Batches.__call__, []

    def stopping(self, k):
        if rolled_back and k == step - 1:
            raise KeyboardInterrupt
        return call(self, k)

    roll_back = Run.roll_back

    def recorded(self, verdict):
        roll_back(self, verdict)
        rolled_back.append(self.step)

    with (
        mock.patch.object(batches.Batches, "__call__", stopping),
        mock.patch.object(Run, "roll_back", recorded),
        contextlib.suppress(KeyboardInterrupt),
    ):
        run(config, workdir)
    return bool(rolled_back)


def of_place(place, folder):
    """A row for each policy, and whether all is as it should be."""
    rows, good = [], True
    left_out = folder / "left out"
    left_out.mkdir(parents=True)
    (left_out / "skipped_steps.json").write_text(f"[{STEP}]")
    with wrong(place, STEP):
        expected, _, _ = run(config_of(f"steps={STEPS}", "watch.not_finite=stop"), left_out)
        for policy in ("stop", "skip", "rollback"):
            workdir, config = folder / policy, config_of(f"steps={STEPS}", f"watch.not_finite={policy}")
            state, error, _ = run(config, workdir)
            skipped = sorted({step for line in lines(workdir) for step in line.get("skipped_steps", [])})
            row = {"place": place, "policy": policy, "log ends at": lines(workdir)[-1]["step"]}
            row |= {"checkpoints": sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())}
            row |= {"logged as skipped": skipped, "skipped_steps.json": listed(workdir / "skipped_steps.json")}
            row["rollbacks"] = (
                len((workdir / "rollbacks.jsonl").read_text().splitlines()) if policy == "rollback" else 0
            )
            row["batch kept"] = (workdir / "bad_batches" / f"step_{STEP:07d}.npz").exists()
            row["error"] = error
            row["as left out from the start"] = None
            if policy == "stop":
                fine = error is not None and error.startswith(f"step {STEP}: ") and row["checkpoints"] == [6]
            else:
                row["as left out from the start"] = fine = same(state, expected) and lines(workdir) == lines(left_out)
                fine = fine and skipped == [STEP] and row["rollbacks"] == (policy == "rollback")
            rows.append(row)
            good &= fine and row["batch kept"]
        workdir = folder / "killed"
        config = config_of(f"steps={STEPS}", "watch.not_finite=rollback")
        was_killed = killed(config, workdir, STEPS - 4)
        state, _, _ = run(config, workdir)
        rows[-1]["killed after it, repeated: the same"] = was_killed and same(state, expected)
        rows[-1]["killed after it, repeated: the same"] &= lines(workdir) == lines(left_out)
        good &= rows[-1]["killed after it, repeated: the same"]
    return rows, good


def of_collapse(folder):
    rows = []
    for injected, rise in ((False, "warn"), (True, "warn"), (True, "rollback")):
        workdir = folder / f"{injected} {rise}"
        with wrong("gradient", COLLAPSE_STEP, 1000.0 if injected else 1.0):
            _, error, said = run(config_of(*COLLAPSE, f"watch.rise={rise}"), workdir)
        logged = lines(workdir)
        warnings = [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")]
        row = {"injected": injected, "rise": rise, "said": warnings, "error": error}
        row["skipped_steps.json"] = listed(workdir / "skipped_steps.json")
        before = np.mean([line["loss"] for line in logged if 24 <= line["step"] <= 48])
        row |= {"loss before": float(before), "loss at the end": logged[-1].get("loss")}
        rows.append(row)
    usual, warned, back = rows
    good = not usual["said"] and len(warned["said"]) == 1 and COLLAPSE_STEP in back["skipped_steps.json"]
    end = "loss at the end"
    good &= warned[end] > 1.1 * usual[end] > back[end]
    return rows, good and all(row["error"] is None for row in rows)


def page(rows, collapse, good):
    def cell(value):
        if isinstance(value, bool):
            return "yes" if value else "no"
        return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)

    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("error",)))
    table = "\n".join("| " + " | ".join(cell(row.get(name)) for name in names) + " |" for row in rows)
    error = next(row["error"] for row in rows if row["error"])
    falls = "\n".join(
        f"| {'1000 times too large' if row['injected'] else 'as it is'} | {row['rise']} | {row['loss before']:.3f} | "
        f"{row['loss at the end']:.3g} | {cell(row['skipped_steps.json'])} | {'; '.join(row['said'])} |"
        for row in collapse
    )
    return f"""# Numbers that go wrong

`python -m benchmarks.bad_numbers` on CPU, jax {jax.__version__}. A tiny network, {STEPS} steps, a look at the numbers
every 4 and a checkpoint every 6. In step {STEP} one thing is NaN.

| {" | ".join(names)} |
|{"---|" * len(names)}
{table}

The state and `metrics.jsonl` are compared, to the bit, with a run whose `skipped_steps.json` held [{STEP}] from the
start. What `stop` says:

    {error.replace(chr(10), chr(10) + "    ")}

A collapse: SGD, 96 steps, and a gradient in step {COLLAPSE_STEP} that is 1000 times too large. All numbers stay finite.

| its gradient | watch.rise | loss, steps 17 to 48 | loss, last 8 steps | skipped_steps.json | said |
|---|---|---|---|---|---|
{falls}

{"All as it should be." if good else "NOT AS IT SHOULD BE."}
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_disable_most_optimizations", True)
        jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        # Messages name the workdir; as a relative path it is the same for everybody.
        os.chdir(folder)
        results = [of_place(place, Path(place)) for place in ("gradient", "loss", "picture")]
        collapse, fell_well = of_collapse(Path("collapse"))
        os.chdir("/")
    rows = [row for rows, _ in results for row in rows]
    good = fell_well and all(good for _, good in results)
    record = {"jax": jax.__version__, "step": STEP, "rows": rows, "collapse_step": COLLAPSE_STEP, "collapse": collapse}
    report.write("bad_numbers", page(rows, collapse, good), record | {"good": bool(good)})
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
