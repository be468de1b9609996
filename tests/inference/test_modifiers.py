import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dream_jax import diffusion, experiment, noise_schedule, sampling, tasks
from dream_jax.inference import drawing
from dream_jax.tasks import resize, value_range

VP = noise_schedule.linear(200, 1e-4, 0.08)
FLOW = noise_schedule.flow(200)
KEY = jax.random.key(0, impl="threefry2x32")
SHAPE = (2, 8, 8, 3)
LEVEL = VP.alpha[120], VP.sigma[120]


def normal(seed, shape=SHAPE):
    return jnp.float32(np.random.default_rng(seed).standard_normal(shape))


def test_dynamic_thresholding_leaves_pictures_in_range_and_tames_others():
    inside = jnp.clip(0.3 * normal(0), -1, 1)
    np.testing.assert_array_equal(sampling.dynamic_threshold(inside), inside)
    outside = 3 * normal(0)
    result = sampling.dynamic_threshold(outside, 0.9)
    assert np.abs(result).max() == pytest.approx(1)
    for before, after in zip(outside, result, strict=True):
        limit = np.quantile(np.abs(before), 0.9)
        np.testing.assert_allclose(after, np.clip(before, -limit, limit) / limit, rtol=1e-5)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_epsilon_scaling_divides_the_predicted_noise(kind, schedule):
    scale = sampling.epsilon_scale(schedule, 1.25)
    plain, scaled = (
        sampling.make_denoise(lambda x, alpha, sigma: jnp.tanh(x), kind, schedule, eps_scale=given)
        for given in (None, scale)
    )
    x = normal(1)
    eps, smaller = (diffusion.to_eps("x0", denoise(x, *LEVEL), x, *LEVEL) for denoise in (plain, scaled))
    np.testing.assert_allclose(smaller, eps / 1.25, rtol=2e-4, atol=1e-5)


def test_the_scale_of_epsilon_may_grow_with_time():
    scale = sampling.epsilon_scale(VP, 1.0, 0.5)
    for t in (0, 50, 200):
        assert float(scale(VP.alpha[t])) == pytest.approx(1 + 0.5 * t / 200, abs=1e-3)
    length = np.hypot(FLOW.alpha, FLOW.sigma)
    assert float(sampling.epsilon_scale(FLOW, 1.0, 0.5)(FLOW.alpha[150] / length[150])) == pytest.approx(
        1.375, abs=1e-3
    )


def with_deviation(deviation):
    x = normal(2)
    x = x - x.mean((1, 2, 3), keepdims=True)
    return deviation * x / x.std((1, 2, 3), ddof=1, keepdims=True)


def test_time_shift_tells_the_time_of_the_variance_of_x_within_its_window():
    told = sampling.time_shift(VP, window=20)
    for t, expected in ((100, 100), (105, 105), (95, 95), (130, 110), (60, 90)):
        alpha = told(with_deviation(VP.sigma[t]), VP.alpha[100])
        assert alpha.shape == SHAPE[:1]
        np.testing.assert_allclose(alpha, VP.alpha[expected], atol=1e-5)


def test_time_shift_is_off_below_its_cutoff_and_ends_with_the_schedule():
    told = sampling.time_shift(VP, window=20, cutoff=100)
    np.testing.assert_allclose(told(with_deviation(VP.sigma[95]), VP.alpha[99]), VP.alpha[99], rtol=1e-6)
    np.testing.assert_allclose(told(with_deviation(5.0), VP.alpha[195]), VP.alpha[200], atol=1e-6)


def test_time_shift_changes_only_the_level_that_the_network_is_told():
    asked = []

    def predict(x, alpha, sigma):
        asked.append((x, alpha, sigma))
        return x

    shift = sampling.time_shift(VP, window=40)
    x = with_deviation(VP.sigma[110])
    plain = sampling.make_denoise(predict, "eps", VP)(x, *LEVEL)
    shifted = sampling.make_denoise(predict, "eps", VP, told=shift)(x, *LEVEL)
    np.testing.assert_array_equal(plain, shifted)
    np.testing.assert_allclose(asked[1][1], VP.alpha[110], atol=1e-5)
    np.testing.assert_allclose(asked[1][2], VP.sigma[110], atol=1e-4)


def test_time_shift_speaks_a_flow_networks_coordinates():
    asked = []

    def predict(x, alpha, sigma):
        asked.append((alpha, sigma))
        return x

    length = np.hypot(FLOW.alpha, FLOW.sigma)
    x = with_deviation((FLOW.sigma / length)[110])
    level = (FLOW.alpha / length)[120], (FLOW.sigma / length)[120]
    sampling.make_denoise(predict, "flow", FLOW, told=sampling.time_shift(FLOW, window=40))(x, *level)
    np.testing.assert_allclose(asked[0][0], FLOW.alpha[110], atol=1e-4)
    np.testing.assert_allclose(asked[0][0] + asked[0][1], 1, rtol=1e-6)


