import jax
import jax.numpy as jnp
import numpy as np
import pytest
from photos import PHOTOS, noise
from scipy import ndimage
from skimage import filters

from dream_jax.files import images
from dream_jax.tasks import blur

SHARP = np.where(noise(40, 33, 3) > 127, 255, 0).astype(np.uint8)


def photo():
    return images.read(PHOTOS / "coffee.png")[100:140, 200:233]


@pytest.mark.parametrize("width", [0.4, 1.0, 2.7])
def test_a_gaussian_is_that_of_scipy_and_scikit_image(width):
    for picture in (photo(), SHARP):
        ours = np.asarray(blur.gaussian(picture, width)).astype(float)
        expected = filters.gaussian(picture.astype(float), width, channel_axis=-1)
        by_scipy = ndimage.gaussian_filter(picture.astype(float), (width, width, 0), mode="nearest")
        np.testing.assert_allclose(expected, by_scipy, atol=1e-9)
        # Half a level of rounding, and what coefficients of 15 bits leave.
        assert np.abs(ours - expected).max() < 0.55
        fine = np.asarray(blur.gaussian(picture.astype(np.uint16) * 257, width)).astype(float) / 257
        assert np.abs(fine - expected).max() < 0.05


def test_a_line_along_an_axis_is_a_running_mean():
    for axis, angle in ((1, 0.0), (0, np.pi / 2)):
        expected = ndimage.uniform_filter1d(photo().astype(float), 7, axis, mode="nearest")
        ours = np.asarray(blur.motion(photo(), 7, angle, 11)).astype(float)
        assert np.abs(ours - expected).max() < 0.5 + 7 * 255 / 2 / 1024


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_convolving_is_exact(dtype):
    """In float32, by Fourier transforms, the same whole numbers as one by one."""
    picture = SHARP.astype(dtype) * (257 if dtype == np.uint16 else 1)
    picture[:20] = photo()[:20]
    weights = np.asarray(blur.motion_weights(9.5, 0.6, 15))
    assert weights.sum() == 1024 and weights.min() >= 0 and (weights > 0).sum() > 9
    sums = ndimage.convolve(picture.astype(np.int64), weights[:, :, None].astype(np.int64), mode="nearest")
    np.testing.assert_array_equal(jax.jit(blur.convolve)(picture, weights), (sums + 512) >> 10)


def test_what_does_not_move_is_not_blurred_and_nothing_changes_what_is_flat():
    np.testing.assert_array_equal(blur.gaussian(SHARP, 0.0), SHARP)
    np.testing.assert_array_equal(blur.gaussian(SHARP, jnp.float32(0.0), 9), SHARP)
    np.testing.assert_array_equal(blur.motion(SHARP, 1.0, 0.3, 9), SHARP)
    for level in (0, 77, 255):
        flat = np.full((20, 20, 1), level, np.uint8)
        np.testing.assert_array_equal(blur.gaussian(flat, 2.2), flat)
        np.testing.assert_array_equal(blur.motion(flat, 8.8, 1.0, 9), flat)


def test_a_width_that_is_drawn_blurs_as_one_that_is_known():
    drawn = jax.jit(lambda picture, width: blur.gaussian(picture, width, blur.radius(3.0)))
    for width in (0.3, 1.0, 3.0):
        np.testing.assert_array_equal(drawn(SHARP, np.float32(width)), blur.gaussian(SHARP, np.float32(width), 12))
        # Only the cut at four widths tells them apart.
        assert np.abs(np.asarray(drawn(SHARP, width)).astype(int) - blur.gaussian(SHARP, width)).max() <= 1
