"""Training: the loop around the train step."""

import time

import jax
import numpy as np
from rich.console import Console

from dream_jax.files import images
from dream_jax.runtime import compilation_cache, hang, stopping
from dream_jax.training import bad_numbers, checkpoint, screen
from dream_jax.training.run import Run

# Steps that the host may be ahead of the device.
_AHEAD = 8


def loop(run: Run, sampler, console: Console) -> None:
    """Does all steps that are left. The host reads their metrics at the end of a window only, and closes the run.

    Args:
      sampler: `params -> grid`, uint8 [H, W, 3]: sample pictures.

    Raises Stopped after a signal, and UserError where the run must stop.
    """
    config = run.config
    try:
        with (
            stopping.asked(console.print) as asked_to_stop,
            run.batches() as batches,
            screen.progress_bar(console, run) as show,
            hang.watched(config.supervision.hang_minutes, config.supervision.first_minutes, run.workdir) as beat,
        ):
            speed, compiled = _Speed(), False
            speed.start(run.step)
            while run.step < run.total:
                if number := asked_to_stop():
                    _leave(run, number)
                if compiled or run.step + 1 in run.skipped:
                    run.advance(batches)
                else:
                    _compile_and_advance(run, batches, console)
                    speed.start(run.step)
                    compiled = True
                _after_step(run, speed, sampler, show, console)
                beat(run.step)
            checkpoint.wait(run.manager)
    except stopping.Stopped as stopped:
        how = "starts anew" if run.saved is None else f"goes on from the checkpoint of step {run.saved}"
        console.print(f"{stopped}; the same command {how}")
        raise
    finally:
        run.close()


class _Speed:
    """Steps a second since it was last started."""

    def start(self, step: int) -> None:
        self._step, self._time = step, time.monotonic()

    def rate(self, step: int) -> float:
        return (step - self._step) / (time.monotonic() - self._time) if step > self._step else 0.0


def _compile_and_advance(run, batches, console):
    with compilation_cache.compiling("the train step", console.print) as ran:
        run.advance(batches)
        jax.block_until_ready(run.window)
        console.print(f"first step after {ran()}")


def _after_step(run, speed, sampler, show, console):
    """What is due after a step: a line of the log, sample pictures, a checkpoint; or a rollback instead."""
    config, values = run.config, {}
    is_last = run.step == run.total
    saves = run.step % config.checkpoint.every == 0 or is_last
    if run.step % config.log_every == 0 or saves:
        checkpoint.check(run.manager)
        verdict = run.examine()
        if verdict.action == "rollback":
            run.roll_back(verdict)
            show()
            speed.start(run.step)
            return
        values = _log(run, verdict, speed.rate(run.step), show, console)
    elif len(run.window) % _AHEAD == 0:
        # Reads no value; it keeps the host from queueing hundreds of steps.
        jax.block_until_ready(run.window[-_AHEAD])
        show()
    if run.step % config.samples.every == 0 or is_last:
        _draw(run, sampler)
    if saves:
        run.save(values.get("loss"))
    if not run.window:
        # The rate of the next window is without the time for pictures and checkpoints.
        speed.start(run.step)


def _log(run, verdict, rate, show, console):
    """Ends the window with a line in the log and on the screen; returns its values."""
    values = summarise(run.window, run.step)
    if run.log:
        timing = {"steps_per_second": rate, "images_per_second": rate * run.config.batch_size, "time": time.time()}
        run.log.write(run.step, values, timing)
    show(rate)
    console.print(screen.line(run, values, rate))
    run.window, run.stats = [], verdict.stats
    return values


def _draw(run, sampler):
    grid = sampler(run.average())
    if run.log:
        images.write(run.workdir / "samples" / f"step_{run.step:07d}.png", grid, overwrite=True)
        run.log.picture(run.step, "samples", grid)


def _leave(run, number):
    """Saves the run between two lines of its log, and raises Stopped."""
    # Steps that would be rolled back are not saved: the run that goes on comes to them again.
    if run.step and run.step != run.saved and run.examine().action != "rollback":
        run.save()
    checkpoint.wait(run.manager)
    raise stopping.Stopped(number)


def summarise(window: list, last: int) -> dict:
    """Means over the applied steps of a window, the loss also by quartile of the noise level (1 the cleanest).

    Args:
      window: the metrics of the steps up to `last`, None for one that was left out.

    Returns:
      {metric: mean}, {"loss_quartile_N": mean}, "skipped": the number of steps that were not applied, and, where there
      are any, "skipped_steps": their numbers.
    """
    applied = [metrics for metrics in window if metrics is not None and bad_numbers.is_finite(metrics)]
    first = last - len(window) + 1
    skipped = [
        step for step, metrics in enumerate(window, first) if metrics is None or not bad_numbers.is_finite(metrics)
    ]
    values = {}
    if applied:
        stacked = {name: np.stack([metrics[name] for metrics in applied]) for name in applied[0]}
        sums, counts = (np.sum(stacked.pop(name), axis=0) for name in ("level_losses", "level_counts"))
        values = {name: float(np.mean(value, dtype=np.float64)) for name, value in stacked.items()}
        for quartile in range(bad_numbers.QUARTILES):
            if counts[quartile]:
                values[f"loss_quartile_{quartile + 1}"] = float(sums[quartile] / counts[quartile])
    return values | {"skipped": len(skipped)} | ({"skipped_steps": skipped} if skipped else {})
