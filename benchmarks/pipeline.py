"""Does training ever wait for its input?

    python -m benchmarks.pipeline [--folder PHOTOS]

measures, in turns, the pictures a second that `Batches` delivers on the device with 0, 1, 2 and 4 workers (0 reads
in the loop itself, without threads), the pictures a second that the train step takes when its batch is already there,
and the same when every batch is read as in training. quickstart's pictures are those within scikit-image, decoded once;
the others' are a folder, by default these same photographs as files, prepared as any folder is (crops from PNG tiles).

The input must deliver three times what the step takes, with the workers of the config; else the cell says what bounds
the run. Prints a table, writes it to benchmarks/results/, and exits with 1 below that.
"""

import argparse
import contextlib
import shutil
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from benchmarks import report, scaling
from dream_jax.config import checks, command_line
from dream_jax.data import batches, bundled, sources
from dream_jax.files import images
from dream_jax.runtime import sharding

WORKERS = (0, 1, 2, 4)
BOUND = 3.0
TURNS, BATCHES = 5, 8
# Name and batch; None is the config's own. On CPU a step of sr3_photos_4x's 64 pictures takes most of a minute.
CONFIGS = (("quickstart", None), ("photos_4x_cpu", None), ("sr3_photos_4x", 8))


def setup(name: str, batch: int | None, folder: Path):
    config = command_line.load(report.ROOT / "configs" / f"{name}.py")
    if name != "quickstart":
        config.data.folder = str(folder)
        config.data.cache_dir = str(folder.parent / "cache")
    if batch is not None and jax.default_backend() == "cpu":
        config.batch_size = batch
    return checks.validate(config)


def write_photographs(folder: Path) -> None:
    """The photographs within scikit-image as PNG files, twice as wide and high: nearer to a camera's."""
    for split in bundled.BUNDLED:
        source = bundled.photographs(split)
        for index in range(source.pictures):
            images.write(folder / f"{split}_{index}.png", np.kron(source[index], np.ones((2, 2, 1), np.uint8)))


def make_timers(config):
    """({what: () -> (seconds, pictures)}, what ends the threads, parameters of the network)."""
    source = sources.open_source(config, "train")
    pictures = batches.train_pictures(source, config.seed, config.image_size, config.data.resize)
    mesh = sharding.make_mesh()
    layout = NamedSharding(mesh, sharding.BATCH)
    step, state, resident, _ = scaling.prepare(config, mesh)
    size, position = config.batch_size, 0

    def numbers():
        nonlocal position
        position += BATCHES
        return range(position - BATCHES, position)

    def read(workers):
        begun = time.perf_counter()
        if workers:
            with batches.Batches(pictures, size, layout, workers) as feed:
                for k in numbers():
                    jax.block_until_ready(feed(k))
                taken = time.perf_counter() - begun
            return taken, BATCHES * size
        here = types.SimpleNamespace(map=map)
        for k in numbers():
            local = batches.batch_rows(pictures, k, size, np.arange(size), here)
            jax.block_until_ready(jax.device_put(local, layout))
        return time.perf_counter() - begun, BATCHES * size

    def take(next_batch, count):
        nonlocal state
        begun = time.perf_counter()
        for k in range(count):
            state, metrics = step(state, next_batch(k))
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - begun, count * size

    # Steps enough to be timed, few enough to wait for.
    seconds = min(take(lambda _: resident, 1)[0] for _ in range(2))
    count = int(np.clip(2 / seconds, 1, 50))
    feed = batches.Batches(pictures, size, layout, config.data.workers)
    fed_from = 10**6

    def fed():
        nonlocal fed_from
        feed(fed_from)  # those ahead are being prepared, as in the middle of a run
        fed_from += count + 1
        return take(lambda k: feed(fed_from - count + k), count)

    timers = {workers: lambda workers=workers: read(workers) for workers in WORKERS}
    timers |= {"step": lambda: take(lambda _: resident, count), "step, fed": fed}
    return timers, feed.close, sum(leaf.size for leaf in jax.tree.leaves(state.params))


def measure(name: str, batch: int | None, folder: Path) -> dict:
    config = setup(name, batch, folder)
    timers, close, parameters = make_timers(config)
    with contextlib.ExitStack() as stack:
        stack.callback(close)
        # The first turn warms up.
        turns = [{what: run() for what, run in timers.items()} for _ in range(TURNS + 1)][1:]
    rates = {what: [pictures / seconds for seconds, pictures in (turn[what] for turn in turns)] for what in timers}
    times = {
        workers: [read / taken for read, taken in zip(rates[workers], rates["step"], strict=True)]
        for workers in WORKERS
    }
    return {
        "config": name,
        "batch": config.batch_size,
        "workers": config.data.workers,
        "parameters": parameters,
        "rates": {str(what): statistics.median(rate) for what, rate in rates.items()},
        "times_the_step": {str(workers): statistics.median(ratio) for workers, ratio in times.items()},
        "fed": statistics.median(a / b for a, b in zip(rates["step, fed"], rates["step"], strict=True)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="The input pipeline beside what the train step takes.")
    parser.add_argument("--folder", type=Path, metavar="PHOTOS", help="of the configs that need one")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    try:
        folder = options.folder
        if folder is None:
            folder = work / "photographs"
            folder.mkdir()
            write_photographs(folder)
        rows = [measure(name, batch, folder) for name, batch in CONFIGS]
    finally:
        shutil.rmtree(work)
    below = [row["config"] for row in rows if row["times_the_step"][str(row["workers"])] < BOUND]
    versions = report.versions("jax", "grain", "tensorflow-datasets", "pillow")
    device = f"{jax.devices()[0].device_kind}, {report.machine()}"
    of = "a folder of yours" if options.folder else "the photographs within scikit-image as files, twice their size"

    def line(row):
        read = " | ".join(f"{row['rates'][str(w)]:,.0f} ({row['times_the_step'][str(w)]:.1f})" for w in WORKERS)
        return (
            f"| {row['config']} | {row['parameters']:,} | {row['batch']} | {read} | {row['rates']['step']:,.1f} | "
            f"{row['fed']:.3f} | {'input' if row['config'] in below else 'step'} |"
        )

    table = "\n".join(map(line, rows))
    text = f"""# The input pipeline beside the train step

`python -m benchmarks.pipeline{" --folder PHOTOS" if options.folder else ""}` on {device}:
{report.listed(versions)}.

Pictures a second, medians of {TURNS} turns in which all take part. Crops of quickstart come from memory, the others'
from {of}. By workers: batches on the device, and how many times the step's own
rate that is, on the same cores. "Fed" is the step's rate when each batch is read as in training, with the config's
workers, over its rate when its batch is there already. The bound is "step" where the config's workers deliver {BOUND:g}
times what the step takes.

| config | parameters | batch | 0 workers | 1 | 2 | 4 | step, pictures/s | fed | bound |
|---|---|---|---|---|---|---|---|---|---|
{table}
"""
    report.write("pipeline", text, {"device": device, "versions": versions, "rows": rows})
    return int(bool(below))


if __name__ == "__main__":
    sys.exit(main())
