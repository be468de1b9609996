"""The tasks that restore pictures, each by what all of them promise and by what is its own."""

import io
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
from dream_jax.errors import UserError
from dream_jax.files import images
from dream_jax.tasks import blur, value_range

MAKERS = {
    "inpainting": lambda **more: tasks.inpainting(("box", "pixels"), **more),
    "deblurring": lambda **more: tasks.deblurring(length=(3.0, 7.0), width=(0.5, 1.5), **more),
    "denoising": lambda **more: tasks.denoising((5.0, 50.0), **more),
    "jpeg": tasks.jpeg,
    "colourisation": tasks.colourisation,
}
TASKS = {name: make() for name, make in MAKERS.items()}
KEYS = jax.random.split(jax.random.key(0), 4)
KEEPING = "inpainting", "colourisation"


def photos(size=24, dtype=np.uint8):
    places = ("coffee.png", 100, 200), ("chelsea.png", 90, 130), ("astronaut.png", 30, 200)
    found = [images.read(PHOTOS / name)[y : y + size, x : x + size] for name, y, x in places]
    return np.stack([*found, noise(size, size, 3)]).astype(dtype) * (257 if dtype == np.uint16 else 1)


_observe = jax.jit(lambda task, keys, pictures: task.observe(keys, pictures), static_argnums=0)


def observed_by(task, pictures, keys=KEYS):
    return np.asarray(_observe(task, keys, pictures))


@pytest.mark.parametrize("name", TASKS)
def test_what_is_observed_is_the_same_whole_levels_by_every_route(name):
    task, pictures = TASKS[name], photos()
    observed = observed_by(task, pictures)
    assert observed.dtype == np.uint8 and observed.shape == (*pictures.shape[:3], task.observed_channels)
    np.testing.assert_array_equal(observed_by(task, pictures[2:3], KEYS[2:3]), observed[2:3])
    # Which is that of levels in floats.
    x0, cond = jax.jit(task.make_pair)(KEYS, pictures)
    np.testing.assert_allclose(task.condition(observed), cond, atol=1e-6)
    assert x0.shape == pictures.shape and cond.shape[-1] == task.cond_channels and cond.dtype == jnp.float32
    same = np.array_equal(observed[0], observed_by(task, pictures[[1, 0, 2, 3]])[1])
    # Luminance is not drawn.
    assert same == (name == "colourisation")


