"""What a train step costs: the three objectives, and the official PyTorch code's DREAM step beside ours.

    python -m benchmarks.train_step [--official PATH --python PYTHON] [--preset paper] [--search]

Every way is a process of its own, and the processes take turns step by step, so that whatever else the machine does
meets them all alike; ratios are medians over the turns. PATH is a checkout of the official DREAM repository and PYTHON
one that has PyTorch; without them only ours is measured. The preset `small` is made for a CPU, `paper` is the published
network of 97.8 million parameters from 16 to 128 pixels. --search measures at the largest batch, --batch_size doubled
or halved, that the official code as shipped fits on a GPU. With --alone the ways do not take turns: each has the device
to itself and takes all its turns in a row, for batches that do not fit beside each other. Prints a table and writes it
to benchmarks/results/.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time

from benchmarks import ablation, report, trace, worker

PRESETS = {
    "small": {
        "channels": 32,
        "channel_multipliers": [1, 2, 4, 8],
        "attention_resolutions": [16],
        "num_res_blocks": 2,
        "norm_groups": 16,
        "dropout": 0.2,
        "image_size": 64,
        "scale": 4,
        "batch_size": 8,
    },
    "paper": {
        "channels": 64,
        "channel_multipliers": [1, 2, 4, 8, 8],
        "attention_resolutions": [16],
        "num_res_blocks": 2,
        "norm_groups": 32,
        "dropout": 0.2,
        "image_size": 128,
        "scale": 8,
        "batch_size": 4,
    },
}
OBJECTIVES = ("standard", "dream", "conservative_dream")
OURS, SHIPPED = "dream", "official, as shipped"
REPEATS = 7


def make_config(spec: dict):
    from configs import base
    from dream_jax.config import checks

    config = base.get_config()
    config.batch_size, config.image_size = spec["batch_size"], spec["image_size"]
    config.task.scale = spec["scale"]
    config.objective.name = spec["objective"]
    if spec["objective"] == "conservative_dream":
        config.task.name = "unconditional"
        config.objective.distance = "l2"
        config.schedule.continuous = False
    for name in (
        "channels",
        "channel_multipliers",
        "attention_resolutions",
        "num_res_blocks",
        "norm_groups",
        "dropout",
    ):
        value = spec[name]
        config.network[name] = tuple(value) if isinstance(value, list) else value
    return checks.validate(config)


def work(spec: dict) -> None:
    """Our step in this process, for a Worker: answers with the two times of `count` steps, or a profile of some."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding

    from benchmarks import agreement
    from dream_jax import experiment
    from dream_jax.optimizers import make_optimizer
    from dream_jax.runtime import sharding
    from dream_jax.training import train_state
    from dream_jax.training.train_step import make_train_step, start_state

    for name in spec["without"]:
        ablation.WITHOUT[name]()
    config = make_config(spec)
    built, mesh = experiment.build(config), sharding.make_mesh()
    optimizer = make_optimizer(config.optimizer)
    _, specs = start_state(built, optimizer, mesh)
    shapes = jax.eval_shape(built.network.init, jax.random.key(0), jnp.zeros(built.inputs_shape()), jnp.ones(1))
    params = jax.tree.map(jnp.asarray, agreement.weights(shapes["params"]))
    state = jax.device_put(train_state.start(params, optimizer), sharding.named(specs, mesh))
    side = spec["image_size"]
    pictures = np.random.default_rng(0).integers(0, 256, (spec["batch_size"], side, side, 3), np.uint8)
    batch = {"image": pictures, "row": np.arange(spec["batch_size"], dtype=np.int32)}
    layout = NamedSharding(mesh, sharding.BATCH)
    on_device = jax.device_put(batch, layout)
    start = time.perf_counter()
    lowered = make_train_step(built, optimizer, mesh, specs, 1).lower(state, on_device, True)
    traced = time.perf_counter()
    train_step = lowered.compile()
    compiled = time.perf_counter()

    def run(count):
        nonlocal state
        taken = []
        for _ in range(count):
            begun = time.perf_counter(), time.process_time()
            state, metrics = train_step(state, jax.device_put(batch, layout))
            jax.block_until_ready((state, metrics))
            taken.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
        return taken

    run(2)
    memory, cost = train_step.memory_analysis(), train_step.cost_analysis()
    device = mesh.devices.flat[0]
    facts = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "trace_seconds": traced - start,
        "compile_seconds": compiled - traced,
        "temporary_bytes": memory.temp_size_in_bytes,
        "state_bytes": memory.argument_size_in_bytes,
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "device": device.device_kind if device.platform != "cpu" else f"CPU, {os.cpu_count()} cores",
        "platform": device.platform,
        "dtype": np.dtype(experiment.compute_dtype(config)).name,
        "versions": report.versions("jax", "jaxlib", "flax", "optax", "numpy"),
    }
    if spec["ceilings"]:
        facts["ceilings"] = ceilings(device.platform, experiment.compute_dtype(config))

    def reply(count=0, profile=0):
        return trace.shares(lambda: run(profile), train_step.as_text()) if profile else run(count)

    worker.answer(facts, reply)


