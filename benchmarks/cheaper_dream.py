"""What the cheaper ways to make DREAM's self-estimate save: step times against the standard objective's.

    python -m benchmarks.cheaper_dream

times whole train steps (Adam, EMA, float32 but for the estimates said to be in bfloat16) on CPU. The ways take turns of
four steps each, so that those that estimate at some steps only get their due, and whatever else the machine does meets
them all alike. Floating-point operations are XLA's own count. Prints a table and writes it to benchmarks/results/.
"""

import os
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from jax.sharding import NamedSharding

from benchmarks import agreement, report
from configs import photos_4x_cpu
from dream_jax import config as configs
from dream_jax import experiment
from dream_jax.runtime import sharding
from dream_jax.training import train_state
from dream_jax.training.optimizer import make_optimizer
from dream_jax.training.train_step import make_train_step, rectifies

# name: changes of config.objective
WAYS = {
    "standard": {"p": None},
    "DREAM": {},
    "1/2 of the pictures": {"estimate_share": 0.5},
    "1/4 of the pictures": {"estimate_share": 0.25},
    "1/4, the heaviest": {"estimate_share": 0.25, "estimate_pick": "heaviest"},
    "every 2nd step": {"estimate_every": 2},
    "every 4th step": {"estimate_every": 4},
    "bfloat16 estimate": {"estimate_dtype": "bfloat16"},
}
TURNS, STEPS = 7, 4


def setup(way: dict):
    config = photos_4x_cpu.get_config()
    config.compute_dtype = "float32"
    config.network.num_res_blocks = 1
    for name, value in way.items():
        config.objective[name] = value
    return configs.validate(config)


def program_of(config, rectify: bool):
    """What tells apart the compiled train steps of WAYS, most of which they share."""
    c = config.objective
    return (c.estimate_share, c.estimate_pick, c.estimate_dtype) if rectify and c.p is not None else "standard"


def measure() -> tuple[list[dict], int]:
    """(a row for each way, parameters of the network)."""
    first, mesh = setup({}), sharding.make_mesh()
    optimizer, built = make_optimizer(first.optimizer), experiment.build(first)
    shapes = jax.eval_shape(
        lambda: train_state.create(built.network, optimizer, jax.random.key(0), built.inputs_shape())
    )
    specs = sharding.state_specs(shapes, mesh)
    state = train_state.start(jax.tree.map(jax.numpy.asarray, agreement.weights(shapes.params)), optimizer)
    state = jax.device_put(state, sharding.named(specs, mesh))
    size = (first.batch_size, first.image_size, first.image_size, 3)
    batch = {"image": np.random.default_rng(0).integers(0, 256, size, np.uint8)}
    batch |= {"row": np.arange(first.batch_size, dtype=np.int32)}
    batch = jax.device_put(batch, NamedSharding(mesh, sharding.BATCH))

    compiled, programs = {}, {}
    for way, changes in WAYS.items():
        config = setup(changes)
        train_step = make_train_step(experiment.build(config), optimizer, mesh, specs, 1)
        kinds = [rectifies(config, step, 1) for step in range(STEPS)]
        for kind in kinds:
            if program_of(config, kind) not in compiled:
                compiled[program_of(config, kind)] = train_step.lower(state, batch, kind).compile()
        programs[way] = [compiled[program_of(config, kind)] for kind in kinds]

    def run(way):
        """(seconds, CPU seconds) a step."""
        nonlocal state
        begun = time.perf_counter(), time.process_time()
        for program in programs[way]:
            state, _ = program(state, batch)
        jax.block_until_ready(state)
        return (time.perf_counter() - begun[0]) / STEPS, (time.process_time() - begun[1]) / STEPS

    for way in WAYS:
        run(way)
    turns = [{way: run(way) for way in WAYS} for _ in range(TURNS)]
    flops = {way: statistics.mean(step.cost_analysis()["flops"] for step in steps) for way, steps in programs.items()}
    rows = []
    for way in WAYS:
        row = {"way": way, "flops_ratio": flops[way] / flops["standard"]}
        for number, clock in enumerate(("seconds", "cpu_seconds")):
            ratios = [turn[way][number] / turn["standard"][number] for turn in turns]
            row[clock] = statistics.median(turn[way][number] for turn in turns)
            row |= {f"{clock}_ratio": statistics.median(ratios), f"{clock}_ratio_range": [min(ratios), max(ratios)]}
        rows.append(row)
    return rows, sum(leaf.size for leaf in jax.tree.leaves(shapes.params))


def main() -> int:
    rows, parameters = measure()
    versions = report.versions("jax", "jaxlib", "flax", "optax", "numpy")
    device = report.machine()

    def ratio(row, clock):
        low, high = row[f"{clock}_ratio_range"]
        return f"{row[f'{clock}_ratio']:.2f} ({low:.2f} to {high:.2f})"

    table = "\n".join(
        f"| {r['way']} | {r['flops_ratio']:.3f} | {ratio(r, 'seconds')} | {ratio(r, 'cpu_seconds')} | "
        f"{r['seconds']:.3f} | {r['cpu_seconds']:.3f} |"
        for r in rows
    )
    config = setup({})
    text = f"""# What cheaper self-estimates save

`python -m benchmarks.cheaper_dream` on CPU ({device}): {report.listed(versions)}.

Train steps of a network of {parameters:,} parameters, {config.image_size} x {config.image_size} pixels, batch
{config.batch_size}, float32, in {TURNS} turns of {STEPS} steps each. Ratios are to the standard step of the same turn:
medians, and their range.

| self-estimate | operations, ratio | time, ratio (range) | CPU time, ratio (range) | seconds | CPU seconds |
|---|---|---|---|---|---|
{table}
"""
    report.write(
        "cheaper_dream", text, {"device": device, "versions": versions, "parameters": parameters, "rows": rows}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
