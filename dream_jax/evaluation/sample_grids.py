"""The pictures that training shows of what it has learnt so far."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from dream_jax.data.indexed import Pair
from dream_jax.evaluation.inputs import make_inputs
from dream_jax.evaluation.tables import label, picture_columns
from dream_jax.experiment import Experiment
from dream_jax.files import grids, images
from dream_jax.inference import drawing


def make_sampler(
    built: Experiment, held_out: np.ndarray | Pair, mesh: jax.sharding.Mesh
) -> Callable[[dict], np.ndarray]:
    """`sampler(params) -> grid` uint8 [H, W, 3], always of the same inputs and noise.

    held_out: pictures uint8 [N, H, W, 3], or an `indexed.Pair` of such, of which the first `samples.count` are shown;
    an unconditional model draws as many pictures of their size.
    """
    config = built.config
    draw, key = drawing.make_draw(built, mesh), drawing.make_key(config.evaluation.seeds[0])
    rows = drawing.make_rows(built, config.samples.sampler, config.samples.steps)
    size, paired = config.evaluation.batch_size, built.task.paired
    if paired:
        inputs = make_inputs(built, jax.tree.map(lambda array: array[: config.samples.count], held_out))
        given = inputs.given
    else:
        given = drawing.no_inputs(config.samples.count, *held_out.shape[1:3])

    def sampler(params):
        drawn = drawing.draw_pictures(draw, params, given, rows, key, mesh, size)
        if paired:
            return grids.grid(
                picture_columns(built, inputs, {label(built, config.samples.sampler, config.samples.steps): drawn})
            )
        across = min(4, len(drawn))
        return grids.grid({f"sample {i + 1}": drawn[i::across][: len(drawn) // across] for i in range(across)})

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
