"""What super-resolution degrades with, beyond a kernel and a whole scale."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from photos import PHOTOS, noise
from PIL import Image
from scipy import ndimage

from dream_jax import tasks
from dream_jax.config import records
from dream_jax.errors import UserError
from dream_jax.files import images
from dream_jax.tasks import blur, jpeg_coding, mixture, resize, value_range
from dream_jax.tasks import noise as noises

# The name of the function hides that of its file.
low_sizes = sys.modules[tasks.super_resolution.__module__].low_sizes
KEYS = jax.random.split(jax.random.key(0), 10)
BICUBIC = "pil_bicubic"
PILLOW = {f"pil_{name.lower()}": Image.Resampling[name] for name in ("BICUBIC", "BILINEAR", "LANCZOS", "BOX")}
STRENGTHS = mixture.Strengths(2.0, 20.0, (30, 95))


def photo(height=32, width=32):
    return images.read(PHOTOS / "coffee.png")[100 : 100 + height, 200 : 200 + width]


@pytest.mark.parametrize("scale", [2.7, 1.5])
def test_a_scale_that_is_not_whole(scale):
    task, picture = tasks.super_resolution(scale), photo(40, 30)
    sides = round(40 / scale), round(30 / scale)
    low = Image.fromarray(picture).resize(sides[::-1], Image.Resampling.BICUBIC)
    observed = np.asarray(task.observe(None, picture[None]))
    np.testing.assert_array_equal(observed[0], low)
    enlarged = low.resize((30, 40), Image.Resampling.BICUBIC)
    levels = value_range.to_levels(task.condition(observed, (40, 30)))
    np.testing.assert_array_equal(levels[0], enlarged)
    np.testing.assert_array_equal(value_range.to_levels(task.baseline(observed, (40, 30))), levels)
    assert task.condition(observed).shape[1:3] == task.sides(sides) and task.divisor == 1
    shrunk = resize.coefficients(BICUBIC, 40, sides[0])[0], resize.coefficients(BICUBIC, 30, sides[1])[0]
    found = task.project(jnp.zeros((1, 40, 30, 3)), observed)
    again = np.einsum("vh,uw,bhwc->bvuc", *shrunk, np.asarray(found))
    np.testing.assert_allclose(again, value_range.to_float(observed), atol=1e-4)


def test_a_whole_scale_is_the_same_however_it_is_written():
    whole, number = tasks.super_resolution(4), tasks.super_resolution(4.0)
    assert number.scale == whole.scale and type(number.scale) is type(number.divisor) is int
    config = tiny.tiny_config("task.scale=4")
    assert type(tasks.make(config).scale) is int
    # As configs of before have it.
    old = config.to_dict() | {"task": {"scale": 4, "name": "super_resolution", "kernel": "pil_bicubic"}}
    old["task"] |= {"residual": config.task.residual, "gain": config.task.gain}
    assert records.differences(records.from_record(old), config) == []
    assert tasks.make(tiny.tiny_config("task.scale=2.7")).scale == 2.7


@pytest.mark.parametrize("scale", [12, 11.5])
def test_of_a_picture_smaller_than_the_scale_one_pixel_is_left(scale):
    task = tasks.super_resolution(scale)
    observed = task.observe(None, photo(8, 24)[None])
    assert observed.shape == (1, 1, 2, 3) and task.condition(observed, (8, 24)).shape == (1, 8, 24, 3)
    for changes in (f"task.scale={3 * scale}", f"task.scale={3 * scale} evaluation.whole=True"):
        with pytest.raises(UserError, match=rf"^image_size = 32: .*task\.scale = {3 * scale}"):
            tiny.tiny_config(*changes.split())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("image_size=4096 task.scales=2,4", r"^image_size = 4096: with task\.scales .* 2048"),
        ("image_size=512 task.scales=1,512", r"^task\.scales = \(1, 512\): .*image_size = 512.* MiB"),
        ("image_size=512 task.kernel=pil_box task.scales=1,512 task.degradation=mixed", r"^task\.scales = "),
    ],
)
def test_scales_whose_tables_would_be_huge_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        tiny.tiny_config(*changes.split())


@pytest.mark.parametrize("kernel", PILLOW)
def test_what_tables_take_is_known_before(kernel):
    assert tiny.tiny_config("image_size=512", "task.scales=1,16", f"task.kernel={kernel}")
    for sizes in (tuple((40, n) for n in range(1, 41)), tuple((n, 40) for n in range(1, 41)), ((24, 9), (24, 10))):
        made, most = resize.choices(kernel, sizes).weights.nbytes, resize.bytes_of_choices(kernel, sizes)
        assert made <= most <= 2 * made + 4 * len(sizes) * 40 * 2


@pytest.mark.parametrize("kernel", PILLOW)
def test_sizes_that_are_drawn_are_resized_to_as_any(kernel):
    side, sharp = 24, np.where(noise(24, 24, 3) > 127, 255, 0).astype(np.uint8)
    sizes = low_sizes(side, (1.0, 5.0))
    assert sizes == tuple(range(5, 25))
    down = resize.choices(kernel, tuple((side, small) for small in sizes))
    up = resize.choices(kernel, tuple((small, side) for small in sizes))

    @jax.jit
    def there_and_back(picture, choice):
        low = resize.resize_chosen(picture, choice, down, down)
        return low, resize.resize_chosen(low, choice, up, up)

    for picture in (photo(side, side), sharp):
        for choice, small in enumerate(sizes):
            low, back = map(np.asarray, there_and_back(picture, np.int32(choice)))
            file = Image.fromarray(picture).resize((small, small), PILLOW[kernel])
            np.testing.assert_array_equal(low[:small, :small], file)
            assert not low[small:].any() and not low[:, small:].any()
            np.testing.assert_array_equal(back, file.resize((side, side), PILLOW[kernel]))


def test_training_draws_scales_and_sees_what_use_would():
    task, pictures = tasks.super_resolution(2, scales=(1.5, 4.0)), np.stack([photo()] * len(KEYS))
    _, cond = jax.jit(task.make_pair)(KEYS, pictures)
    levels, file = np.asarray(value_range.to_levels(cond)), Image.fromarray(photo())
    of_each = {s: file.resize((s, s), PILLOW[BICUBIC]).resize((32, 32), PILLOW[BICUBIC]) for s in range(8, 22)}
    found = [[s for s, known in of_each.items() if np.array_equal(each, known)] for each in levels]
    assert all(len(sizes) == 1 for sizes in found) and len({sizes[0] for sizes in found}) > 4
    _, alone = jax.jit(task.make_pair)(KEYS[3:4], pictures[:1])
    np.testing.assert_array_equal(alone, cond[3:4])
    # Pictures that are measured, and those with their own low-resolution ones, are of one scale.
    low = task.observe(KEYS, pictures)
    assert low.shape == (len(KEYS), 16, 16, 3)
    np.testing.assert_array_equal(task.make_pair(KEYS, pictures, low)[1], task.condition(low))


def test_blur_before_shrinking():
    task, picture = tasks.super_resolution(2, width=1.3), photo()
    observed = np.asarray(task.observe(None, picture[None]))
    blurred = ndimage.gaussian_filter(picture.astype(float), (1.3, 1.3, 0), mode="nearest")
    file = Image.fromarray(np.uint8(np.floor(blurred + 0.5))).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.abs(observed[0].astype(int) - np.asarray(file)).max() <= 1
    np.testing.assert_array_equal(task.consistency(picture[None], observed), 0)
    worse = value_range.to_float(picture[None]) + 0.1 * jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    apart = [
        float(task.consistency(value_range.to_levels(z), observed)[0]) for z in (worse, task.project(worse, observed))
    ]
    assert apart[1] < apart[0] / 20


gaussian, code = jax.jit(blur.gaussian, static_argnums=2), jax.jit(jpeg_coding.code)


def in_their_order(key, picture, size, scale):
    """What a mixed degradation does, one thing after the other."""
    plan = mixture.draw(key, STRENGTHS)
    normal, done = plan.noise, 1.0
    for step in np.argsort(np.asarray(plan.order)):
        if step == 0:
            picture = gaussian(picture, plan.width / done, blur.radius(STRENGTHS.width / done))
        elif step == 1:
            picture = noises.add(picture, noises.normal(normal, picture), plan.deviation)
        elif step == 2:
            picture = code(picture, plan.quality)
        else:
            kernels = "pil_bicubic", "pil_bilinear", "pil_box"
            kernel = kernels[int(jax.random.randint(plan.shrink, (), 0, 3))]
            picture, done, normal = resize.resize(picture, *size, kernel), scale, jax.random.fold_in(plan.noise, 1)
    return picture


def test_a_mixed_degradation_does_each_thing_once_in_an_order_that_is_drawn():
    task, pictures = tasks.super_resolution(2, strengths=STRENGTHS), np.stack([photo(16, 16)] * len(KEYS))
    observed = np.asarray(jax.jit(task.observe)(KEYS, pictures))
    assert observed.shape == (len(KEYS), 8, 8, 3) and observed.dtype == np.uint8
    orders = {tuple(np.asarray(mixture.draw(key, STRENGTHS).order).tolist()) for key in KEYS}
    assert len(orders) > 5
    expected = [in_their_order(key, picture, (8, 8), 2) for key, picture in zip(KEYS, pictures, strict=True)]
    np.testing.assert_array_equal(observed, np.stack(expected))
    assert task.consistency is None and task.project is None


def test_a_mixed_degradation_of_no_strength_at_scales_that_are_drawn():
    pictures = np.stack([photo(24, 24)] * 6)
    task = tasks.super_resolution(2, scales=(1.5, 3.0), strengths=mixture.Strengths(0.0, 0.0, (100, 100)))
    _, cond = jax.jit(task.make_pair)(KEYS[:6], pictures)
    apart = np.abs(np.asarray(cond) - value_range.to_float(pictures)).mean((1, 2, 3))
    file = Image.fromarray(pictures[0])
    least, most = (
        np.abs(
            np.asarray(file.resize((s, s), PILLOW["pil_box"]).resize((24, 24), PILLOW[BICUBIC])) / 127.5
            - pictures[0] / 127.5
        ).mean()
        for s in (16, 8)
    )
    assert len(np.unique(apart)) > 3 and 0.5 * least < apart.min() and apart.max() < 1.3 * most
