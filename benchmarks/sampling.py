"""Pictures a second: our samplers beside the sampling loop of the official PyTorch DREAM code.

    python -m benchmarks.sampling --official CHECKOUT --python PYTHON_WITH_TORCH

draws pictures with an SR3 network, by sampler, number of steps and batch, as `upscale` and `evaluate` draw them: one
compiled program from noise to uint8 pictures on the host. The official code, from a checkout of yours, runs in a
process of its own under the Python named, and takes turns with ours; it has ancestral sampling alone (see official.py
for how it is driven), as shipped and as well as PyTorch can: in bfloat16 on a GPU, channels last, compiled. Without
`--official` its cells say "not measured".

The network is one that CPUs can run: 32 channels, multipliers 1, 2, 4, 8, 64 x 64 pixels. `--paper` takes the paper's,
at 128 x 128 pixels, and draws 100 pictures in 100 steps:

    python -m benchmarks.sampling --paper --official CHECKOUT --python PYTHON_WITH_TORCH

Prints a table, writes it to benchmarks/results/, and exits with 1 if the two networks are not of the same size.
"""

import argparse
import os
import statistics
import sys
import time

# So that PyTorch finds room on the same GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import agreement, report, worker
from configs import base
from dream_jax import experiment
from dream_jax.config import checks
from dream_jax.inference import drawing
from dream_jax.runtime import sharding

SAMPLERS = ("ddpm", "ddim", "unipc_2")
SHIPPED, TUNED = "official ddpm, as shipped", "official ddpm, tuned"
CPU = {
    "image_size": 64,
    "channels": 32,
    "channel_multipliers": (1, 2, 4, 8),
    "attention_resolutions": (16,),
    "num_res_blocks": 2,
    "norm_groups": 32,
    "dropout": 0.2,
}
PAPER = CPU | {"image_size": 128, "channels": 64, "channel_multipliers": (1, 2, 4, 8, 8)}


def setup(spec: dict, dtype: str) -> experiment.Experiment:
    config = base.get_config()
    config.compute_dtype = dtype
    for name, value in spec.items():
        (config if name == "image_size" else config.network)[name] = value
    return experiment.build(checks.validate(config))


