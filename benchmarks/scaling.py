"""How the train step spreads over devices and processes: what it takes, moves and holds.

    python -m benchmarks.scaling

compiles one train step (DREAM with p = 1, dropout 0.2, clipping, Adam, EMA) of an SR3 UNet for many meshes, counts the
collectives in each compiled program and the bytes that a device sends in them, and the bytes of state a device holds.
Then it times steps of the same global batch, all meshes taking turns: 1, 2, 4 and 8 virtual CPU devices of one process,
and 1, 2 and 4 processes of one device each, started as launch/local.py starts them. Virtual devices share the cores, so
there the ideal is the time of one device, and what exceeds it is what spreading costs. `--accelerators` takes a
machine's own devices instead.

Prints tables, writes them to benchmarks/results/, and exits with 1 if with one shard the step has anything but one
all-reduce, if a device sends more than twice the parameters' bytes, if that depends on the batch, or if the state of
leaves that are split is not shared out evenly.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import agreement, report
from configs import base
from dream_jax import experiment
from dream_jax.config import checks
from dream_jax.optimizers import make_optimizer
from dream_jax.runtime import sharding
from dream_jax.training import flat, train_state
from dream_jax.training.train_step import make_train_step
from launch import local

BATCH, SIZE = 16, 32
REPEATS = 7
MARK = "answer "  # before what worker processes say to the one that started them


class Layout(NamedTuple):
    """A mesh; devices are those of all processes together."""

    devices: int = 1
    shard: int = 1
    processes: int = 1


ONE = Layout()
TWICE = Layout(4, shard=2)  # what it moves is counted at twice the batch too
LAYOUTS = (
    *(ONE, Layout(2), Layout(4), Layout(8)),
    *(Layout(2, shard=2), Layout(4, shard=2), Layout(4, shard=4), Layout(8, shard=2)),
    *(Layout(8, shard=8), Layout(2, processes=2), Layout(2, shard=2, processes=2)),
    *(Layout(4, processes=4), Layout(4, shard=2, processes=4), Layout(4, shard=4, processes=4)),
)


def setup(batch: int = BATCH):
    config = base.get_config()
    config.batch_size = batch
    config.image_size = SIZE
    config.compute_dtype = "float32"
    config.optimizer.clip = 1.0
    config.network.channels = 64
    config.network.channel_multipliers = (1, 2)
    config.network.attention_resolutions = ()
    config.network.norm_groups = 16
    config.network.num_res_blocks = 1
    config.network.dropout = 0.2
    return checks.validate(config)


class Prepared(NamedTuple):
    """A compiled train step with what it takes; `step(seed, state, batch) -> (state, metrics)` donates the state."""

    step: jax.stages.Compiled
    seed: np.ndarray
    state: train_state.TrainState
    batch: dict
    specs: train_state.TrainState


def prepare(config, mesh) -> Prepared:
    """Compiles a config's train step for a mesh. Weights and pictures are drawn by numpy, alike in all processes."""
    built = experiment.build(config)
    optimizer = make_optimizer(config.optimizer)
    shards = mesh.shape["shard"]
    shapes = jax.eval_shape(
        lambda: train_state.create(built.network, optimizer, jax.random.key(0), built.inputs_shape(), shards)
    )
    specs = sharding.state_specs(shapes, mesh)
    train_step = make_train_step(built, optimizer, mesh, specs, 1)

    params = flat.flatten(agreement.weights(flat.shapes(shapes.params)), shards)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = jax.tree.map(sharding.from_host, zeros.replace(params=params, ema=params), sharding.named(specs, mesh))
    shape = config.batch_size, config.image_size, config.image_size, 3
    pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    batch = {"image": pictures, "row": np.arange(config.batch_size, dtype=np.int32)}
    batch = jax.tree.map(lambda value: sharding.from_host(value, NamedSharding(mesh, sharding.BATCH)), batch)
    return Prepared(train_step.lower(state, batch, True).compile(), train_step.seed, state, batch, specs)


KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_SHAPE = re.compile(r"\b[a-z]+(\d*)\[([\d,]*)\]")


def collectives(program: str) -> list[dict]:
    """The collectives of a compiled program's text: kind, devices in a group, bytes, and bytes a device sends.

    bytes are those of the whole: the result of an all-reduce or all-gather, the operand of a reduce-scatter. Sent are,
    in a ring of g devices, (g - 1) / g of them, and twice that in an all-reduce.
    """
    found = []
    for line in program.splitlines():
        match = re.search(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
        if not match:
            continue
        shapes, kind, start = match.groups()
        group, count = _group_size(line), 0
        for bits, sides in _SHAPE.findall(shapes):
            count += int(bits or 8) // 8 * math.prod(int(side) for side in sides.split(",") if side)
        if kind == "reduce-scatter":
            count *= group
        if kind == "all-gather" and start:  # the shape of its start holds operands and results
            count = count * group // (group + 1)
        sent = count * (group - 1) / group * (2 if kind == "all-reduce" else 1)
        found.append({"kind": kind, "group": group, "bytes": count, "sent": sent})
    return found


def _group_size(line: str) -> int:
    """The devices in one group of a collective, whichever way the compiler writes groups."""
    if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return groups[1].count(",") + 1
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(groups[1])
    if groups := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", groups[1])}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", groups[2]))
    raise ValueError(f"a collective with groups of an unknown form: {line.strip()[-300:]}")


