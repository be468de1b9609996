import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dream_jax import diffusion, noise_schedule, sampling

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


def stay(levels):
    rows = sampling.make_rows("ddim", levels)
    rows.move[:] = np.eye(sampling.HISTORY + 2)[0]
    return rows


def make_key(seed):
    return jax.random.key(seed, impl="threefry2x32")


def test_a_shared_start_is_that_of_every_picture_and_observers_see_every_evaluation():
    levels = sampling.levels_of(VP, 3)

    def start(index, start_key):
        rows = stay(levels)
        return sampling.run(KEY, lambda x, a, s: x, SHAPE, rows, jnp.array(index), start_key, lambda x, *rest: x)

    x0, seen = start((5, 9), make_key(1))
    np.testing.assert_array_equal(x0[0], x0[1])
    assert seen.shape == (3, *SHAPE)
    np.testing.assert_array_equal(seen[0], seen[2])
    np.testing.assert_array_equal(start((0, 1), make_key(1))[0], x0)
    assert np.abs(start((5, 9), make_key(2))[0] - x0).max() > 0.1
    own = start((5, 9), None)[0]
    assert np.abs(own[0] - own[1]).max() > 0.1
