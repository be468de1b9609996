"""Quality per second of the standard objective, of DREAM and of DREAM on some steps only, trained side by side on CPU.

    python -m benchmarks.quality_per_second --train PHOTOS --eval OTHER_PHOTOS --minutes 30 --output study/cheaper.json

trains a small network on photographs enlarged four times, from one seed, in every way of WAYS. They take turns of a few
seconds in one process, so that whatever else the machine does meets them all alike; a way's clock runs during its own
steps only. At equal times on those clocks all are measured on held-out photographs (EMA weights, DDIM), and at the end
the gap between training and sampling. The minutes are those of training and measuring, without reading and compiling.
Writes the record, and a table (CSV) and a plot (PNG) beside it.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks import report
from configs import photos_4x_cpu
from dream_jax import experiment, metrics, objectives
from dream_jax.config import checks
from dream_jax.data import batches, held_out, indexed, sources
from dream_jax.evaluation import gap
from dream_jax.files import atomic
from dream_jax.files.names import check_output, set_aside
from dream_jax.inference import drawing
from dream_jax.optimizers import make_optimizer
from dream_jax.runtime import sharding
from dream_jax.training.train_step import make_train_step, start_state

# name: changes of config.objective
WAYS = {
    "standard": {"p": None},
    "DREAM": {},
    "every 2nd step": {"estimate_every": 2},
    "from step 300": {"start_step": 300},
}
TURN = 5.0
MEASURES = {
    "psnr_1": "PSNR at 1 step of DDIM, dB",
    "psnr_8": "PSNR at 8 steps, dB",
    "swd_8": "sliced Wasserstein x 1e3, 8 steps",
}


def setup(options, way: dict):
    config = photos_4x_cpu.get_config()
    config.compute_dtype = "float32"
    config.ema_decay = 0.995
    config.network.channels, config.network.num_res_blocks = 32, 1
    config.optimizer.learning_rate = 1e-3
    config.data.folder, config.data.eval_folder, config.data.cache_dir = options.train, options.eval, options.cache_dir
    config.evaluation.samplers, config.evaluation.steps = ("ddim",), (1, 8)
    config.evaluation.pictures, config.evaluation.crop = 16, 128
    for name, value in way.items():
        config.objective[name] = value
    return checks.validate(config)


class Way:
    """One way of training: its state, and what its own steps have taken."""

    def __init__(self, name, config, source, mesh, state, compiled):
        self.name, self.config, self.steps, self.seconds, self.cpu_seconds = name, config, 0, 0.0, 0.0
        self.experiment = experiment.build(config)
        optimizer = make_optimizer(config.optimizer)
        self.state, specs = jax.tree.map(jnp.copy, state), sharding.state_specs(state, mesh)
        self.steps_per_epoch = len(source) // config.batch_size
        pictures = batches.train_pictures(source, config.seed, config.image_size)
        self.batches = batches.Batches(pictures, config.batch_size, NamedSharding(mesh, sharding.BATCH))
        train_step = make_train_step(self.experiment, optimizer, mesh, specs, self.steps_per_epoch)
        # The ways share most of their programs.
        c = config.objective
        programs = {False: "standard", True: objectives.chosen(c).title}
        for rectify, program in programs.items():
            if program not in compiled:
                compiled[program] = train_step.lower(self.state, self.batches(0), rectify).compile()
        self.programs = {rectify: compiled[program] for rectify, program in programs.items()}

    def train(self, seconds: float) -> None:
        """Trains until its clock shows this much."""
        while self.seconds < seconds:
            batch, rectify = (
                self.batches(self.steps),
                objectives.rectifies(self.config.objective, self.steps, self.steps_per_epoch),
            )
            begun = time.perf_counter(), time.process_time()
            self.state, values = self.programs[rectify](self.state, batch)
            loss = float(values["loss"])
            self.seconds += time.perf_counter() - begun[0]
            self.cpu_seconds += time.process_time() - begun[1]
            self.steps += 1
            if not np.isfinite(loss):
                raise FloatingPointError(f"{self.name}, step {self.steps}: loss {loss}")


def make_measure(built, mesh, pictures):
    """(measure, baseline): a function of weights to {name: value}, and the enlarged pictures' values."""
    _, cond, enlarged = drawing.observe(built, pictures)
    draw, inputs = drawing.make_draw(built, mesh), {"cond": cond}
    settings, key = built.config.evaluation, drawing.make_key(0)

    def values(drawn, steps):
        return {f"psnr_{steps}": float(np.mean(metrics.psnr(drawn, pictures)))} | {
            f"swd_{steps}": metrics.sliced_wasserstein(drawn, pictures)
        }

    def measure(params):
        measured = {}
        for steps in settings.steps:
            rows = drawing.make_rows(built, "ddim", steps)
            drawn = drawing.draw_pictures(draw, params, inputs, rows, key, mesh, settings.batch_size)
            measured |= values(drawn, steps)
        return measured

    baseline = {name: value for steps in settings.steps for name, value in values(enlarged, steps).items()}
    return measure, baseline


def in_memory(source) -> indexed.Source:
    pictures = [source[index] for index in range(len(source))]
    return indexed.Source(pictures.__getitem__, len(pictures))


