import jax
import jax.numpy as jnp
import numpy as np
import pytest
from photos import PHOTOS, noise
from PIL import Image

from dream_jax import tasks
from dream_jax.errors import UserError

TASKS = {
    "picture": tasks.super_resolution(2),
    "residual": tasks.super_resolution(2, residual=True),
    "residual with gain": tasks.super_resolution(4, residual=True, gain=4.0),
    "unconditional": tasks.unconditional(),
}
GAINS = {"residual": 1.0, "residual with gain": 4.0}


def photo(size=48):
    with Image.open(PHOTOS / "coffee.png") as picture:
        return np.asarray(picture.convert("RGB"))[100 : 100 + size, 250 : 250 + size]


@pytest.mark.parametrize("name", TASKS)
def test_pictures_come_back(name):
    task, hr = TASKS[name], np.stack([photo(16), noise(16, 16, 3)])
    x0, cond = jax.jit(task.make_pair)(jax.random.key(0), hr)
    assert x0.shape == (2, 16, 16, 3) and cond.shape == (2, 16, 16, task.cond_channels)
    assert x0.dtype == cond.dtype == jnp.float32
    np.testing.assert_allclose(task.to_picture(x0, cond), hr / 127.5 - 1, atol=1e-6)
    # Pictures need no constraining.
    np.testing.assert_allclose(task.constrain(x0, cond), x0, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_constrain_keeps_the_picture_in_range_and_is_idempotent(name):
    task = TASKS[name]
    _, cond = task.make_pair(jax.random.key(0), noise(2, 16, 16, 3))
    wild = 5 * jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    once = task.constrain(wild, cond)
    np.testing.assert_allclose(task.constrain(once, cond), once, atol=1e-5)
    # Straight from the definition, without to_picture's own clip.
    picture = once / GAINS[name] + cond if name in GAINS else once
    assert abs(picture).max() <= 1 + 1e-6
    np.testing.assert_allclose(picture, task.to_picture(wild, cond), atol=1e-5)
    inside = abs(task.to_picture(wild, cond)) < 1
    np.testing.assert_allclose(np.where(inside, once, 0), np.where(inside, wild, 0), atol=1e-4)


def test_a_residual_of_zero_is_the_enlarged_picture():
    for name in ("residual", "residual with gain"):
        x0, cond = TASKS[name].make_pair(jax.random.key(0), noise(2, 16, 16, 3))
        np.testing.assert_array_equal(TASKS[name].to_picture(jnp.zeros_like(x0), cond), cond)


def test_gain_scales_the_residual():
    hr = noise(2, 16, 16, 3)
    plain, _ = tasks.super_resolution(4, residual=True).make_pair(jax.random.key(0), hr)
    scaled, _ = tasks.super_resolution(4, residual=True, gain=4.0).make_pair(jax.random.key(0), hr)
    np.testing.assert_allclose(scaled, 4 * plain, rtol=1e-6)


@pytest.mark.parametrize("name", ["coffee.png", "chelsea.png", "astronaut.png", "rocket.jpg"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_degradation_equals_files_made_with_pillow(name, scale):
    path = PHOTOS / name
    if not path.exists():
        pytest.skip(f"this scikit-image does not bundle {name}")
    with Image.open(path) as picture:
        hr = picture.convert("RGB").crop((120, 60, 216, 124))
    task = tasks.super_resolution(scale)
    low = hr.resize((96 // scale, 64 // scale), Image.Resampling.BICUBIC)
    enlarged = low.resize((96, 64), Image.Resampling.BICUBIC)
    ours = task.observe(None, np.asarray(hr)[None])
    assert abs(np.asarray(ours[0]) - np.asarray(low, np.float32)).max() <= 1
    cond = task.condition(np.asarray(low)[None])
    assert abs((np.asarray(cond[0]) + 1) * 127.5 - np.asarray(enlarged, np.float32)).max() <= 1.001


def test_training_and_upscaling_see_the_same_condition():
    task, hr = TASKS["picture"], photo()[None]
    _, cond = jax.jit(task.make_pair)(jax.random.key(0), hr)
    from_file = np.asarray(task.observe(None, hr)).astype(np.uint8)
    np.testing.assert_allclose(task.condition(from_file), cond, atol=1e-6)


def test_a_scale_below_two_makes_no_pictures():
    with pytest.raises(UserError, match=r"task\.scale = 0"):
        tasks.super_resolution(0)
    same, hr = tasks.super_resolution(1, residual=True), noise(2, 16, 16, 3)
    with pytest.raises(UserError, match=r"task\.scale = 1.*data\.lr_folder"):
        same.make_pair(None, hr)
    x0, cond = same.make_pair(None, hr, hr[::-1])
    np.testing.assert_allclose(x0 + cond, hr / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(cond, hr[::-1] / 127.5 - 1, atol=1e-6)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(UserError, match="kernel"):
        tasks.super_resolution(2, "bicubicc").observe(None, noise(1, 8, 8, 3))


def test_unconditional_has_no_condition():
    task = TASKS["unconditional"]
    assert not task.paired and task.columns(None, None) == {} and task.cond_channels == 0
