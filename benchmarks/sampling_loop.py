"""What the scanned sampler gains over a Python loop that calls a jitted step.

    python -m benchmarks.sampling_loop

draws pictures with ancestral sampling, twice in each turn: by `sampling.run`, one program for all evaluations, and by a
loop on the host that calls one jitted DDPM step per evaluation, written as it is usually written. Both take the same
network, levels and noise, and must end at the same pictures. Networks of several costs show what dispatch is worth
beside the work. Prints a table and writes it to benchmarks/results/.
"""

import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import agreement, report
from configs import base
from dream_jax import experiment, sampling
from dream_jax.config import checks
from dream_jax.inference import drawing

STEPS, REPEATS = 50, 7
# (name, changes of the config, batch)
NETWORKS = (
    ("patch 4, 16 channels", {"channels": 16, "patch": 4, "num_res_blocks": 1, "channel_multipliers": (1,)}, 1),
    ("patch 4, 64 channels", {"channels": 64, "patch": 4, "num_res_blocks": 2, "channel_multipliers": (1, 2)}, 1),
    ("patch 4, 64 channels", {"channels": 64, "patch": 4, "num_res_blocks": 2, "channel_multipliers": (1, 2)}, 16),
    ("patch 1, 32 channels", {"channels": 32, "patch": 1, "num_res_blocks": 1, "channel_multipliers": (1, 2, 4)}, 4),
)
SIZE = 64


def setup(network: dict) -> experiment.Experiment:
    config = base.get_config()
    config.image_size = SIZE
    config.compute_dtype = "float32"
    config.network.attention_resolutions = ()
    config.network.norm_groups = 8
    for name, value in network.items():
        config.network[name] = value
    return experiment.build(checks.validate(config))


def make_timers(built, batch):
    """({way: () -> (seconds, pictures)}, parameters)."""
    levels = sampling.levels_of(built.schedule, STEPS)
    rows = drawing.make_rows(built, "ddpm", STEPS)
    shape, key = (batch, SIZE, SIZE, 3), drawing.make_key(0)
    index = jnp.arange(batch)
    shapes = jax.eval_shape(built.network.init, key, jnp.zeros(built.inputs_shape()), jnp.ones(1))["params"]
    params = jax.tree.map(jnp.asarray, agreement.weights(shapes))
    cond = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)

    @jax.jit
    def scanned(params, cond, rows, key):
        return sampling.run(key, drawing.make_denoise(built, params, {"cond": cond}), shape, rows, index)

    @functools.partial(jax.jit, donate_argnums=2)
    def step(params, cond, x, alpha, sigma, alpha_to, key, number):
        x0_hat = drawing.make_denoise(built, params, {"cond": cond})(x, alpha, sigma)
        return sampling.ddpm_step(x, x0_hat, alpha, alpha_to, sampling.noise(key, index, number, shape))

    start = jax.jit(lambda key: sampling.noise(key, index, 2**31 - 1, shape))

    def looped(params, cond, levels, key):
        x = start(key)
        for number in range(STEPS):
            alpha, sigma = np.float32(levels.alpha[number]), np.float32(levels.sigma[number])
            x = step(params, cond, x, alpha, sigma, np.float32(levels.alpha[number + 1]), key, number)
        return x

    def timer(way, table):
        def run():
            begun = time.perf_counter()
            pictures = jax.block_until_ready(way(params, cond, table, key))
            return time.perf_counter() - begun, np.asarray(pictures)

        return run

    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return {"scanned": timer(scanned, rows), "Python loop": timer(looped, levels)}, count


def main() -> int:
    rows = []
    for name, network, batch in NETWORKS:
        timers, parameters = make_timers(setup(network), batch)
        (_, ours), (_, theirs) = (timers[way]() for way in ("scanned", "Python loop"))
        difference = float(np.abs(ours - theirs).max())
        turns = [{way: run()[0] for way, run in timers.items()} for _ in range(REPEATS)]
        ratios = [turn["Python loop"] / turn["scanned"] for turn in turns]
        seconds = {way: statistics.median(turn[way] for turn in turns) for way in timers}
        rows.append(
            {"network": name, "parameters": parameters, "batch": batch, "difference": difference}
            | {
                "pictures_per_second": batch / seconds["scanned"],
                "loop_pictures_per_second": batch / seconds["Python loop"],
            }
            | {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}
        )
    versions = report.versions("jax", "jaxlib", "flax", "numpy")
    device = f"{jax.devices()[0].device_kind}, {report.machine()}"
    for r in rows:
        r["range"] = "{:.3f} to {:.3f}".format(*r["ratio_range"])
    table = "\n".join(
        f"| {r['network']} | {r['parameters']:,} | {r['batch']} | {r['pictures_per_second']:.2f} | "
        f"{r['loop_pictures_per_second']:.2f} | {r['ratio']:.3f} ({r['range']})"
        f" | {r['difference']:.1e} |"
        for r in rows
    )
    text = f"""# The scanned sampler against a loop on the host

`python -m benchmarks.sampling_loop` on {device}: {report.listed(versions)}.

Ancestral sampling in {STEPS} evaluations, {SIZE} x {SIZE} pixels, float32. Medians of {REPEATS} turns, each of
both; the ratio is that of throughputs, scanned to loop, turn by turn.

| network | parameters | batch | scanned, pictures/s | loop, pictures/s | ratio (range) | largest difference |
|---|---|---|---|---|---|---|
{table}
"""
    record = {"device": device, "versions": versions, "rows": rows}
    report.write("sampling_loop", text, record)
    return int(max(row["difference"] for row in rows) > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