@pytest.mark.parametrize("kernel", resize.KERNELS)
@pytest.mark.parametrize("scale", [2, 4])
def test_projection_finds_the_nearest_picture_that_shrinks_to_the_small_one(kernel, scale):
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        picture, low = rng.uniform(-1, 1, (2, 24, 16, 3)), rng.uniform(-1, 1, (2, 24 // scale, 16 // scale, 3))
        found = resize.project(picture, low, kernel)
        vertical, horizontal = (resize._coefficients(kernel, n * scale, n)[0] for n in low.shape[1:3])
        np.testing.assert_allclose(np.einsum("vh,uw,bhwc->bvuc", vertical, horizontal, found), low, atol=1e-12)
        np.testing.assert_allclose(resize.project(found, low, kernel), found, atol=1e-12)
        # Nearest: the move is orthogonal to every direction that shrinking does not see.
        blind = resize.project(rng.uniform(-1, 1, picture.shape), np.zeros_like(low), kernel)
        assert abs(np.sum((found - picture) * blind)) < 1e-9 * np.linalg.norm(blind)


def test_a_projected_picture_is_consistent_as_a_file():
    task = tasks.super_resolution(4)
    smooth = resize.resize(np.random.default_rng(4).integers(60, 190, (1, 4, 4, 3)), 32, 32)
    low = task.observe(None, smooth)
    worse = value_range.to_float(smooth) + 0.1 * normal(5, (1, 32, 32, 3))
    file = value_range.to_uint8(task.project(worse, low))
    assert np.abs(task.observe(None, file) - low).max() <= 1
    assert np.abs(task.observe(None, value_range.to_uint8(worse)) - low).max() > 1


@pytest.mark.parametrize("residual", [False, True])
def test_limits_act_on_the_picture(residual):
    task = tasks.super_resolution(2, residual=residual, gain=4.0)
    x0, cond = normal(6), 0.5 * normal(7)
    limited = task.constrain(x0, cond, lambda picture: 0 * picture + 0.25)
    np.testing.assert_allclose(task.to_picture(limited, cond), 0.25, atol=1e-6)
    np.testing.assert_array_equal(
        task.constrain(x0, cond, lambda picture: jnp.clip(picture, -1, 1)), task.constrain(x0, cond)
    )


def stay(levels):
    rows = sampling.make_rows("ddim", levels)
    rows.move[:] = np.eye(sampling.HISTORY + 2)[0]
    return rows


def test_a_shared_start_is_that_of_every_picture_and_observers_see_every_evaluation():
    levels = sampling.levels_of(VP, 3)

    def start(index, start_key):
        rows = stay(levels)
        return sampling.run(KEY, lambda x, a, s: x, SHAPE, rows, jnp.array(index), start_key, lambda x, *rest: x)

    x0, seen = start((5, 9), drawing.make_key(1))
    np.testing.assert_array_equal(x0[0], x0[1])
    assert seen.shape == (3, *SHAPE)
    np.testing.assert_array_equal(seen[0], seen[2])
    np.testing.assert_array_equal(start((0, 1), drawing.make_key(1))[0], x0)
    assert np.abs(start((5, 9), drawing.make_key(2))[0] - x0).max() > 0.1
    own = start((5, 9), None)[0]
    assert np.abs(own[0] - own[1]).max() > 0.1


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
    mesh = jax.make_mesh((1, 1), ("data", "shard"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    low = np.random.default_rng(8).integers(80, 170, (2, 6, 8, 3)).astype(np.uint8)
    cond = np.asarray(built.task.condition(low))
    # Filled up to a side that the network divides: what is filled up is not projected.
    inputs = drawing.inputs_of(built, np.pad(cond, [(0, 0), (0, 4), (0, 0), (0, 0)], "edge"), low)
    drawer = drawing.make_draw(built, mesh)
    for sampler in sampling.SAMPLERS:
        drawn = drawing.draw_pictures(drawer, {}, inputs, drawing.make_rows(built, sampler, 6), KEY, mesh, 2)
        assert drawn.shape == (2, 16, 16, 3)
        off = np.abs(np.asarray(built.task.observe(None, drawn[:, :12])) - low.astype(int))
        assert off.mean() < 1, sampler
    assert drawer._cache_size() == 1


def test_every_modifier_changes_the_result():
    class Network:
        def told(self, schedule, alpha):
            return alpha

        def apply(self, variables, inputs, level, dropout_keys=None):
            return 2 * jnp.tanh(inputs[..., 3:]) * (1 - 0.5 * level[:, None, None, None])

    mesh = jax.make_mesh((1, 1), ("data", "shard"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    low = np.random.default_rng(9).integers(0, 255, (1, 6, 8, 3)).astype(np.uint8)

    def drawn(*changes):
        built = experiment.build(tiny.tiny_config("task.gain=1.0", *changes))._replace(network=Network())
        inputs = drawing.inputs_of(built, np.asarray(built.task.condition(low)), low)
        rows = drawing.make_rows(built, "ddim", 4)
        return drawing.draw_pictures(drawing.make_draw(built, mesh), {}, inputs, rows, KEY, mesh, 1)

    results = {change: drawn(change) for change in ("samples.steps=1", *ALL, "sampling.clip=none")}
    for (first, a), (second, b) in itertools.combinations(results.items(), 2):
        assert np.any(a != b), (first, second)