def study(options, console) -> dict:
    mesh = sharding.make_mesh()
    first = setup(options, {})
    source, pictures = in_memory(sources.open_source(first, "train")), held_out.eval_pictures(first)
    compiled = {}
    init, _ = start_state(experiment.build(first), make_optimizer(first.optimizer), mesh)
    state = init()
    ways = [Way(name, setup(options, way), source, mesh, state, compiled) for name, way in WAYS.items()]
    measure, baseline = make_measure(ways[0].experiment, mesh, pictures)
    measure(ways[0].state.ema)
    begun = time.perf_counter()
    measure(ways[0].state.ema)
    for_measuring = (time.perf_counter() - begun) * options.points * len(ways)
    own = (60 * options.minutes - for_measuring) / len(ways)
    if own <= 0:
        raise SystemExit(
            f"measuring alone takes {for_measuring / 60:.1f} minutes: give more --minutes or fewer --points"
        )
    console.print(f"{own:.0f} s of training each, about {for_measuring:.0f} s of measuring")

    rows, start = [], time.perf_counter()
    for point in range(1, options.points + 1):
        turns = max(1, round(own / options.points / TURN))
        for turn in range(1, turns + 1):
            # Whoever comes after a pause, or after whom one comes, changes from turn to turn.
            for way in [*ways[turn % len(ways) :], *ways[: turn % len(ways)]]:
                way.train(own * (point - 1 + turn / turns) / options.points)
        for way in ways:
            row = {"way": way.name, "seconds": way.seconds, "cpu_seconds": way.cpu_seconds, "steps": way.steps}
            rows.append(row | measure(way.state.ema))
            console.print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else str(v) for k, v in rows[-1].items()))
        # What a stop would lose.
        atomic.write_csv(options.output.with_suffix(".unfinished.csv"), rows)
    minutes = (time.perf_counter() - start) / 60

    models = {way.name: drawing.Model(way.experiment, way.state.ema, way.steps, mesh, way.name) for way in ways}
    gaps = gap.measure(models, pictures, Console(quiet=True))
    for way in ways:
        way.batches.close()
    versions = report.versions("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "device": report.machine(),
        "versions": versions,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(ways[0].state.params)),
        "config": first.to_dict() | {"data": {}},
        "ways": WAYS,
        "minutes": minutes,
        "pictures": {"train": len(source), "held out": len(pictures)},
        "baseline": baseline,
        "rows": rows,
        "gap": {name: model["gap"] for name, model in gaps["models"].items()},
    }


def time_to(rows, name: str, quality: float, clock: str) -> float | None:
    """When a way's measure first came to a quality, between the points at which it was measured; None if it did not."""
    times, values = [row[clock] for row in rows], [row[name] for row in rows]
    if values[0] >= quality:
        return times[0]
    for i in range(1, len(values)):
        if values[i] >= quality:
            part = (quality - values[i - 1]) / (values[i] - values[i - 1])
            return times[i - 1] + part * (times[i] - times[i - 1])
    return None


def plot(record: dict, path: Path) -> None:
    """Quality against own seconds of training above, against steps below."""
    figure = Figure(figsize=(5 * len(MEASURES), 8), layout="constrained")
    FigureCanvasAgg(figure)
    for down, (clock, label) in enumerate({"seconds": "seconds of training", "steps": "steps"}.items()):
        for across, (name, title) in enumerate(MEASURES.items()):
            axes = figure.add_subplot(2, len(MEASURES), down * len(MEASURES) + across + 1)
            for way in record["ways"]:
                rows = [row for row in record["rows"] if row["way"] == way]
                axes.plot([row[clock] for row in rows], [row[name] for row in rows], "o-", markersize=3, label=way)
            axes.axhline(record["baseline"][name], color="grey", linewidth=1, label="bicubic")
            axes.set_xlabel(label)
            axes.set_ylabel(title)
            axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, fontsize=9)
    figure.savefig(path, dpi=70)


def table(record: dict) -> str:
    """The last measurement of each way, as Markdown."""
    names = list(MEASURES)
    lines = ["| | steps | CPU s/step | " + " | ".join(names) + " | gap | seconds to DREAM's last psnr_8 |"]
    lines.append("|---" * (len(names) + 5) + "|")
    wanted = [row for row in record["rows"] if row["way"] == "DREAM"][-1]["psnr_8"]
    values = " | ".join(f"{record['baseline'][name]:.2f}" for name in names)
    lines.append(f"| bicubic | | | {values} | | |")
    for way in record["ways"]:
        rows = [row for row in record["rows"] if row["way"] == way]
        last, reached = rows[-1], time_to(rows, "psnr_8", wanted, "seconds")
        values = " | ".join(f"{last[name]:.2f}" for name in names)
        taken = f"{last['cpu_seconds'] / last['steps']:.3f}"
        end = "not reached" if reached is None else f"{reached:.0f}"
        lines.append(f"| {way} | {last['steps']} | {taken} | {values} | {record['gap'][way]:.3f} | {end} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Quality per second of DREAM and its cheaper forms.")
    parser.add_argument("--train", required=True, help="folder of photographs to train on")
    parser.add_argument("--eval", required=True, help="folder of photographs to measure on")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--points", type=int, default=4, help="how often each is measured")
    parser.add_argument("--output", type=Path, required=True, help="the record, .json")
    parser.add_argument("--cache-dir", help="prepared pictures; ~/.cache/dream_jax")
    options = parser.parse_args()
    check_output(options.output)
    console = Console(width=200)
    record = study(options, console)
    set_aside(options.output, [options.output.with_suffix(s) for s in (".json", ".csv", ".png")])
    atomic.write_csv(options.output.with_suffix(".csv"), record["rows"])
    plot(record, options.output.with_suffix(".png"))
    atomic.write_json(options.output, record)
    options.output.with_suffix(".unfinished.csv").unlink()
    print(table(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