def facts_of(prepared: Prepared, layout: Layout) -> dict:
    """What a compiled step moves and holds, in bytes, for one device."""
    device = jax.local_devices()[0]

    def held(leaf):
        return sum(shard.data.nbytes for shard in leaf.addressable_shards if shard.device == device)

    specs = jax.tree.leaves(prepared.specs, is_leaf=lambda x: isinstance(x, P))
    leaves = list(zip(jax.tree.leaves(prepared.state), specs, strict=True))
    split = [leaf for leaf, spec in leaves if "shard" in spec]
    whole = [leaf for leaf, spec in leaves if "shard" not in spec]
    memory = prepared.step.memory_analysis()
    return {
        "parameters": sum(leaf.nbytes for leaf in jax.tree.leaves(prepared.state.params)),
        "collectives": collectives(prepared.step.as_text()),
        "state": sum(held(leaf) for leaf, _ in leaves),
        "split_leaves": len(split),
        "whole_leaves": len(whole),
        "whole": sum(leaf.nbytes for leaf in whole),
        "even": sum(held(leaf) for leaf in split) * layout.shard == sum(leaf.nbytes for leaf in split),
        "peak": memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
    }  # fmt: skip


def work(layouts: list[Layout]) -> None:
    """Prints the facts of layouts, a line each, then answers each line "n" of its input with the seconds of a step."""
    if layouts[0].processes > 1:
        address, *numbers = (os.environ[f"DREAM_JAX_{name}"] for name in ("COORDINATOR", "PROCESSES", "PROCESS"))
        jax.distributed.initialize(address, *map(int, numbers))
    prepared = []
    for layout in layouts:
        if layout.devices > jax.device_count():
            tell(None)
            prepared.append(None)
            continue
        mesh = sharding.make_mesh(layout.shard, jax.devices()[: layout.devices])
        sharding.meet(mesh)
        prepared.append(prepare(setup(), mesh))
        facts = facts_of(prepared[-1], layout) | {"device": jax.devices()[0].device_kind}
        if layout == TWICE:
            twice = prepare(setup(2 * BATCH), mesh).step
            facts["collectives_of_twice_the_batch"] = collectives(twice.as_text())
        tell(facts)
    for line in sys.stdin:
        step, seed, state, batch, specs = prepared[int(line)]
        begun = time.perf_counter()
        state, metrics = step(seed, state, batch)
        jax.block_until_ready((state, metrics))
        taken = time.perf_counter() - begun
        prepared[int(line)] = Prepared(step, seed, state, batch, specs)
        tell(taken)


def tell(value) -> None:
    print(MARK + json.dumps(value), flush=True)


class Group:
    """The processes that work on the layouts of one number of processes."""

    def __init__(self, layouts: list[Layout], accelerators: bool):
        processes = layouts[0].processes
        devices = None if accelerators else 8 if processes == 1 else 1
        command = [sys.executable, "-m", "benchmarks.scaling", "--work", json.dumps(layouts)]
        # Compiles in two thirds of the time, and runs as fast.
        flags = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": report.ROOT}
        self.members = [
            subprocess.Popen(command, env=environment | ({} if accelerators else flags), **pipes)
            for environment in local.make_environments(processes, devices)
        ]

    def answer(self):
        """What process 0 says; the others must say something too."""
        # Gloo, too, writes to their standard output.
        said = [next((text for text in member.stdout if text.startswith(MARK)), None) for member in self.members]
        if not all(said):
            raise RuntimeError("a process of the benchmark has ended; what it said is above")
        return json.loads(said[0].removeprefix(MARK))

    def step(self, number: int) -> float:
        for member in self.members:
            print(number, file=member.stdin, flush=True)
        return self.answer()

    def close(self):
        for member in self.members:
            member.stdin.close()
        for member in self.members:
            try:
                member.wait(timeout=30)
            except subprocess.TimeoutExpired:
                member.kill()


