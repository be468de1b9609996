import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from photos import PHOTOS, noise
from PIL import Image

from dream_jax.errors import UserError
from dream_jax.files import images
from dream_jax.tasks import resize, value_range

PILLOW = {
    "pil_bicubic": Image.Resampling.BICUBIC,
    "pil_bilinear": Image.Resampling.BILINEAR,
    "pil_lanczos": Image.Resampling.LANCZOS,
    "pil_box": Image.Resampling.BOX,
}


@pytest.mark.parametrize("kernel", PILLOW)
def test_resize_equals_pillow(kernel):
    coffee = images.read(PHOTOS / "coffee.png")[100:131, 200:245]
    edges = np.where(noise(31, 45, 3) > 127, 255, 0).astype(np.uint8)
    pictures = np.stack([coffee, noise(31, 45, 3), edges])
    for height, width in ((62, 90), (124, 180), (38, 56), (15, 22), (10, 15), (7, 11), (3, 5), (31, 22), (15, 45)):
        expected = [Image.fromarray(z).resize((width, height), PILLOW[kernel]) for z in pictures]
        np.testing.assert_array_equal(resize.resize(pictures, height, width, kernel), np.stack(expected))


@pytest.mark.parametrize("scale", [1 / 8, 1 / 4, 1 / 3, 1 / 2, 2, 3, 4, 8])
def test_bicubic_photograph_equals_pillow(scale):
    picture = (
        images.read(PHOTOS / "astronaut.png")[100:197, 150:261] if scale > 1 else images.read(PHOTOS / "chelsea.png")
    )
    size = int(picture.shape[0] * scale), int(picture.shape[1] * scale)
    expected = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize.resize(picture, *size), expected)


def test_resize_keeps_batches_and_dtypes():
    batch = noise(2, 3, 16, 12, 3)
    one_by_one = np.stack([[resize.resize(picture, 8, 9) for picture in row] for row in batch])
    np.testing.assert_array_equal(resize.resize(batch, 8, 9), one_by_one)
    np.testing.assert_array_equal(resize.resize(batch.astype(np.float32), 8, 9), one_by_one)
    for dtype in (jnp.uint8, jnp.uint16, jnp.float32):
        assert resize.resize(batch.astype(dtype), 8, 9).dtype == dtype
    np.testing.assert_array_equal(resize.resize(batch, 16, 12), batch)


def test_resize_in_float64_jit_and_shard_map():
    batch = noise(4, 16, 16, 3)
    expected = resize.resize(batch, 4, 4)
    np.testing.assert_array_equal(jax.jit(lambda x: resize.resize(x, 4, 4))(batch), expected)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    spec = PartitionSpec("data")
    mapped = jax.shard_map(lambda x: resize.resize(x, 4, 4), mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_array_equal(jax.jit(mapped)(batch), expected)
    with jax.enable_x64(True):
        double = resize.resize(batch.astype(np.float64), 4, 4)
        assert double.dtype == jnp.float64
        np.testing.assert_array_equal(double, expected)
        assert value_range.to_float(batch, jnp.float64).dtype == jnp.float64


def test_unknown_kernel_names_the_choices():
    with pytest.raises(UserError, match="pil_bicubic, pil_bilinear, pil_lanczos, pil_box"):
        resize.resize(noise(8, 8, 3), 4, 4, "bicubic")


@pytest.mark.parametrize("kernel", PILLOW)
def test_sixteen_bits_agree_with_pillows_floats(kernel):
    # Far from black and white: Pillow's floats are not clipped.
    picture = np.random.default_rng(0).integers(20000, 40000, (31, 45, 3), dtype=np.uint16)
    for height, width in ((62, 90), (124, 15)):
        channels = [Image.fromarray(picture[..., c].astype(np.float32)) for c in range(3)]
        floats = np.dstack([channel.resize((width, height), PILLOW[kernel]) for channel in channels])
        ours = np.asarray(resize.resize(picture, height, width, kernel)).astype(float)
        assert np.abs(ours - floats).max() < 0.5 + 0.05  # of coefficients of 22 bits


def test_sixteen_bits_of_a_picture_of_eight_are_its_own_but_for_rounding():
    levels = noise(9, 14, 3)
    for height, width in ((27, 28), (9, 14), (18, 7)):
        fine = np.asarray(resize.resize(levels.astype(np.uint16) * 257, height, width)) / 257
        # Each axis rounds by half a level, and a second one weighs that by up to 1.4.
        assert np.abs(fine - np.asarray(resize.resize(levels, height, width))).max() < 1.3