@pytest.mark.parametrize("name", TASKS)
def test_sixteen_bits_are_those_of_eight_but_finer(name):
    task, pictures = TASKS[name], photos()
    fine = observed_by(task, photos(dtype=np.uint16))
    assert fine.dtype == np.uint16
    assert np.abs(fine / 257 - observed_by(task, pictures)).max() <= 0.56


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_pictures_come_back_and_constraining_is_done_once(name, residual):
    task, pictures = MAKERS[name](residual=residual, gain=2.0 if residual else 1.0), photos()
    observed = observed_by(TASKS[name], pictures)
    cond = task.condition(observed)
    x0 = task.encode(value_range.to_float(pictures), cond)
    # A luminance of whole levels is up to half a level from the picture's own.
    apart = 1.01 / 127.5 if name == "colourisation" else 1e-6
    np.testing.assert_allclose(task.to_picture(x0, cond)[:3], pictures[:3] / 127.5 - 1, atol=apart)
    np.testing.assert_allclose(task.constrain(x0, cond)[:3], x0[:3], atol=2 * apart + 1e-5)
    wild = 3 * jax.random.normal(jax.random.key(1), x0.shape)
    once = task.constrain(wild, cond)
    np.testing.assert_allclose(task.constrain(once, cond), once, atol=1e-5)
    picture = task.to_picture(wild, cond)
    assert abs(picture).max() <= 1 + 1e-6
    np.testing.assert_allclose(task.to_picture(once, cond), picture, atol=1e-5)
    if residual:
        nothing = task.to_picture(jnp.zeros_like(x0), cond)
        np.testing.assert_allclose(nothing, task.baseline(observed), atol=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", KEEPING)
def test_whatever_is_drawn_keeps_what_was_observed(name, dtype):
    task = TASKS[name]
    observed = observed_by(task, photos(dtype=dtype))
    wild = jax.random.normal(jax.random.key(1), (4, 24, 24, 3))
    for picture in (task.to_picture(wild, task.condition(observed)), task.project(wild, observed)):
        levels = np.asarray(value_range.to_levels(picture, dtype))
        if name == "inpainting":
            known = np.broadcast_to(observed[..., -1:] == 0, levels.shape)
            assert 0.2 < known.mean() < 1
            np.testing.assert_array_equal(levels[known], observed[..., :-1][known])
            np.testing.assert_array_equal(task.consistency(levels, observed), 0)
        else:
            again = np.asarray(task.observe(None, levels))
            assert np.abs(again.astype(int) - observed).max() <= (1 if dtype == np.uint16 else 0)
            assert np.all(np.asarray(task.consistency(levels, observed)) <= 1 / 65535**2)
        np.testing.assert_allclose(task.project(picture, observed), picture, atol=2e-6)


@pytest.mark.parametrize(("name", "channels"), [("inpainting", 6), ("deblurring", 6), ("denoising", 1), ("jpeg", 1)])
def test_other_channels(name, channels):
    pictures, task = noise(4, 16, 16, channels), MAKERS[name](channels=channels)
    observed = observed_by(task, pictures)
    cond = task.condition(observed)
    assert observed.shape[-1] == task.observed_channels and cond.shape[-1] == task.cond_channels
    picture = value_range.to_float(pictures)
    np.testing.assert_allclose(task.to_picture(task.encode(picture, cond), cond), picture, atol=1e-6)
    levels = task.classical[1](observed[0])
    assert levels.shape == pictures.shape[1:] and levels.dtype == np.uint8


def psnr(levels, pictures):
    return 10 * np.log10(255**2 / np.square(levels.astype(float) - pictures).mean())


@pytest.mark.parametrize(
    "task",
    [
        tasks.inpainting(("strokes",), (0.2,)),
        tasks.deblurring(("gaussian",), (1.5,)),
        tasks.denoising((25.0,)),
        tasks.denoising((10.0, 40.0)),
        tasks.jpeg((20,)),
    ],
    ids=lambda task: f"{task.baseline_name}: {task.classical[0]}",
)
def test_the_classical_method_improves_on_what_was_observed(task):
    pictures = photos(48)[:2]
    observed = observed_by(task, pictures, KEYS[:2])
    baseline = np.asarray(value_range.to_levels(task.baseline(observed)))
    restored = np.stack([task.classical[1](each) for each in observed])
    assert restored.dtype == np.uint8 and psnr(restored, pictures) > psnr(baseline, pictures) + 0.2
    fine = task.classical[1](observed[0].astype(np.uint16) * 257)
    assert fine.dtype == np.uint16 and np.abs(fine / 257 - restored[0]).max() < 0.51


def test_deblurring_on_the_host_takes_no_darkness_in_from_beyond_the_edge(monkeypatch):
    task, file = tasks.deblurring(), sys.modules[tasks.deblurring.__module__]
    for level in (40, 200, 255):
        flat = np.full((12, 16, 3), level, np.uint8)
        np.testing.assert_allclose(task.classical[1](flat), flat, atol=1)
    kernel = file.mean_kernel(blur.BLURS, (0.5, 3.0), (3.0, 15.0))
    observed = ndimage.convolve(photos(24)[0].astype(float), kernel[..., None], mode="nearest").astype(np.uint8)
    found = task.classical[1](observed)
    others = []
    for reaches in (1, 8):
        monkeypatch.setattr(file, "_PAD", reaches)
        others.append(task.classical[1](observed))
    assert np.abs(found.astype(int) - others[1]).max() <= 1, "more of a pad changes nothing"
    assert psnr(found, photos(24)[0]) > psnr(others[0], photos(24)[0]) + 1


@pytest.mark.parametrize("shape", [(1, 9, 3), (9, 1, 1)])
def test_noise_is_not_estimated_of_a_line_of_pixels(shape):
    line = noise(*shape)
    np.testing.assert_array_equal(tasks.denoising((10.0, 40.0), channels=shape[-1]).classical[1](line), line)


def test_noise_has_the_deviation_that_is_asked():
    grey = np.full((4, 48, 48, 3), 128, np.uint8)
    spread = (observed_by(tasks.denoising((20.0,)), grey).astype(float) - 128).std((1, 2, 3))
    np.testing.assert_allclose(spread, 20, rtol=0.03)
    drawn = (observed_by(TASKS["denoising"], grey).astype(float) - 128).std((1, 2, 3))
    assert drawn.min() > 4.8 and drawn.max() < 50 and len(np.unique(drawn)) == 4
    np.testing.assert_array_equal(observed_by(tasks.denoising((0.0,)), photos()), photos())


def test_luminance_is_that_of_pillow():
    for picture in photos(64):
        expected = np.asarray(Image.fromarray(picture).convert("L"))
        np.testing.assert_array_equal(TASKS["colourisation"].given(picture)[..., 0], expected)
        np.testing.assert_array_equal(TASKS["colourisation"].given(expected[..., None])[..., 0], expected)


def test_files_of_a_known_quality_are_observed_again():
    task, pictures = tasks.jpeg((40,)), photos(32)
    observed = observed_by(task, pictures)
    file = io.BytesIO()
    Image.fromarray(pictures[0]).save(file, "JPEG", quality=40)
    np.testing.assert_array_equal(observed[0], Image.open(file))
    consistency = jax.jit(task.consistency)
    np.testing.assert_array_equal(consistency(pictures, observed), 0)
    assert np.all(np.asarray(consistency(pictures[::-1], observed)) > 0)
    assert TASKS["jpeg"].consistency is None and TASKS["denoising"].consistency is None
    blurs = tasks.deblurring(("gaussian",), (1.0,))
    np.testing.assert_array_equal(jax.jit(blurs.consistency)(pictures, observed_by(blurs, pictures)), 0)
    assert tasks.deblurring(("motion",), length=(5.0,)).consistency is None


def test_a_mask_that_is_given():
    task, pictures = TASKS["inpainting"], photos()
    mask = np.zeros((4, 24, 24, 1), np.uint8)
    mask[:, 5:9] = 255
    for levels in (pictures, pictures.astype(np.float32), photos(dtype=np.uint16)):
        observed = np.asarray(task.given(levels, mask))
        assert observed.dtype == levels.dtype
        np.testing.assert_array_equal(observed[..., -1:] > 0, mask > 0)
        np.testing.assert_array_equal(observed[:, 9:, :, :3], levels[:, 9:])
    _, cond = task.make_pair(None, pictures, mask)
    assert not np.asarray(cond[:, 5:9, :, :3]).any() and np.all(np.asarray(cond[:, 5:9, :, 3]) == 1)
    with pytest.raises(UserError, match="mask"):
        task.given(pictures)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("task.name=jpeg data.channels=6", r"data\.channels = 6"),
        ("task.name=colourisation data.channels=1", r"data\.channels = 1"),
        ("task.degradation=mixed data.channels=6", r"data\.channels = 6"),
        ("task.unknown=0.5,0.2", r"task\.unknown"),
        ("task.unknown=0", r"task\.unknown"),
        ("task.masks=circle", r"task\.masks.*strokes"),
        ("task.masks=", r"task\.masks"),
        ("task.blurs=lens", r"task\.blurs.*motion"),
        ("task.width=1,2,3", r"task\.width"),
        ("task.length=0", r"task\.length"),
        ("task.deviation=-1", r"task\.deviation"),
        ("task.deviation=", r"task\.deviation"),
        ("task.quality=0,50", r"task\.quality"),
        ("task.quality=20.5", r"task\.quality.*whole"),
        ("task.scales=4,2", r"task\.scales"),
        ("task.scales=3", r"task\.scales"),
        ("task.drop_label=1", r"task\.drop_label = 1\.0"),
        ("task.scale=0.5", r"task\.scale = 0\.5"),
        ("task.blur=1 task.degradation=mixed", r"task\.blur = 1"),
        ("task.scale=1 task.scales=2,4", r"task\.scale = 1"),
        ("data.folder=a data.lr_folder=b task.degradation=mixed", r"task\.degradation = mixed"),
    ],
)
def test_keys_that_mean_nothing_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        tiny.tiny_config(*changes.split())
