"""What sampling does to a task's pictures: it limits them, and projects them on what was observed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dream_jax import tasks
from dream_jax.tasks import resize, value_range


def normal(seed, shape=(2, 8, 8, 3)):
    return jnp.float32(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("kernel", resize.KERNELS)
@pytest.mark.parametrize("scale", [2, 4])
def test_projection_finds_the_nearest_picture_that_shrinks_to_the_small_one(kernel, scale):
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        picture, low = rng.uniform(-1, 1, (2, 24, 16, 3)), rng.uniform(-1, 1, (2, 24 // scale, 16 // scale, 3))
        found = resize.project(picture, low, kernel)
        vertical, horizontal = (resize.coefficients(kernel, n * scale, n)[0] for n in low.shape[1:3])
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
    assert np.abs(np.asarray(task.observe(None, file)).astype(int) - low).max() <= 1
    assert np.abs(np.asarray(task.observe(None, value_range.to_uint8(worse))).astype(int) - low).max() > 1


@pytest.mark.parametrize("residual", [False, True])
def test_limits_act_on_the_picture(residual):
    task = tasks.super_resolution(2, residual=residual, gain=4.0)
    x0, cond = normal(6), 0.5 * normal(7)
    limited = task.constrain(x0, cond, lambda picture: 0 * picture + 0.25)
    np.testing.assert_allclose(task.to_picture(limited, cond), 0.25, atol=1e-6)
    np.testing.assert_array_equal(
        task.constrain(x0, cond, lambda picture: jnp.clip(picture, -1, 1)), task.constrain(x0, cond)
    )
