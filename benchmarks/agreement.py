"""Does training depend on the devices, processes, accumulation or checkpointing it is computed with?

    python -m benchmarks.agreement

trains one small network for 20 steps in many ways, and holds each against one device with none of it. In float64 the
recipe's own loss must agree to 1e-9 of the distance that training moved, the whole tree and every leaf; in float32,
with a squared loss, the first gradient to 1e-5, then the tree to 1e-4 and a leaf to 1e-3. Three deliberate mistakes
must fail the same comparison. Prints a table, writes it to benchmarks/results/, and exits with 1 if anything is not as
it must be.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding

from benchmarks import report
from configs import base
from dream_jax import experiment
from dream_jax.config import checks
from dream_jax.data import batches
from dream_jax.optimizers import make_optimizer
from dream_jax.runtime import garbage, sharding
from dream_jax.training import flat, train_state
from dream_jax.training.train_step import make_train_step

BATCH, SIZE = 32, 16


class Form(NamedTuple):
    """How long which network trains: its channels are 8 times `multipliers`, one at each level.

    task: what it learns, by name.
    process: whether residuals are learnt on a schedule that ends in noise alone, where a quarter of the examples are.
    """

    steps: int
    multipliers: tuple[int, ...]
    process: bool = False
    task: str = "super_resolution"


# A network of one level attends once, in its middle. Compiling is most of what the short form costs.
# The short form's is a task that draws for every example, on a process that ends in noise alone.
LONG_FORM, SHORT_FORM = Form(20, (1, 2)), Form(3, (1,), process=True, task="denoising")
PROCESS_FORM = Form(3, (1,), process=True)


class Variant(NamedTuple):
    """One way to compute the same training; devices are those of all processes together."""

    devices: int = 1
    processes: int = 1
    shard: int = 1
    accumulation: int = 1
    remat: bool = False

    def __str__(self):
        count = f"{self.devices} devices" if self.devices > 1 else "1 device"
        if self.processes > 1:
            own = self.devices // self.processes
            count = f"{self.processes} processes x {own} {'devices' if own > 1 else 'device'}"
        options = {f"shard {self.shard}": self.shard > 1, "accumulation 4": self.accumulation == 4, "remat": self.remat}
        return ", ".join([count, *(name for name, on in options.items() if on)])


REFERENCE = Variant()
MUTATED = Variant(8, shard=2, accumulation=4, remat=True)
VARIANTS = (
    Variant(accumulation=4),
    Variant(remat=True),
    Variant(accumulation=4, remat=True),
    Variant(2),
    Variant(2, shard=2),
    Variant(2, accumulation=4),
    Variant(4),
    Variant(4, shard=2),
    Variant(4, shard=4),
    Variant(8),
    Variant(8, shard=2),
    Variant(8, shard=4),
    MUTATED,
    Variant(4, processes=2),
    Variant(4, processes=2, shard=2),
    Variant(4, processes=2, shard=2, accumulation=4, remat=True),
    Variant(4, processes=4),
    Variant(4, processes=4, shard=2),
    Variant(4, processes=4, shard=4),
)
SGD, ADAM = "sgd", "clip + adam"
GRADIENT, ROWS, NORM = "gradient n times too large", "rows numbered locally", "clipping by a per-shard norm"
# (mutant, optimizer). Adam, and clipping, hide a factor; without clipping there is no norm to mistake.
SOUND = ((None, SGD), (None, ADAM))
MUTANTS = ((GRADIENT, SGD), (GRADIENT, ADAM), (ROWS, SGD), (ROWS, ADAM), (NORM, ADAM))

# What the tests have the time for, in float64; tests/training/test_resume.py holds two processes against one.
SHORT = (MUTATED,)
SHORT_MUTANTS = ((GRADIENT, SGD), (ROWS, SGD), (NORM, ADAM))

# Bounds on |a - b| / |b| of the first gradient, and on |a - b| / |b - start| after all steps.
BOUNDS = {
    "float64": {"gradient": 1e-9, "tree": 1e-9, "leaf": 1e-9},
    "float32": {"gradient": 1e-5, "tree": 1e-4, "leaf": 1e-3},
}


def setup(dtype: str, variant: Variant, form: Form):
    """The config: DREAM with p = 1 on a form's task, 4x super-resolution, dropout 0.2, no warmup.

    Every norm has two channels a group or more, so no bias has a gradient of exactly zero, whose noise Adam would turn
    into full steps.
    """
    config = base.get_config()
    config.batch_size = BATCH
    config.accumulation = variant.accumulation
    config.image_size = SIZE
    config.compute_dtype = dtype
    config.objective.distance = "l1" if dtype == "float64" else "l2"
    config.network.channels = 8
    config.network.channel_multipliers = tuple(form.multipliers)
    config.network.patch = 2
    config.network.attention_resolutions = (SIZE // 4,) if len(form.multipliers) > 1 else ()
    config.network.num_res_blocks = 1
    config.network.norm_groups = 4
    config.network.dropout = 0.2
    config.network.remat = variant.remat
    config.mesh.shard = variant.shard
    config.task.name = form.task
    if form.process:
        config.task.residual, config.objective.kind = True, "x0"
        config.schedule.name, config.schedule.num_steps, config.schedule.continuous = "rddm", 4, False
        config.evaluation.steps, config.samples.steps = (1,), 1
    return checks.validate(config)


def specs_of(tree, mesh):
    """As in training, but all except the smallest leaves are split: a network as small as this has no large ones."""
    return sharding.state_specs(tree, mesh, smallest=64)


def optimizers(config, mesh) -> dict:
    """{(mutant, optimizer): optax transformation}, whose state at 1 has the gradient it was given as its trace."""

    def clip_by_shard_norm(updates, _):
        specs = specs_of(updates, mesh)

        def part(updates):
            scale = jnp.minimum(1.0, limit / optax.tree.norm(updates))
            return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates)

        # With the check on, JAX itself refuses the mistake.
        return jax.shard_map(part, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=False)(updates)

    limit = 0.1  # a quarter of the first gradient's norm: every step is clipped
    adam = make_optimizer(config.optimizer)
    made = {SGD: optax.sgd(1e-2), ADAM: optax.chain(optax.clip_by_global_norm(limit), adam)}
    chosen = {(mutant, name): (1.0, made[name]) for mutant in (None, ROWS) for name in made}
    chosen |= {(GRADIENT, name): (float(mesh.size), made[name]) for name in made}
    chosen[NORM, ADAM] = 1.0, optax.chain(optax.stateless(clip_by_shard_norm), adam)
    return {case: optax.chain(optax.scale(factor), optax.trace(0.0), one) for case, (factor, one) in chosen.items()}


def either(choices) -> optax.GradientTransformation:
    """The optimizer whose number the state (number, states) holds: one compiled step serves them all."""

    def init(params):
        return jnp.zeros((), jnp.int32), tuple(choice.init(params) for choice in choices)

    def update(gradient, state, params):
        number, states = state
        done = [choice.update(gradient, own, params) for choice, own in zip(choices, states, strict=True)]
        updates, states = zip(*done, strict=True)
        return jax.tree.map(lambda *all_of: lax.select_n(number, *all_of), *updates), (number, states)

    return optax.GradientTransformation(init, update)


def train(dtype: str, variant: Variant, cases, form: Form = LONG_FORM) -> dict:
    """{case: {"start/...", "gradient/...", "end/...": array of a leaf}} for cases (mutant, optimizer).

    The gradient is that of the first step.
    """
    config = setup(dtype, variant, form)
    mesh = sharding.make_mesh(variant.shard, jax.devices()[: variant.devices])
    sharding.meet(mesh)
    built = experiment.build(config)
    known = optimizers(config, mesh)
    optimizer = either([known[case] for case in cases])
    shapes = jax.eval_shape(
        lambda: train_state.create(built.network, optimizer, jax.random.key(0), built.inputs_shape(), variant.shard)
    )
    specs = specs_of(shapes, mesh)
    train_step = make_train_step(built, optimizer, mesh, specs, form.steps)
    rows = NamedSharding(mesh, sharding.BATCH)
    # Two more batches than steps, since they are read ahead.
    pictures = np.random.default_rng(1).integers(0, 256, ((form.steps + 2) * BATCH, SIZE, SIZE, 3), np.uint8)

    def numbered_locally(index):
        return np.arange(BATCH, dtype=np.int32)[index] - (index[0].start or 0)

    def fetch(name, part):
        leaves = jax.tree_util.tree_leaves_with_path(flat.trees(part))
        paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
        return {f"{name}/{path}": leaf.copy() for path, (_, leaf) in zip(paths, leaves, strict=True)}

    params = flat.flatten(weights(flat.shapes(shapes.params)), variant.shard)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    results = {}
    for number, case in enumerate(cases):
        state = zeros.replace(params=params, ema=params, opt_state=(np.int32(number), zeros.opt_state[1]))
        state = jax.tree.map(sharding.from_host, state, sharding.named(specs, mesh))
        results[case] = fetch("start", state.params)
        with batches.Batches(pictures, BATCH, rows) as feed:
            for step in range(form.steps):
                batch = feed(step)
                if case[0] == ROWS:
                    batch["row"] = jax.make_array_from_callback((BATCH,), rows, numbered_locally)
                state, metrics = train_step(state, batch, True)
                if step == 0:
                    results[case] |= fetch("gradient", state.opt_state[1][number][1].trace)
        if not np.isfinite(metrics["loss"]):
            raise FloatingPointError(f"{variant}, {case}: loss {metrics['loss']}")
        results[case] |= fetch("end", state.params)
    return results


def weights(shapes):
    """First parameters, drawn by numpy: kernels of unit gain, scales one, biases zero. Orthogonal ones compile long."""
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return generator.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(leaf.dtype)
        return np.full(leaf.shape, path[-1].key == "scale", leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def work(dtype: str, variants, mutants, form: Form, output: str) -> None:
    """Trains variants in this process, `MUTATED` also with the mistakes asked for, and writes all to one .npz."""
    arrays = {}
    for variant in variants:
        cases = [*SOUND, *(mutants if variant == MUTATED else ())]
        for case, trained in train(dtype, variant, cases, form).items():
            arrays |= {json.dumps([variant, case, name]): value for name, value in trained.items()}
    if jax.process_index() == 0:
        np.savez(output, **arrays)


def run(dtype: str, variants, mutants, form: Form) -> dict:
    """{(variant, mutant, optimizer): results}, trained in one process with 8 devices or in as many as they need."""
    results = {}
    groups = [[v for v in variants if v.processes == count] for count in sorted({v.processes for v in variants})]
    with tempfile.TemporaryDirectory() as folder:
        workers, outputs = [], []
        for group in groups:
            processes, devices = group[0].processes, group[0].devices // group[0].processes
            outputs.append(Path(folder) / f"{processes}.npz")
            order = json.dumps([dtype, group, mutants, form, str(outputs[-1])])
            address = f"127.0.0.1:{free_port()}"
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices if processes > 1 else 8),
                "JAX_ENABLE_X64": str(int(dtype == "float64")),
                "JAX_NUMPY_RANK_PROMOTION": "raise",
                # Without optimizations XLA of jax 0.12 rounds what is drawn in float32 by the rows that a device has.
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
                # Compiles in two thirds of the time, and runs as fast.
                "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1",
            }
            command = [sys.executable, "-W", "error", "-m", "benchmarks.agreement", "--work", order, "--join", address]
            workers += [
                subprocess.Popen([*command, str(processes), str(number)], cwd=report.ROOT, env=environment)
                for number in range(processes)
            ]
        try:
            statuses = [worker.wait() for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        if any(statuses):
            raise RuntimeError(f"a training process failed: exit statuses {statuses}")
        for output in outputs:
            with np.load(output) as arrays:
                for key in arrays.files:
                    variant, (mutant, optimizer), name = json.loads(key)
                    results.setdefault((Variant(*variant), mutant, optimizer), {})[name] = arrays[key]
    return results


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def distances(a: dict, b: dict) -> dict:
    """How far run a is from the reference b: "gradient" and "tree" as wholes, "leaf" the worst one, named "worst"."""
    names = [name.removeprefix("end/") for name in b if name.startswith("end/")]

    def squares(one, other):
        return np.array([np.sum((x.astype(np.float64) - y) ** 2) for x, y in zip(one, other, strict=True)])

    end, reference, first = ([run[f"{at}/{n}"] for n in names] for run, at in ((a, "end"), (b, "end"), (b, "start")))
    gradient, expected = ([run[f"gradient/{n}"] for n in names] for run in (a, b))
    apart, moved = squares(end, reference), squares(reference, first)
    worst = int(np.argmax(apart / moved))
    relative = squares(gradient, expected).sum() / squares(expected, [0.0] * len(names)).sum()
    return {
        "gradient": float(np.sqrt(relative)),
        "tree": float(np.sqrt(apart.sum() / moved.sum())),
        "leaf": float(np.sqrt(apart[worst] / moved[worst])),
        "worst": names[worst],
    }


def compare(dtype: str, variants, mutants=(), form: Form = LONG_FORM) -> list[dict]:
    """One row for each run but the reference: how far it is from the reference, and whether it agrees."""
    results = run(dtype, [REFERENCE, *variants], mutants, form)
    rows = []
    for (variant, mutant, optimizer), trained in results.items():
        if variant != REFERENCE:
            distance = distances(trained, results[REFERENCE, None, optimizer])
            # All within, not none beyond: a NaN does not agree.
            agrees = all(distance[name] <= bound for name, bound in BOUNDS[dtype].items())
            name = f"rddm, x0: {variant}" if form.process else str(variant)
            row = {"variant": name, "mutant": mutant, "dtype": dtype, "optimizer": optimizer}
            rows.append(row | distance | {"agrees": agrees})
    return rows


def table(rows) -> str:
    lines = [
        "| variant | dtype | optimizer | first gradient | tree | worst leaf | bounds | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        verdicts = ("differs: caught", "not seen under this optimizer") if row["mutant"] else ("DIFFERS", "agrees")
        name = row["variant"] + (f", MUTANT: {row['mutant']}" if row["mutant"] else "")
        numbers = f"{row['gradient']:.1e} | {row['tree']:.1e} | {row['leaf']:.1e} ({row['worst']})"
        bounds = ", ".join(f"{bound:.0e}" for bound in BOUNDS[row["dtype"]].values())
        lines.append(
            f"| {name} | {row['dtype']} | {row['optimizer']} | {numbers} | {bounds} | {verdicts[row['agrees']]} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Holds training on many layouts against one device.")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--join", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        garbage.collect_seldom()
        address, processes, number = options.join
        if int(processes) > 1:
            jax.distributed.initialize(address, num_processes=int(processes), process_id=int(number))
        dtype, variants, mutants, form, output = json.loads(options.work)
        variants, mutants = [Variant(*variant) for variant in variants], [tuple(mutant) for mutant in mutants]
        work(dtype, variants, mutants, Form(*form), output)
        return 0

    rows = compare("float64", VARIANTS, MUTANTS) + compare("float32", VARIANTS)
    rows += compare("float64", SHORT, form=PROCESS_FORM)
    caught = {row["mutant"] for row in rows if row["mutant"] and not row["agrees"]}
    mistakes = {mutant for mutant, _ in MUTANTS}
    sound = [row for row in rows if not row["mutant"]]
    differ = sum(not row["agrees"] for row in sound)
    versions = report.versions("jax", "jaxlib", "flax", "optax", "numpy")
    text = f"""# Agreement of training over devices, processes, accumulation and remat

`python -m benchmarks.agreement`, on CPU ({report.machine()}): {report.listed(versions)}.

{LONG_FORM.steps} steps, or {PROCESS_FORM.steps} of rddm, at batch {BATCH}, against one device with accumulation 1 and
no remat. The first gradient is measured by its own norm, tree and leaf by how far the reference moved; the bounds are
of gradient, tree and leaf.

{table(rows)}

{len(sound) - differ} of {len(sound)} agree; {len(caught)} of {len(mistakes)} mutants are caught.
"""
    report.write("agreement", text, {"versions": versions, "rows": rows})
    return int(differ > 0 or caught != mistakes)


if __name__ == "__main__":
    sys.exit(main())