def measure(accelerators: bool) -> list[dict]:
    """One row for each layout: its facts, and the seconds of its steps turn by turn."""
    groups, rows = {}, []
    try:
        for processes in sorted({layout.processes for layout in LAYOUTS}):
            own = [layout for layout in LAYOUTS if layout.processes == processes]
            groups[processes] = Group(own, accelerators), own
            rows += [layout._asdict() | (groups[processes][0].answer() or {}) for layout in own]
        rows = [row | {"seconds": []} for row in rows]
        # The first turn warms up.
        for turn in range(REPEATS + 1):
            for row in rows:
                if "state" in row:
                    group, own = groups[row["processes"]]
                    taken = group.step(own.index(Layout(*(row[name] for name in Layout._fields))))
                    row["seconds"] += [taken] if turn else []
    finally:
        for group, _ in groups.values():
            group.close()
    return rows


def mistakes(row: dict) -> list[str]:
    """What is not as it must be."""
    if "state" not in row:
        return []
    found, sent = [], sum(each["sent"] for each in row["collectives"])
    if row["shard"] == 1 and row["devices"] > 1 and [each["kind"] for each in row["collectives"]] != ["all-reduce"]:
        found.append("not one all-reduce")
    if sent > 2 * row["parameters"]:
        found.append("sends more than twice the parameters")
    of_each_batch = row["collectives"], row.get("collectives_of_twice_the_batch", row["collectives"])
    if len({tuple(sorted(map(str, of))) for of in of_each_batch}) > 1:
        found.append("what it sends depends on the batch")
    if not row["even"]:
        found.append("split leaves are not shared out evenly")
    return found


def line(row: dict, first: dict) -> str:
    where = f"{row['devices']} in {row['processes']}" if row["processes"] > 1 else f"{row['devices']}"
    if "state" not in row:
        return f"| {where} | {row['shard']} |" + " not measured |" * 7
    ratios = [own / one for own, one in zip(row["seconds"], first["seconds"], strict=True)]
    kinds = {kind: [each for each in row["collectives"] if each["kind"] == kind] for kind in KINDS}
    listed = ", ".join(f"{len(of)} {kind} ({megabytes(of, 'bytes')})" for kind, of in kinds.items() if of) or "none"
    return (
        f"| {where} | {row['shard']} | {statistics.median(row['seconds']):.3f} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {listed} | "
        f"{sum(each['sent'] for each in row['collectives']) / row['parameters']:.3f} | {row['state'] / 1e6:.1f} | "
        f"{row['whole_leaves']} ({row['whole'] / 1e6:.2f}) | {row['peak'] / 1e6:.0f} |"
    )


def megabytes(of, name):
    return f"{sum(each[name] for each in of) / 1e6:.2f} MB"


def main() -> int:
    parser = argparse.ArgumentParser(description="How the train step spreads over devices and processes.")
    parser.add_argument("--accelerators", action="store_true", help="take the machine's own devices")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work([Layout(*layout) for layout in json.loads(options.work)])
        return 0
    rows = measure(options.accelerators)
    wrong = {f"{row['devices']} devices, shard {row['shard']}": found for row in rows if (found := mistakes(row))}
    versions = report.versions("jax", "jaxlib", "flax", "optax", "numpy")
    device = f"{rows[0]['device']}, {report.machine()}"
    where = "virtual CPU devices, which share the cores: the ideal ratio is 1"
    columns = "devices", "shard", "seconds", "ratio (range)", "collectives (bytes)", "sent / parameters", "state, MB"
    columns = *columns, "whole leaves (MB)", "peak, MB"
    table = "\n".join(
        ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", *(line(r, rows[0]) for r in rows)]
    )
    kept = "one all-reduce with one shard, at most twice the parameters sent, and the same at twice the batch"
    text = f"""# The train step over devices and processes

`python -m benchmarks.scaling{" --accelerators" if options.accelerators else ""}` on {device}:
{report.listed(versions)}.

One update of an SR3 UNet of {rows[0]["parameters"] // 4:,} parameters ({rows[0]["parameters"] / 1e6:.1f} MB), {SIZE} x
{SIZE} pixels, global batch {BATCH}, float32, DREAM with p = 1, clipping, Adam and EMA, on
{"accelerators" if options.accelerators else where}.
"n in m" devices are those of m processes. Seconds are medians of {REPEATS} turns, the ratio is to one device of one
process, turn by turn (range). Bytes of a collective are those of the whole. A device sends, in a ring of g devices,
(g - 1) / g of them, twice that in an all-reduce: the sum is given in parameters' bytes, and must not exceed 2. State is
parameters, EMA and both moments, on one device; leaves that are small or do not divide stay whole. Peak is arguments,
temporaries and results of the compiled step on one device.

{table}

{f"Not as it must be: {wrong}." if wrong else f"As it must be: {kept}."}
"""
    record = {"device": device, "versions": versions, "rows": rows, "mistakes": wrong}
    report.write("scaling", text, record)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
