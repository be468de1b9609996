"""What training shows on the screen."""

import contextlib

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dream_jax.data.indexed import has_beside, images_of
from dream_jax.experiment import compute_dtype
from dream_jax.training import flat
from dream_jax.training.run import Run

# What is said of what lies beside pictures, of `tasks.beside.BESIDE`.
_FROM = {
    "low": "restored from the low-resolution pictures that are there, not from ones made of the originals",
    "condition": "made from the conditions beside them",
    "mask": "with the masks that are there, instead of drawn ones",
    "label": "of {} classes",
}


def introduce(console: Console, run: Run, held_out, mesh) -> None:
    """Says what is trained, on what, and from which step.

    Args:
      held_out: the pictures that are evaluated, uint8 [N, H, W, C], or pairs.
    """
    config = run.config
    count = sum(leaf.size for leaf in jax.tree.leaves(flat.shapes(run.state.params)))
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    console.print(
        f"{run.experiment.objective.title} ({config.objective.kind}), network of {count:,} parameters in "
        f"{np.dtype(compute_dtype(config)).name} on {devices}"
    )
    counts = f"{run.source.pictures} training pictures (or tiles of large ones), {len(images_of(held_out))} held out"
    console.print(f"{counts}; {run.total} steps of {config.batch_size}")
    if has_beside(run.source):
        console.print(_FROM[run.source.kind].format(len(config.data.classes)))
    begun = f"going on from the checkpoint of step {run.step}" if run.resumed else "a new run"
    console.print(f"workdir {run.workdir}: {begun}")
    if run.skipped:
        console.print(f"steps that are left out: {', '.join(map(str, sorted(run.skipped)))}")


@contextlib.contextmanager
def progress_bar(console: Console, run: Run):
    """`show(rate=None)`: a bar of the steps done and the time left, and the rate in steps a second when it is known."""
    columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
    columns = *columns, TextColumn("left"), TimeRemainingColumn()
    with Progress(*columns, console=console, speed_estimate_period=300) as bar:
        job = bar.add_task("training", total=run.total, completed=run.step, rate="compiling")

        def show(rate: float | None = None) -> None:
            fields = {} if rate is None else {"rate": f"{rate:.2f} steps/s"}
            bar.update(job, completed=run.step, **fields)

        yield show


def line(run: Run, values: dict, rate: float) -> str:
    """One line about a window of steps: its `loop.summarise`, and the rate in steps a second."""
    left = _clock((run.total - run.step) / rate if rate else float("nan"))
    skipped = f"  {values['skipped']} skipped" if values["skipped"] else ""
    means = "no step applied"
    if "loss" in values:
        means = f"loss {values['loss']:.4f}  |eps-eps_hat| {values['eps_error']:.4f}  lam {values['lam']:.3f}"
    pictures = rate * run.config.batch_size
    return f"step {run.step}/{run.total}  {means}{skipped}  {pictures:.1f} images/s  {left} left"


def _clock(seconds):
    if not np.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