def make_timer(built: experiment.Experiment, batches, steps):
    """(`time(sampler, steps, batch) -> seconds`, parameters); what has to be compiled is compiled."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    drawer = drawing.make_draw(built, mesh)
    side = built.config.image_size
    shapes = jax.eval_shape(built.network.init, jax.random.key(0), jnp.zeros(built.inputs_shape()), jnp.ones(1))
    params = jax.tree.map(jnp.asarray, agreement.weights(shapes["params"]))
    key = drawing.make_key(0)
    cond = np.random.default_rng(0).uniform(-1, 1, (max(batches), side, side, 3)).astype(np.float32)

    def run(sampler, steps, batch):
        rows, inputs = drawing.make_rows(built, sampler, steps), drawing.inputs_of(built, cond[:batch])
        begun = time.perf_counter()
        pictures = np.asarray(drawer(params, inputs, np.arange(batch), rows, key))
        taken = time.perf_counter() - begun
        assert pictures.shape == (batch, side, side, 3)
        return taken

    for batch in batches:
        for number in steps:
            run(SAMPLERS[0], number, batch)
    return run, sum(leaf.size for leaf in jax.tree.leaves(params))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def main() -> int:
    parser = argparse.ArgumentParser(description="Pictures a second, beside the official code.")
    parser.add_argument("--official", metavar="PATH", help="a checkout of the official DREAM code")
    parser.add_argument("--python", metavar="PATH", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--paper", action="store_true", help="the paper's network, 100 pictures in 100 steps")
    parser.add_argument("--steps", type=numbers, metavar="N,N", help="network evaluations a picture")
    parser.add_argument("--batches", type=numbers, metavar="N,N", help="pictures at once")
    parser.add_argument("--dtype", default="auto", help="of our network; auto is bfloat16 on accelerators")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    spec = PAPER if options.paper else CPU
    steps = options.steps or ((100,) if options.paper else (1, 10))
    batches = options.batches or ((100,) if options.paper else (1, 8))
    official = {}
    if options.official:
        precision = ("bfloat16",) if jax.default_backend() == "gpu" else ()
        tunings = {SHIPPED: (), TUNED: (*precision, "channels_last", "compile")}
        official = {
            way: worker.official(options.python, options.official, spec | {"tuned": tuned, "batches": batches})
            for way, tuned in tunings.items()
        }
    for each in official.values():
        each.begin()
    built = setup(spec, options.dtype)
    ours, parameters = make_timer(built, batches, steps)

    cases = [(number, batch) for number in steps for batch in batches]
    seconds = {(way, *case): [] for way in (*options.samplers, *official) for case in cases}
    try:
        for turn in range(options.turns):
            for way, number, batch in seconds:
                theirs = official.get(way)
                taken = theirs.ask(steps=number, batch=batch) if theirs else ours(way, number, batch)
                seconds[way, number, batch].append(taken)
                print(f"turn {turn + 1}: {way}, {number} steps, batch {batch}: {taken:.3f} s", file=sys.stderr)
    finally:
        for each in official.values():
            each.stop()

    rows = []
    for way in (*SAMPLERS, SHIPPED, TUNED):
        for number, batch in cases:
            own = seconds.get((way, number, batch))
            row = {"way": way, "steps": number, "batch": batch}
            row |= {"pictures_per_second": own and batch / statistics.median(own)}
            for other in (SHIPPED, TUNED):
                theirs, row[other] = seconds.get((other, number, batch)), None
                if own and theirs:
                    ratios = [there / here for there, here in zip(theirs, own, strict=True)]
                    row[other] = statistics.median(ratios), min(ratios), max(ratios)
            rows.append(row)
    versions = report.versions("jax", "jaxlib", "flax", "numpy")
    device = f"{jax.devices()[0].device_kind}, {report.machine()}"
    theirs = "not measured"
    if official:
        facts = official[SHIPPED].facts
        tuned = ", ".join(tunings[TUNED])
        theirs = f"on {facts['device']}, as shipped in float32, tuned with {tuned}: {report.listed(facts['versions'])}"

    def cells(row):
        rate = row["pictures_per_second"]
        yield "not measured" if rate is None else f"{rate:.3f}"
        for other in (SHIPPED, TUNED):
            yield "not measured" if row[other] is None else "{:.2f} ({:.2f} to {:.2f})".format(*row[other])

    table = "\n".join(f"| {r['way']} | {r['steps']} | {r['batch']} | {' | '.join(cells(r))} |" for r in rows)
    name = "sampling_paper" if options.paper else "sampling"
    side, dtype = spec["image_size"], np.dtype(experiment.compute_dtype(built.config)).name
    multipliers = ", ".join(map(str, spec["channel_multipliers"]))
    text = f"""# Sampling beside the official code

`python -m benchmarks.sampling{" --paper" if options.paper else ""} --official CHECKOUT --python PYTHON`.
Ours on {device}, {dtype}: {report.listed(versions)}. The official code {theirs}.

An SR3 UNet of {parameters:,} parameters ({spec["channels"]} channels, multipliers {multipliers}), {side} x {side}
pixels, from noise to uint8 pictures on the host. Steps are network evaluations. Medians of {options.turns} turns, in
which all take part; the ratios are to the official code's ancestral sampling at the same steps and batch, turn by turn
(range).

| sampler | steps | batch | pictures/s | times the official code as shipped | and tuned |
|---|---|---|---|---|---|
{table}
"""
    record = {"device": device, "dtype": dtype, "versions": versions, "parameters": parameters, "spec": spec}
    report.write(name, text, record | {"official": {way: each.facts for way, each in official.items()}, "rows": rows})
    return int(any(each.facts["parameters"] != parameters for each in official.values()))


if __name__ == "__main__":
    sys.exit(main())
