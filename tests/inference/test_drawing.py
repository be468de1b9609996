import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stand_ins
import tiny

from dream_jax import experiment, sampling
from dream_jax.inference import drawing, tiles
from dream_jax.runtime import sharding

KEY = jax.random.key(0, impl="threefry2x32")


def test_what_is_observed_is_compiled_once_for_a_task():
    built = experiment.build(tiny.tiny_config())
    traced = []

    def observe(keys, pictures):
        traced.append(pictures.shape)
        more = jax.vmap(lambda key: jax.random.randint(key, (), 0, 3))(keys)
        return built.task.observe(keys, pictures) + more[:, None, None, None]

    counted = built._replace(task=dataclasses.replace(built.task, observe=observe))
    pictures = np.random.default_rng(0).integers(0, 250, (5, 16, 16, 3)).astype(np.uint8)
    low, cond, enlarged = drawing.observe(counted, pictures)
    assert low.shape == (5, 8, 8, 3) and cond.shape == enlarged.shape == (5, 16, 16, 3)
    assert low.dtype == enlarged.dtype == np.uint8 and cond.dtype == np.float32
    for chosen in ([0, 1], [4, 2]):
        parts = drawing.observe(counted, pictures[chosen], chosen)
        for part, whole in zip(parts, (low, cond, enlarged), strict=True):
            np.testing.assert_array_equal(part, whole[chosen])
    assert traced == [(1, 16, 16, 3)]


ALL = (
    *("sampling.clip=dynamic", "sampling.eps_scale=1.01", "sampling.eps_scale_slope=0.1", "sampling.shift_window=50"),
    *("sampling.project=True", "sampling.start_seed=3", "sampling.eta=0.5"),
)


def test_all_modifiers_combine_with_every_sampler():
    class Network:
        def told(self, schedule, alpha):
            return alpha

        def apply(self, variables, inputs, level, dropout_keys=None):
            assert level.shape == inputs.shape[:1]
            return 0.5 * jnp.tanh(inputs[..., 3:])

    built = experiment.build(tiny.tiny_config(*ALL))._replace(network=Network())
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    low = np.random.default_rng(8).integers(80, 170, (2, 6, 8, 3)).astype(np.uint8)
    cond = np.asarray(built.task.condition(low))
    # Filled up to a side that the network divides: what is filled up is not projected.
    inputs = drawing.inputs_of(built, np.pad(cond, [(0, 0), (0, 4), (0, 0), (0, 0)], "edge"), low)
    drawer = drawing.make_draw(built, mesh, sides=(12, 16))
    for sampler in sampling.SAMPLERS:
        drawn = drawing.draw_pictures(drawer, {}, inputs, drawing.make_rows(built, sampler, 6), KEY, mesh, 2)
        assert drawn.shape == (2, 16, 16, 3)
        off = np.abs(np.asarray(built.task.observe(None, drawn[:, :12])) - low.astype(int))
        assert off.mean() < 1, sampler
    assert drawer._cache_size() == 1


@pytest.mark.parametrize("side", [62, 63])
def test_pictures_are_projected_as_a_whole_where_scales_are_not_whole(side):
    """Of both sides the same number of pixels is observed."""
    built = experiment.build(tiny.tiny_config("task.scale=2.7", "sampling.project=True"))
    task, seen = built.task, stand_ins.fake(stand_ins.its_input).experiment.network
    picture = np.random.default_rng(1).integers(80, 170, (1, side, side, 3)).astype(np.uint8)
    low = np.asarray(task.observe(None, picture)).astype(np.uint8)
    cond = np.asarray(task.condition(low, (side, side)))
    assert low.shape == (1, 23, 23, 3) and cond.shape == (1, side, side, 3)
    inputs, rows = drawing.inputs_of(built, cond, low), drawing.make_rows(built, "ddpm", 3)
    filled = inputs | {"cond": np.pad(cond, [(0, 0), (0, 64 - side), (0, 64 - side), (0, 0)], "reflect")}
    for given, sides in ((inputs, None), (filled, (side, side))):
        draw = drawing.make_plain_draw(built._replace(network=seen), sides=sides)
        drawn = np.asarray(jax.jit(draw)({}, given, np.arange(1), rows, KEY))[:, :side, :side]
        off = np.abs(np.asarray(task.observe(None, drawn)) - low.astype(int))
        assert off.max() <= 1 and off.mean() < 0.1 and np.any(drawn != task.to_levels(cond[:1]))


def test_every_modifier_changes_the_result():
    class Network:
        def told(self, schedule, alpha):
            return alpha

        def apply(self, variables, inputs, level, dropout_keys=None):
            return 2 * jnp.tanh(inputs[..., 3:]) * (1 - 0.5 * level[:, None, None, None])

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    low = np.random.default_rng(9).integers(0, 255, (1, 6, 8, 3)).astype(np.uint8)

    def drawn(*changes):
        built = experiment.build(tiny.tiny_config("task.gain=1.0", *changes))._replace(network=Network())
        inputs = drawing.inputs_of(built, np.asarray(built.task.condition(low)), low)
        rows = drawing.make_rows(built, "ddim", 4)
        return drawing.draw_pictures(drawing.make_draw(built, mesh), {}, inputs, rows, KEY, mesh, 1)

    results = {change: drawn(change) for change in ("samples.steps=1", *ALL, "sampling.clip=none")}
    for (first, a), (second, b) in itertools.combinations(results.items(), 2):
        assert np.any(a != b), (first, second)


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


def test_a_network_that_is_shown_its_estimate_can_count():
    """It adds a tenth to what it is shown, which is nothing at first; tiles see their part of it."""

    class Network:
        def told(self, schedule, alpha):
            return alpha

        def apply(self, variables, inputs, level, dropout_keys=None):
            assert inputs.shape[-1] == 9
            return inputs[..., 3:6] + 0.1

    built = experiment.build(tiny.tiny_config("objective.name=self_conditioning", "task.gain=1.0"))
    assert built.inputs_shape()[-1] == 9
    built, mesh = built._replace(network=Network()), sharding.make_mesh(devices=jax.devices()[:1])
    cond = np.full((1, 32, 32, 3), -0.5, np.float32)
    wraps = None, lambda predict: tiles.tiled(predict, 16, 4, 2)
    for wrap in wraps:
        draw = drawing.make_draw(built, mesh, wrap)
        drawn = draw({}, {"cond": cond}, np.arange(1), drawing.make_rows(built, "ddim", 4), KEY)
        np.testing.assert_array_equal(drawn, round(127.5 * (1 - 0.5 + 0.4)))
