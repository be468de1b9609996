"""What gradient accumulation costs: one update in four microbatches against one update at once, on the same examples.

    python -m benchmarks.accumulation

times whole train steps (DREAM with p = 1, dropout 0.2, Adam, EMA) of an SR3 UNet on CPU, the ways taking turns, so that
whatever else the machine does meets them all alike. The ratio of the medians must be at most 1.3. The same is timed
with JAX's own gradient of convolutions, the reason for the one in `networks/convolution.py`. Prints a table, writes it
to benchmarks/results/, and exits with 1 above the bound.
"""

import os
import statistics
import sys
import time
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from benchmarks import agreement, report
from configs import base
from dream_jax import experiment
from dream_jax.config import checks
from dream_jax.networks import convolution
from dream_jax.optimizers import make_optimizer
from dream_jax.runtime import sharding
from dream_jax.training import flat, train_state
from dream_jax.training.train_step import make_train_step

BOUND = 1.3
BATCH, SIZE = 16, 64
AT_ONCE, LOOP_OF_ONE, LOOP_OF_FOUR = "at once, no loop", "one, in the loop", "four, in the loop"
REPEATS = 9


def setup(accumulation: int):
    config = base.get_config()
    config.batch_size = BATCH
    config.accumulation = accumulation
    config.image_size = SIZE
    config.network.channels = 32
    config.network.channel_multipliers = (1, 2, 4)
    config.network.attention_resolutions = (16,)
    config.network.num_res_blocks = 1
    config.network.norm_groups = 8
    config.network.dropout = 0.2
    return checks.validate(config)


def make_timer(accumulation: int, batch):
    """(time_step, parameters): a function that runs one compiled update and returns its seconds."""
    config = setup(accumulation)
    built = experiment.build(config)
    optimizer = make_optimizer(config.optimizer)
    mesh = sharding.make_mesh()
    shapes = jax.eval_shape(
        lambda: train_state.create(built.network, optimizer, jax.random.key(0), built.inputs_shape())
    )
    specs = sharding.state_specs(shapes, mesh)
    state = train_state.start(jax.tree.map(jax.numpy.asarray, agreement.weights(flat.shapes(shapes.params))), optimizer)
    state = jax.device_put(state, sharding.named(specs, mesh))
    batch = jax.device_put(batch, NamedSharding(mesh, sharding.BATCH))
    train_step = make_train_step(built, optimizer, mesh, specs, 1).lower(state, batch, True).compile()

    def time_step():
        nonlocal state
        start = time.perf_counter()
        state, metrics = train_step(state, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    return time_step, sum(leaf.size for leaf in jax.tree.leaves(shapes.params))


def once(body, carry, xs):
    """`lax.scan` of one turn, without the loop; unroll=True would leave one to XLA."""
    carry, _ = body(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, None


def main() -> int:
    pictures = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    batch = {"image": pictures, "row": np.arange(BATCH, dtype=np.int32)}
    steps, parameters = {}, 0
    for gradient, chosen in (("ours", convolution.conv_general_dilated), ("JAX's own", lax.conv_general_dilated)):
        with mock.patch.object(convolution, "conv_general_dilated", chosen):
            with mock.patch.object(lax, "scan", once):
                steps[gradient, AT_ONCE], parameters = make_timer(1, batch)
            steps[gradient, LOOP_OF_ONE], _ = make_timer(1, batch)
            steps[gradient, LOOP_OF_FOUR], _ = make_timer(4, batch)

    # In a loop JAX's own gradient is so slow that one step shows it.
    slow = [(gradient, loop) for gradient, loop in steps if gradient != "ours" and loop != AT_ONCE]
    seconds = {way: [steps[way]()] for way in slow}
    fast = [way for way in steps if way not in slow]
    for way in fast:
        steps[way]()
    turns = [[steps[way]() for way in fast] for _ in range(REPEATS)]
    seconds |= dict(zip(fast, zip(*turns, strict=True), strict=True))

    median = {way: statistics.median(taken) for way, taken in seconds.items()}
    rows = [
        {"gradient": gradient, "microbatches": loop, "seconds": median[gradient, loop]}
        | {"ratio": median[gradient, loop] / median["ours", AT_ONCE], "repeats": len(seconds[gradient, loop])}
        for gradient, loop in steps
    ]
    ratio = median["ours", LOOP_OF_FOUR] / median["ours", AT_ONCE]
    versions = report.versions("jax", "jaxlib", "flax", "optax", "numpy")
    device = report.machine()
    table = "\n".join(
        f"| {row['gradient']} | {row['microbatches']} | {row['seconds']:.2f} | {row['ratio']:.2f} | {row['repeats']} |"
        for row in rows
    )
    text = f"""# The cost of accumulation

`python -m benchmarks.accumulation` on CPU ({device}): {report.listed(versions)}.

One update of an SR3 UNet of {parameters:,} parameters, {SIZE} x {SIZE} pixels, batch {BATCH}, float32, DREAM with
p = 1, dropout 0.2. Medians of steps that take turns; the ratio is to our step at once.

| gradient of convolutions | microbatches | seconds | ratio | repeats |
|---|---|---|---|---|
{table}

Bound on the ratio of our four microbatches: {BOUND}. {"Kept" if ratio <= BOUND else "EXCEEDED"}.
"""
    record = {"device": device, "versions": versions, "parameters": parameters, "rows": rows}
    report.write("accumulation", text, record)
    return int(ratio > BOUND)


if __name__ == "__main__":
    sys.exit(main())
