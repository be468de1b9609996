import io

import jax
import numpy as np
import pytest
from photos import PHOTOS, noise
from PIL import Image

from dream_jax.files import images
from dream_jax.tasks import jpeg_coding

code = jax.jit(jpeg_coding.code)


def by_pillow(picture, quality):
    file = io.BytesIO()
    Image.fromarray(picture if picture.shape[-1] == 3 else picture[..., 0]).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(picture.shape)


@pytest.mark.parametrize("name", ["coffee.png", "astronaut.png"])
def test_photographs_come_back_as_from_pillows_files_to_the_level(name):
    picture = images.read(PHOTOS / name)[64:160, 100:212]
    for quality in (5, 10, 30, 49, 50, 75, 90, 95):
        np.testing.assert_array_equal(code(picture, np.int32(quality)), by_pillow(picture, quality))


@pytest.mark.parametrize("shape", [(1, 1), (7, 4), (17, 16), (18, 35)])
def test_sides_that_are_no_whole_blocks(shape):
    sharp = np.where(noise(*shape, 3) > 127, 255, 0).astype(np.uint8)
    for picture in (sharp, images.read(PHOTOS / "chelsea.png")[90:, 130:][: shape[0], : shape[1]]):
        for levels in (picture, picture[..., :1]):
            for quality in (8, 80):
                np.testing.assert_array_equal(code(levels, np.int32(quality)), by_pillow(levels, quality))


def test_sixteen_bits_are_rounded_to_the_eight_of_a_file():
    picture = noise(16, 24, 3)
    fine = picture.astype(np.uint16) * 257 + np.uint16(100) * (picture < 255)
    coded = np.asarray(code(fine, np.int32(60)))
    assert coded.dtype == np.uint16
    np.testing.assert_array_equal(coded, by_pillow(picture, 60).astype(int) * 257)
    np.testing.assert_array_equal(code(picture.astype(np.float32), np.int32(60)), by_pillow(picture, 60))


def test_lower_qualities_lose_more():
    picture = images.read(PHOTOS / "coffee.png")[64:128, 100:164]
    lost = [np.square(np.asarray(code(picture, np.int32(q))).astype(float) - picture).mean() for q in (5, 20, 60, 95)]
    assert lost == sorted(lost, reverse=True) and lost[-1] > 0
