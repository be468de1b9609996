"""The pictures that training shows of what it has learnt so far."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from dream_jax.data.indexed import Pair, images_of
from dream_jax.evaluation.inputs import make_inputs
from dream_jax.evaluation.tables import label, picture_columns
from dream_jax.experiment import Experiment
from dream_jax.files import grids, images
from dream_jax.inference import classes, drawing


def make_sampler(
    built: Experiment, held_out: np.ndarray | Pair, mesh: jax.sharding.Mesh
) -> Callable[[dict], np.ndarray]:
    """`sampler(params) -> grid` uint8 [H, W, 3], always of the same inputs and noise.

    held_out: pictures uint8 [N, H, W, 3], or an `indexed.Pair` of such, of which the first `samples.count` are shown;
    a model that restores none draws as many of their size, one of each class in turn.
    """
    config = built.config
    draw, key = drawing.make_draw(built, mesh), drawing.make_key(config.evaluation.seeds[0])
    rows = drawing.make_rows(built, config.samples.sampler, config.samples.steps)
    size, paired = config.evaluation.batch_size, built.task.paired
    if paired:
        inputs = make_inputs(built, jax.tree.map(lambda array: array[: config.samples.count], held_out))
        given = inputs.given
    else:
        numbers = np.arange(config.samples.count)
        given = classes.inputs_of(built.task, numbers, images_of(held_out).shape[1:3])

    def sampler(params):
        drawn = drawing.draw_pictures(draw, params, given, rows, key, mesh, size)
        if paired:
            return grids.grid(
                picture_columns(built, inputs, {label(built, config.samples.sampler, config.samples.steps): drawn})
            )
        across = min(4, len(drawn))
        down = len(drawn) // across
        columns = {f"sample {i + 1}": drawn[i::across][:down] for i in range(across)}
        return grids.grid(columns, [classes.listed(built, range(i * across, (i + 1) * across)) for i in range(down)])

    return sampler


def over_training(folder: Path, most: int = 8) -> np.ndarray | None:
    """One grid of those that a run drew, named step_N.png: at most so many, evenly spread; None where there are none.

    Those of another size than the last one, of a run whose `samples.count` was changed, are left out.
    """
    named = {file.stem.removeprefix("step_"): file for file in folder.glob("step_*.png")}
    steps = sorted(int(step) for step in named if step.isdecimal())
    if not steps:
        return None
    chosen = sorted({round(place) for place in np.linspace(0, len(steps) - 1, min(most, len(steps)))})
    read = {steps[i]: images.read(folder / f"step_{steps[i]:07d}.png") for i in chosen}
    last = read[steps[-1]]
    return grids.grid({f"step {step}": grid[None] for step, grid in read.items() if grid.shape == last.shape})
