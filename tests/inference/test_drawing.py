import jax
import numpy as np
import tiny

from dream_jax import experiment
from dream_jax.inference import drawing
from dream_jax.runtime import sharding

KEY = jax.random.key(0, impl="threefry2x32")


def test_a_picture_does_not_depend_on_its_batch():
    built = experiment.build(tiny.tiny_config("task.residual=False", "objective.kind=eps"))
    mesh = sharding.make_mesh()
    params = built.network.init(KEY, np.zeros(built.inputs_shape(), np.float32), np.ones(1, np.float32))["params"]
    drawer, rows = drawing.make_draw(built, mesh), drawing.make_rows(built, "ddpm", 3)
    inputs = {"cond": np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)}
    alone, together = (drawing.draw_pictures(drawer, params, inputs, rows, KEY, mesh, size) for size in (1, 2))
    assert np.ptp(alone) > 0
    assert np.abs(alone.astype(int) - together).max() <= 1


def test_ddim_with_all_its_noise_is_ddpm():
    built = experiment.build(tiny.tiny_config("sampling.eta=1.0"))
    ours, theirs = drawing.make_rows(built, "ddim", 5), drawing.make_rows(built, "ddpm", 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)