def ceilings(kind: str, dtype) -> dict:
    """What the device does at best here: a matrix product's FLOP/s and a copy's bytes/s, read and written."""
    import jax
    import jax.numpy as jnp

    n, size = (1536, 2**25) if kind == "cpu" else (8192, 2**28)
    a = jnp.ones((n, n), dtype)
    source = jnp.ones(size, jnp.float32)
    product, copy = jax.jit(jnp.matmul), jax.jit(jnp.negative)

    def seconds(function, *inputs):
        jax.block_until_ready(function(*inputs))
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(function(*inputs))
            taken.append(time.perf_counter() - start)
        return min(taken)

    return {
        "flops_per_second": 2 * n**3 / seconds(product, a, a),
        "bytes_per_second": 2 * 4 * size / seconds(copy, source),
    }


def make_workers(options, spec: dict) -> dict:
    def ours(objective, ceilings=False, without=()):
        own = spec | {"objective": objective, "ceilings": ceilings, "without": without}
        return worker.Worker([sys.executable, "-m", "benchmarks.train_step", "--work", json.dumps(own)])

    def official(*tuned, ceilings=False):
        own = spec | {"tuned": tuned, "ceilings": ceilings, "p": 1.0}
        own["threads"] = None if options.gpu else os.cpu_count()
        return worker.official(options.python, options.official, own)

    workers = {name: ours(name, name == OURS) for name in options.ways}
    workers |= {f"{OURS} without {name}": ours(OURS, without=[name]) for name in options.without}
    if options.official:
        precision = ("bfloat16",) if options.gpu else ()
        layout = (*precision, "channels_last", "fused Adam")
        tunings = {SHIPPED: (), "official, " + ", ".join(layout): layout}
        if not options.no_compile:
            tunings["official, " + ", ".join((*layout, "compile"))] = (*layout, "compile")
        last = list(tunings)[-1]
        workers |= {name: official(*tuned, ceilings=name == last) for name, tuned in tunings.items()}
    return workers


