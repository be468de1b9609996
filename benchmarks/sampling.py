"""Pictures a second: our samplers beside the sampling loop of the official PyTorch DREAM code.

    python -m benchmarks.sampling --official CHECKOUT --python PYTHON_WITH_TORCH

draws pictures with an SR3 network, by sampler, number of steps and batch, as `upscale` and `evaluate` draw them: one
compiled program from noise to uint8 pictures on the host. The official code, from a checkout of yours, runs in a process
of its own under the Python named, and takes turns with ours; it has ancestral sampling alone (see official_sampling.py for
how it is driven). Without `--official` its cells say "not measured".

The network is one that CPUs can run: 32 channels, multipliers 1, 2, 4, 8, 64 x 64 pixels. `--paper` takes the paper's, at
128 x 128 pixels, and draws 100 pictures in 100 steps:

    python -m benchmarks.sampling --paper --official CHECKOUT --python PYTHON_WITH_TORCH

Prints a table, writes it to benchmarks/results/, and exits with 1 if the two networks are not of the same size.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

# So that PyTorch finds room on the same GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import agreement, report
from configs import base
from dream_jax import config as configs
from dream_jax import draw, experiment, sharding

SAMPLERS = ("ddpm", "ddim", "unipc_2")
OFFICIAL = "official, ddpm"
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
    return experiment.build(configs.validate(config))


def make_timer(built: experiment.Experiment, batches, steps):
    """(`time(sampler, steps, batch) -> seconds`, parameters); what has to be compiled is compiled."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    drawer = draw.make_draw(built, mesh)
    side = built.config.image_size
    shapes = jax.eval_shape(built.network.init, jax.random.key(0), jnp.zeros(built.inputs_shape()), jnp.ones(1))
    params = jax.tree.map(jnp.asarray, agreement.weights(shapes["params"]))
    key = draw.make_key(0)
    cond = np.random.default_rng(0).uniform(-1, 1, (max(batches), side, side, 3)).astype(np.float32)

    def run(sampler, steps, batch):
        rows, inputs = draw.make_rows(built, sampler, steps), draw.inputs_of(built, cond[:batch])
        begun = time.perf_counter()
        pictures = np.asarray(drawer(params, inputs, np.arange(batch), rows, key))
        taken = time.perf_counter() - begun
        assert pictures.shape == (batch, side, side, 3)
        return taken

    for batch in batches:
        for number in steps:
            run(SAMPLERS[0], number, batch)
    return run, sum(leaf.size for leaf in jax.tree.leaves(params))


class Official:
    """The official code in a process of its own."""

    def __init__(self, python: str, checkout: str, spec: dict):
        script = Path(__file__).with_name("official_sampling.py")
        command = [python, str(script), "--official", checkout, "--spec", json.dumps(spec)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self.answer()

    def answer(self):
        said = self.process.stdout.readline()
        if not said:
            raise RuntimeError(f"the official code's process ended with status {self.process.wait()}")
        return json.loads(said)

    def __call__(self, steps: int, batch: int) -> float:
        print(json.dumps({"steps": steps, "batch": batch}), file=self.process.stdin, flush=True)
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


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
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    spec = PAPER if options.paper else CPU
    steps = options.steps or ((100,) if options.paper else (1, 10))
    batches = options.batches or ((100,) if options.paper else (1, 8))
    built = setup(spec, options.dtype)
    ours, parameters = make_timer(built, batches, steps)
    official = Official(options.python, options.official, spec) if options.official else None

    cases = [(number, batch) for number in steps for batch in batches]
    ways = [*SAMPLERS, OFFICIAL] if official else list(SAMPLERS)
    seconds = {(way, *case): [] for way in ways for case in cases}
    try:
        # The first turn warms up.
        for turn in range(options.turns + 1):
            for way, *case in seconds:
                taken = official(*case) if way == OFFICIAL else ours(way, *case)
                seconds[way, *case] += [taken] if turn else []
    finally:
        if official:
            official.close()

    rows = []
    for way in (*SAMPLERS, OFFICIAL):
        for number, batch in cases:
            row = {"way": way, "steps": number, "batch": batch, "pictures_per_second": None, "ratio": None}
            if own := seconds.get((way, number, batch)):
                row["pictures_per_second"] = batch / statistics.median(own)
                if official:
                    theirs = seconds[OFFICIAL, number, batch]
                    ratios = [there / here for there, here in zip(theirs, own, strict=True)]
                    row |= {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}
            rows.append(row)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    versions = {"python": platform.python_version(), **versions}
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}"
    theirs = "not measured"
    if official:
        listed = ", ".join(f"{n} {v}" for n, v in official.facts["versions"].items())
        theirs = f"on {official.facts['device']}, float32: {listed}"

    def cells(row):
        rate = row["pictures_per_second"]
        yield "not measured" if rate is None else f"{rate:.3f}"
        ratio = row["ratio"]
        yield "not measured" if ratio is None else f"{ratio:.2f} ({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f})"

    table = "\n".join(f"| {r['way']} | {r['steps']} | {r['batch']} | {' | '.join(cells(r))} |" for r in rows)
    name = "sampling_paper" if options.paper else "sampling"
    side, dtype = spec["image_size"], np.dtype(experiment.compute_dtype(built.config)).name
    multipliers = ", ".join(map(str, spec["channel_multipliers"]))
    text = f"""# Sampling beside the official code

`python -m benchmarks.sampling{" --paper" if options.paper else ""} --official CHECKOUT --python PYTHON`.
Ours on {device}, {dtype}: {", ".join(f"{n} {v}" for n, v in versions.items())}. The official code {theirs}.

An SR3 UNet of {parameters:,} parameters ({spec["channels"]} channels, multipliers {multipliers}), {side} x {side} pixels,
from noise to uint8 pictures on the host. Steps are network evaluations. Medians of {options.turns} turns, in which all take
part; the ratio is to the official code's ancestral sampling at the same steps and batch, turn by turn (range).

| sampler | steps | batch | pictures/s | times the official code |
|---|---|---|---|---|
{table}
"""
    record = {"device": device, "dtype": dtype, "versions": versions, "parameters": parameters, "spec": spec}
    report.write(name, text, record | {"official": official and official.facts, "rows": rows})
    return int(official is not None and official.facts["parameters"] != parameters)


if __name__ == "__main__":
    sys.exit(main())
