import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from photos import noise

from dream_jax import experiment, tasks
from dream_jax.errors import UserError
from dream_jax.training.train_step import make_losses

VOID = {np.uint8: 255, np.uint16: 65535}


def maps(number, dtype=np.uint8, void=False):
    levels = np.random.default_rng(1).integers(0, number, (2, 16, 16, 1)).astype(dtype)
    levels[0, :3] = VOID[dtype] if void else 0
    return levels


@pytest.mark.parametrize("dtype, number", [(np.uint8, 5), (np.uint8, 255), (np.uint16, 300)])
def test_numbers_of_classes_come_back_to_the_bit(dtype, number):
    task, condition = tasks.paired("classes", 1, 3, number), noise(2, 16, 16, 3)
    levels = maps(number, dtype)
    x0, cond = jax.jit(task.make_pair)(None, levels, condition)
    assert x0.shape == (2, 16, 16, number) and cond.shape == (2, 16, 16, 3)
    assert set(np.unique(x0)) == {-1, 1} and np.all(np.asarray(x0).sum(-1) == 2 - number)
    drawn = task.to_picture(task.constrain(np.asarray(x0) + 0.9 * np.sin(np.arange(number)), cond), cond)
    for kind in (np.uint8, np.uint16)[dtype == np.uint16 :]:
        back = task.to_levels(drawn, kind)
        assert back.dtype == kind
        np.testing.assert_array_equal(back, levels)


def test_void_is_no_class_and_its_x0_is_nothing():
    task = tasks.paired("classes", 1, 3, 5)
    levels = maps(5, void=True)
    x0, _ = task.make_pair(None, levels, noise(2, 16, 16, 3))
    void = levels[..., 0] == 255
    assert void.any() and np.all(np.asarray(x0)[void] == 0) and np.all(np.abs(np.asarray(x0)[~void]) == 1)


def test_each_class_is_kept_in_range():
    task = tasks.paired("classes", 1, 3, 4)
    wild = 5 * jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
    np.testing.assert_array_equal(task.constrain(wild, None), jnp.clip(wild, -1, 1))
    np.testing.assert_array_equal(task.constrain(wild, None, lambda x0: x0 / 2), wild / 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_depth_comes_back(dtype):
    task = tasks.paired("depth", 1, 3)
    levels = np.random.default_rng(0).integers(0, VOID[dtype] + 1, (2, 8, 8, 1)).astype(dtype)
    x0, cond = task.make_pair(None, levels, noise(2, 8, 8, 3))
    np.testing.assert_array_equal(task.to_levels(task.to_picture(x0, cond), dtype), levels)
    assert task.baseline is None and task.shown(levels).shape == (2, 8, 8, 3)


def test_a_condition_of_as_many_channels_is_the_baseline_and_what_a_residual_is_of():
    task, condition, picture = tasks.paired(residual=True, gain=2.0), noise(2, 8, 8, 3), noise(2, 8, 8, 3)[::-1]
    x0, _ = task.make_pair(None, picture, condition)
    np.testing.assert_allclose(x0, 2 * (picture / 127.5 - condition / 127.5), atol=1e-6)
    np.testing.assert_array_equal(task.to_levels(task.baseline(condition)), condition)
    assert tasks.paired(channels=1).baseline is None
    for wrong in ({"channels": 1}, {"target": "depth", "channels": 1}, {"target": "classes", "channels": 1}):
        with pytest.raises(UserError, match=r"task\.residual"):
            tasks.paired(**wrong, residual=True, num_classes=3)


def test_what_cannot_be_is_refused():
    for target in ("depth", "classes"):
        with pytest.raises(UserError, match=r"data\.channels = 3.*set it to 1"):
            tasks.paired(target, num_classes=3)
    with pytest.raises(UserError, match=r"task\.num_classes"):
        tasks.paired("classes", 1)
    with pytest.raises(UserError, match=r"data\.condition_folder"):
        tasks.paired().make_pair(None, noise(1, 8, 8, 3))
    changes = "task.name=paired", "task.target=classes", "task.residual=False", "data.channels=1"
    tiny.tiny_config(*changes, "task.num_classes=255")
    tiny.tiny_config(*changes, "task.num_classes=256", "data.bits=16")
    with pytest.raises(UserError, match=r"task\.num_classes = 256: .*data\.bits = 8.* at most 255"):
        tiny.tiny_config(*changes, "task.num_classes=256")


def test_colours_tell_classes_apart():
    shown = tasks.paired("classes", 1, 3, 20).shown(np.r_[:20, 255].astype(np.uint8)[:, None])
    assert len(np.unique(shown, axis=0)) == 21 and shown.dtype == np.uint8 and tuple(shown[-1]) == (255, 255, 255)


def test_maps_are_learnt():
    """Two steps down the gradient lower the loss of the same examples and noise."""
    changes = "task.name=paired", "task.target=classes", "task.residual=False", "task.num_classes=5", "data.channels=1"
    changes = *changes, "network.dropout=0.0", "objective.name=self_conditioning"
    built = experiment.build(tiny.tiny_config(*tiny.SMALL, *changes))
    losses = make_losses(built, jax.random.key(0, impl="threefry2x32"), 1)
    batch = {"image": maps(5, void=True), "beside": noise(2, 16, 16, 3), "row": jnp.arange(2)}
    params = jax.jit(built.network.init)(jax.random.key(1), jnp.zeros(built.inputs_shape()), jnp.ones(1))["params"]
    step = jax.jit(jax.value_and_grad(lambda params: losses(params, batch, jnp.int32(0), True)[0].mean()))
    seen = []
    for _ in range(3):
        loss, gradient = step(params)
        seen.append(float(loss))
        params = jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)
    assert np.isfinite(seen).all() and seen[2] < seen[1] < seen[0]
