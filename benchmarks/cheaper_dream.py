"""What the cheaper ways to make DREAM's self-estimate save: step times against the standard objective's.

    python -m benchmarks.cheaper_dream

times whole train steps (Adam, EMA, float32 but for the estimates said to be in bfloat16) on CPU. The ways take turns of
four steps each, so that those that estimate at some steps only get their due, and whatever else the machine does meets
them all alike. Floating-point operations are XLA's own count. Prints a table and writes it to benchmarks/results/.
"""

import importlib.metadata
import os
import platform
import statistics
import sys
import time
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from jax.sharding import NamedSharding

from benchmarks import agreement, report
from configs import base
from dream_jax import config as configs
from dream_jax import experiment, sharding, train_state
from dream_jax.optimizer import make_optimizer
from dream_jax.train_step import make_train_step, rectifies

# name: changes of config.objective
WAYS = {
    "standard": {"p": None},
    "DREAM": {},
    "1/2 of the pictures": {"estimate_share": 0.5},
    "1/2, the heaviest": {"estimate_share": 0.5, "estimate_pick": "heaviest"},
    "1/4 of the pictures": {"estimate_share": 0.25},
    "1/4, the heaviest": {"estimate_share": 0.25, "estimate_pick": "heaviest"},
    "every 2nd step": {"estimate_every": 2},
    "every 4th step": {"estimate_every": 4},
    "bfloat16 estimate": {"estimate_dtype": "bfloat16"},
}
NETWORKS = {
    "patch 4, 64 channels": {"channels": 64, "patch": 4, "num_res_blocks": 1, "channel_multipliers": (1, 2)},
    "patch 1, 32 channels": {"channels": 32, "patch": 1, "num_res_blocks": 1, "channel_multipliers": (1, 2, 4)},
}
BATCH, SIZE, TURNS, STEPS = 16, 64, 7, 4


def setup(network: dict, way: dict):
    config = base.get_config()
    config.batch_size = BATCH
    config.image_size = SIZE
    config.compute_dtype = "float32"
    config.network.attention_resolutions = ()
    config.network.norm_groups = 16
    for section, changes in ((config.network, network), (config.objective, way)):
        for name, value in changes.items():
            section[name] = value
    return configs.validate(config)


class Trainer(NamedTuple):
    """A way to train, compiled: `run()` takes STEPS steps and returns (seconds, CPU seconds) a step."""

    run: object
    flops: float
    parameters: int


def make_trainer(config, batch) -> Trainer:
    built, mesh = experiment.build(config), sharding.make_mesh()
    optimizer = make_optimizer(config.optimizer)
    shapes = jax.eval_shape(
        lambda: train_state.create(built.network, optimizer, jax.random.key(0), built.inputs_shape())
    )
    specs = sharding.state_specs(shapes, mesh)
    state = train_state.start(jax.tree.map(jax.numpy.asarray, agreement.weights(shapes.params)), optimizer)
    state = jax.device_put(state, sharding.named(specs, mesh))
    batch = jax.device_put(batch, NamedSharding(mesh, sharding.BATCH))
    train_step = make_train_step(built, optimizer, mesh, specs, 1)
    kinds = [rectifies(config, step, 1) for step in range(STEPS)]
    compiled = {kind: train_step.lower(state, batch, kind).compile() for kind in set(kinds)}

    def run():
        nonlocal state
        begun = time.perf_counter(), time.process_time()
        for kind in kinds:
            state, _ = compiled[kind](state, batch)
        jax.block_until_ready(state)
        return (time.perf_counter() - begun[0]) / STEPS, (time.process_time() - begun[1]) / STEPS

    flops = statistics.mean(compiled[kind].cost_analysis()["flops"] for kind in kinds)
    return Trainer(run, flops, sum(leaf.size for leaf in jax.tree.leaves(shapes.params)))


def measure(network: str) -> list[dict]:
    pictures = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    batch = {"image": pictures, "row": np.arange(BATCH, dtype=np.int32)}
    trainers = {way: make_trainer(setup(NETWORKS[network], changes), batch) for way, changes in WAYS.items()}
    for trainer in trainers.values():
        trainer.run()
    turns = [{way: trainer.run() for way, trainer in trainers.items()} for _ in range(TURNS)]
    rows = []
    for way, trainer in trainers.items():
        row = {"network": network, "parameters": trainer.parameters, "way": way}
        row |= {"flops": trainer.flops / trainers["standard"].flops}
        for number, clock in enumerate(("seconds", "cpu_seconds")):
            ratios = [turn[way][number] / turn["standard"][number] for turn in turns]
            row[clock] = statistics.median(turn[way][number] for turn in turns)
            row |= {f"{clock}_ratio": statistics.median(ratios), f"{clock}_ratio_range": [min(ratios), max(ratios)]}
        rows.append(row)
    return rows


def main() -> int:
    rows = [row for network in NETWORKS for row in measure(network)]
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
    device = f"{os.cpu_count()} cores, {platform.machine()}"
    for row in rows:
        row["range"] = "{:.2f} to {:.2f}".format(*row["seconds_ratio_range"])
    table = "\n".join(
        f"| {r['network']} | {r['way']} | {r['flops']:.3f} | {r['seconds_ratio']:.2f} ({r['range']}) | "
        f"{r['cpu_seconds_ratio']:.2f} | {r['seconds']:.3f} | {r['cpu_seconds']:.3f} |"
        for r in rows
    )
    counts = " and ".join(f"{row['parameters']:,}" for row in rows if row["way"] == "standard")
    text = f"""# What cheaper self-estimates save

`python -m benchmarks.cheaper_dream` on CPU ({device}): {", ".join(f"{n} {v}" for n, v in versions.items())}.

Train steps of networks of {counts} parameters, {SIZE} x {SIZE} pixels, batch {BATCH}, float32, in {TURNS} turns of
{STEPS} steps each. Ratios are to the standard step of the same turn: medians, and their range.

| network | self-estimate | operations | time, ratio (range) | CPU time, ratio | seconds | CPU seconds |
|---|---|---|---|---|---|---|
{table}
"""
    report.write("cheaper_dream", text, {"device": device, "versions": versions, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
