"""Training: the loop around the train step."""

import time
from pathlib import Path

import jax
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dream_jax import config as configs
from dream_jax import experiment as experiments
from dream_jax.errors import UserError
from dream_jax.files import images
from dream_jax.runtime import compilation_cache, hang, stopping
from dream_jax.training import checkpoint, watch
from dream_jax.training.run import Run
from dream_jax.training.train_step import QUARTILES


def check_devices(config, devices: int) -> None:
    """Raises UserError where the batch, or its self-estimates, do not divide over the devices there are."""
    parts = devices * config.accumulation
    if config.batch_size % parts:
        raise UserError(
            f"batch_size = {config.batch_size}: it must divide by devices x accumulation = {devices} x "
            f"{config.accumulation} = {parts}"
        )


def check_local(workdir: Path) -> None:
    """Raises UserError where a workdir is in a bucket."""
    if "://" in str(workdir) or str(workdir).startswith(("gs:", "s3:")):
        raise UserError(
            f"{workdir}: the workdir is a local folder; checkpoints alone may lie in a bucket, checkpoint.directory"
        )


def open_workdir(workdir: Path, config) -> None:
    """Makes the workdir's folders, and checks that a run in it has the same config."""
    try:
        (workdir / "samples").mkdir(parents=True, exist_ok=True)
        check_same(workdir, config)
        probe = workdir / "config.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{workdir}: the workdir cannot be written ({error.strerror or error})") from error


def check_same(folder, config) -> None:
    """Raises UserError where a folder holds the files of a run with another config."""
    path = folder / "config.json"
    if path.exists() and (changed := configs.differences(configs.read(path), config)):
        listed = "\n  ".join(changed)
        raise UserError(
            f"{folder} holds a run with another config; choose another --workdir (and checkpoint.directory), or undo "
            f"the difference (run's -> given):\n  {listed}"
        )


def loop(run: Run, sampler, console) -> None:
    """All steps that are left; every `log_every` of them the host reads their metrics, and only then."""
    config, total = run.config, run.total
    columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
    columns = *columns, TextColumn("left"), TimeRemainingColumn()
    bar = Progress(*columns, console=console, speed_estimate_period=300)
    try:
        patience = config.supervision.hang_minutes, config.supervision.first_minutes
        watched = hang.watched(*patience, run.workdir)
        compiling = compilation_cache.compiling("the train step", console.print)
        asked = stopping.asked(console.print)
        with asked as asked_to_stop, run.batches() as batches, bar, watched as beat, compiling as ran:
            job = bar.add_task("training", total=total, completed=run.step, rate="compiling")
            compiled, first_of_window, since = False, run.step, time.monotonic()
            while run.step < total:
                if number := asked_to_stop():
                    _leave(run, number)
                run.advance(batches)
                done = run.step
                if not compiled and run.window[-1] is not None:
                    jax.block_until_ready(run.window)
                    console.print(f"first step after {ran()}")
                    compiled, first_of_window, since = True, done, time.monotonic()
                save = done % config.checkpoint.every == 0 or done == total
                if done % config.log_every == 0 or save:
                    checkpoint.check(run.manager)
                    verdict = run.examine()
                    elapsed = time.monotonic() - since
                    rate = (done - first_of_window) / elapsed if done > first_of_window else 0.0
                    if verdict.action == "rollback":
                        run.roll_back(verdict)
                        bar.update(job, completed=run.step)
                        first_of_window, since = run.step, time.monotonic()
                        continue
                    values = summarise(run.window, done)
                    timing = {"steps_per_second": rate, "images_per_second": rate * config.batch_size}
                    if run.chief:
                        run.log.write(done, values, timing | {"time": time.time()})
                    bar.update(job, completed=done, rate=f"{rate:.2f} steps/s")
                    console.print(_line(done, total, values, rate, config.batch_size))
                    run.window, run.stats = [], verdict.stats
                elif len(run.window) % 8 == 0:
                    # Reads no value: it only keeps the host a few steps ahead of the device, not hundreds.
                    jax.block_until_ready(run.window[-8])
                    bar.update(job, completed=done)
                if done % config.samples.every == 0 or done == total:
                    grid = sampler(run.state.ema)
                    if run.chief:
                        images.write(run.workdir / "samples" / f"step_{done:07d}.png", grid, overwrite=True)
                        run.log.picture(done, "samples", grid)
                if save:
                    run.save(values.get("loss"))
                if not run.window:
                    first_of_window, since = done, time.monotonic()
                beat(done)
            checkpoint.wait(run.manager)
    except stopping.Stopped as stopped:
        how = "starts anew" if run.saved is None else f"goes on from the checkpoint of step {run.saved}"
        console.print(f"{stopped}; the same command {how}")
        raise
    finally:
        run.close()


def _leave(run, number):
    """Saves the run between two lines of its log, and raises Stopped."""
    # What would be rolled back is not saved: the run that goes on comes there again.
    if run.step and run.step != run.saved and run.examine().action != "rollback":
        run.save()
    checkpoint.wait(run.manager)
    raise stopping.Stopped(number)


def _line(done, total, values, rate, batch_size):
    left = clock((total - done) / rate if rate else float("nan"))
    skipped = f"  {values['skipped']} skipped" if values["skipped"] else ""
    means = "no step applied"
    if "loss" in values:
        means = f"loss {values['loss']:.4f}  |eps-eps_hat| {values['eps_error']:.4f}  lam {values['lam']:.3f}"
    return f"step {done}/{total}  {means}{skipped}  {rate * batch_size:.1f} images/s  {left} left"


def summarise(window: list, last: int) -> dict:
    """Means over the applied steps of a window, the loss also by quartile of the noise level (1 the cleanest).

    window holds the metrics of the steps up to `last`, None for one that was skipped. `skipped` counts those that were
    not applied, `skipped_steps` names them where there are any.
    """
    applied = [metrics for metrics in window if metrics is not None and watch.is_finite(metrics)]
    first = last - len(window) + 1
    skipped = [step for step, metrics in enumerate(window, first) if metrics is None or not watch.is_finite(metrics)]
    values = {}
    if applied:
        stacked = {name: np.stack([metrics[name] for metrics in applied]) for name in applied[0]}
        sums, counts = (np.sum(stacked.pop(name), axis=0) for name in ("level_losses", "level_counts"))
        values = {name: float(np.mean(value, dtype=np.float64)) for name, value in stacked.items()}
        for quartile in range(QUARTILES):
            if counts[quartile]:
                values[f"loss_quartile_{quartile + 1}"] = float(sums[quartile] / counts[quartile])
    return values | {"skipped": len(skipped)} | ({"skipped_steps": skipped} if skipped else {})


def clock(seconds: float) -> str:
    if not np.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def introduce(console, run, source, held_out, mesh):
    count = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    config = run.config
    console.print(
        f"{config.objective.name} ({config.objective.kind}), network of {count:,} parameters in "
        f"{np.dtype(experiments.compute_dtype(config)).name} on {devices}"
    )
    counts = f"{source.pictures} training pictures (or tiles of large ones), {len(held_out)} held out"
    console.print(f"{counts}; {run.total} steps of {config.batch_size}")
    if run.resumed:
        console.print(f"workdir {run.workdir}: going on from the checkpoint of step {run.step}")
    else:
        console.print(f"workdir {run.workdir}: a new run")
    if run.skipped:
        console.print(f"steps that are left out: {', '.join(map(str, sorted(run.skipped)))}")
