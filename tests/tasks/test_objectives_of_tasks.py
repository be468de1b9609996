"""Every task with every objective, and what that refuses."""

import jax
import numpy as np
import pytest
from stand_ins import fake, its_input

from dream_jax import tasks
from dream_jax.errors import UserError
from dream_jax.objectives import OBJECTIVES
from dream_jax.training.train_step import make_losses

CHANGES = {
    "super_resolution": (),
    "inpainting": (),
    "deblurring": (),
    "denoising": (),
    "jpeg": (),
    "colourisation": (),
    "paired": (),
    "class_conditional": ("task.residual=False", "task.num_classes=3"),
    "unconditional": ("task.residual=False",),
}
# What lies beside pictures that are 16 pixels a side.
BESIDE = {"condition": (16, 16, 3), "label": (1, 1, 1)}


def test_all_tasks_are_here():
    assert list(CHANGES) == list(tasks.TASKS)


@pytest.mark.parametrize("name", CHANGES)
def test_a_task_trains_with_every_objective_that_is_for_it(name):
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (2, 16, 16, 3), np.uint8), "row": np.arange(2, dtype=np.int32)}
    for objective in OBJECTIVES:
        changes = ("image_size=16", f"task.name={name}", f"objective.name={objective}", *CHANGES[name])
        if objective == "conservative_dream":
            changes += ("objective.kind=eps", "schedule.continuous=False")
        try:
            built = fake(its_input, *changes).experiment
        except UserError as error:
            # It is defined for models that make pictures from noise alone.
            assert objective == "conservative_dream" and built.task.paired, error
            continue
        if built.task.needs_beside:
            shape = (2, *BESIDE[built.task.beside])
            batch["beside"] = rng.integers(0, 3 if shape[1] == 1 else 256, shape, np.uint8)
        losses = make_losses(built, jax.random.key(0, impl="threefry2x32"), 1)
        shapes, _ = jax.eval_shape(lambda batch, of=losses: of({}, batch, 0, True), batch)
        assert shapes.shape == (2,)
    # Of all tasks, the last objective's; what each picture's draws depend on is tested with each task.
    values, facts = jax.jit(lambda batch: losses({}, batch, 0, True))(batch)
    assert np.isfinite(values).all() and np.isfinite(facts["eps_error"]).all()