def largest_batch(options, spec: dict) -> int:
    """The largest batch, the spec's doubled or halved, at which the official code as shipped runs."""

    def fits(batch):
        tried = make_workers(options, spec | {"batch_size": batch})[SHIPPED]
        try:
            tried.start()
        except RuntimeError:
            return False
        tried.stop()
        return True

    batch = spec["batch_size"]
    if fits(batch):
        while fits(2 * batch):
            batch *= 2
        return batch
    while batch > 1 and not fits(batch := batch // 2):
        pass
    return batch


def measure(workers: dict, options, write) -> None:
    """Calls `write(turns, profiles)` whenever there is more to tell: what is measured is kept whatever comes after.

    turns is {name: [(seconds, processor seconds) of each turn]}, profiles {name: profile of ours}. A way that cannot
    run is left out, with a word.
    """
    turns, profiles = {}, {}

    def start(name):
        begun = time.perf_counter()
        try:
            workers[name].start()
        except RuntimeError as error:
            print(f"{name}: not measured, {error}", file=sys.stderr)
            return
        turns[name] = []
        print(f"{name}: ready after {time.perf_counter() - begun:.0f} s", file=sys.stderr)

    def turn(name):
        taken = workers[name].ask(count=options.steps)
        turns[name].append([statistics.median(column) for column in zip(*taken, strict=True)])
        print(f"{name}: {turns[name][-1][0]:.4f} s", file=sys.stderr)

    def finish(name):
        write(turns, profiles)
        if options.profile and name in OBJECTIVES:
            profiles[name] = workers[name].ask(profile=options.steps)
            write(turns, profiles)
        workers[name].stop()

    if options.alone:
        for name in workers:
            start(name)
            if name in turns:
                for _ in range(options.repeats):
                    turn(name)
                finish(name)
        return
    for each in workers.values():
        each.begin()
    for name in workers:
        start(name)
    for _ in range(options.repeats):
        for name in turns:
            turn(name)
    for name in turns:
        finish(name)


def ratio(turns: dict, above: str, below: str):
    """(median, smallest, largest; median in processor seconds) over the turns, or None where one was not measured."""
    if above not in turns or below not in turns:
        return None
    pairs = list(zip(turns[above], turns[below], strict=True))
    ratios = [a[0] / b[0] for a, b in pairs]
    return statistics.median(ratios), min(ratios), max(ratios), statistics.median(a[1] / b[1] for a, b in pairs)


def show(value, form: str) -> str:
    return "not measured" if value is None else form.format(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", help="a checkout of the official DREAM repository")
    parser.add_argument("--python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--batch_size", type=int, help="instead of the preset's")
    parser.add_argument("--gpu", action="store_true", help="on a GPU: bfloat16 on both sides")
    parser.add_argument("--search", action="store_true", help="at the largest batch that the official code fits")
    parser.add_argument("--alone", action="store_true", help="one process at a time on the device")
    parser.add_argument("--steps", type=int, default=1, help="of one turn")
    parser.add_argument("--profile", action="store_true", help="tell where the time of ours goes")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--ways", nargs="+", choices=OBJECTIVES, default=OBJECTIVES, help="our objectives")
    parser.add_argument(
        "--without", nargs="+", choices=ablation.WITHOUT, default=(), help="ours also without each of these"
    )
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--name", default="train_step", help="of the results")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(json.loads(options.work))
        return 0
    if options.search and not (options.gpu and options.official):
        parser.error("--search fills a GPU with the official code: it needs --gpu and --official")
    spec = dict(PRESETS[options.preset])
    spec["batch_size"] = options.batch_size or spec["batch_size"]
    if options.search:
        spec["batch_size"] = largest_batch(options, spec)
    workers = make_workers(options, spec)

    def write(turns, profiles):
        report.write(options.name, *page(options, spec, workers, turns, profiles), quiet=True)

    measure(workers, options, write)
    print((report.RESULTS / f"{options.name}.md").read_text())
    return 0


def page(options, spec, workers, turns, profiles):
    facts = {name: workers[name].facts for name in turns}
    tops = [fact["ceilings"] for fact in facts.values() if "ceilings" in fact]
    flops_top = max((top["flops_per_second"] for top in tops), default=None)
    bytes_top = max((top["bytes_per_second"] for top in tops), default=None)
    rows = []
    for name in workers:
        if name not in turns:
            rows.append({"way": name})
            continue
        fact, (wall, processor) = facts[name], zip(*turns[name], strict=True)
        seconds = statistics.median(wall)
        row = {"way": name, "seconds": seconds, "fastest": min(wall), "slowest": max(wall)}
        row |= {"processor_seconds": None if options.gpu else statistics.median(processor)}
        row |= {"images_per_second": spec["batch_size"] / seconds}
        if fact.get("flops") and flops_top:
            row["share_of_product"] = fact["flops"] / seconds / flops_top
            row["share_of_copy"] = fact["bytes_accessed"] / seconds / bytes_top
        rows.append(row | {key: value for key, value in fact.items() if key not in ("versions", "ceilings")})
    ratios = {f"{OURS} / standard": ratio(turns, OURS, "standard")}
    ratios |= {f"{name} / {OURS}": ratio(turns, name, OURS) for name in workers if " without " in name}
    ratios |= {f"{OURS} / {name}": ratio(turns, OURS, name) for name in workers if name.startswith("official")}
    versions = {}
    for fact in facts.values():
        versions |= fact["versions"]
    device = next(iter(facts.values()))["device"] + f", {platform.machine()}"
    times = "\n".join(
        f"| {r['way']} | {show(r.get('seconds'), '{:.3f}')} | "
        f"{'not measured' if 'seconds' not in r else '{fastest:.3f} to {slowest:.3f}'.format(**r)} | "
        f"{show(r.get('processor_seconds'), '{:.3f}')} | "
        f"{show(r.get('images_per_second'), '{:.2f}')} | {show(r.get('peak_bytes'), '{:,}')} |"
        for r in rows
    )
    compiled = "\n".join(
        f"| {r['way']} | {r['trace_seconds']:.1f} | {r['compile_seconds']:.1f} | {r['temporary_bytes'] / 2**20:.0f} | "
        f"{r['state_bytes'] / 2**20:.0f} | {r['flops'] / 1e9:.1f} | {r['bytes_accessed'] / 1e9:.1f} | "
        f"{show(r.get('share_of_product'), '{:.0%}')} | {show(r.get('share_of_copy'), '{:.0%}')} |"
        for r in rows
        if r.get("flops")
    )
    compared = "\n".join(
        f"| {name} | "
        + ("not measured | | |" if r is None else f"{r[0]:.2f} | {r[1]:.2f} to {r[2]:.2f} | {r[3]:.2f} |")
        for name, r in ratios.items()
    )
    parameters = {fact["parameters"] for name, fact in facts.items() if name != "conservative_dream"}
    dtype = next(iter(facts.values())).get("dtype", "float32")
    # Not the person's own folders.
    places = {options.official: "CHECKOUT", options.python: "PYTHON"}
    said = " ".join(places.get(word, word) for word in sys.argv[1:])
    ceiling = "not measured" if flops_top is None else f"{flops_top / 1e9:.0f} GFLOP/s and {bytes_top / 1e9:.1f} GB/s"
    text = f"""# The train step

`python -m benchmarks.train_step {said}` at {report.commit()} on {device}:
{report.listed(versions)}.

SR3 UNet of {" / ".join(f"{count:,}" for count in parameters)} parameters, {spec["image_size"]} x {spec["image_size"]}
pixels, batch {spec["batch_size"]}, {dtype}, dropout {spec["dropout"]}, DREAM with p = 1. Medians of {options.repeats}
turns of all ways. Our step also degrades the pictures, averages the weights and takes norms; `official` is that code's
own DREAM step. Processor seconds are those of all cores; on a machine that does other work too they tell more than
the clock. The conservative objective trains without a condition.

| way | seconds | range | processor seconds | pictures/s | peak memory, bytes |
|---|---|---|---|---|---|
{times}

| ratio of seconds | median | range | of processor seconds |
|---|---|---|---|
{compared}

By XLA's own count, against what the device did in the same run: {ceiling}, the best of a matrix
product and of a copy, timed in JAX and in PyTorch.

| ours | trace, s | compile, s | temporary, MiB | state and batch, MiB | GFLOP | GB accessed | of product | of copy |
|---|---|---|---|---|---|---|---|---|
{compiled}

Where the time of {OURS} goes, {trace.WHAT}:

{trace.table(profiles.get(OURS))}
"""
    record = {"device": device, "commit": report.commit(), "versions": versions, "spec": spec, "ceilings": tops}
    return text, record | {"rows": rows, "ratios": ratios, "turns": turns, "profiles": profiles}


if __name__ == "__main__":
    sys.exit(main())
