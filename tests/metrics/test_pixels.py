import jax
import jax.numpy as jnp
import numpy as np
import pytest
from photos import PHOTOS
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dream_jax import metrics
from dream_jax.errors import UserError
from dream_jax.files import images
from dream_jax.metrics import pixels


def pairs():
    """Four pairs: two photographs slightly noisy, a flat bright one (the hardest for float32), two unrelated ones."""
    rng = np.random.default_rng(0)
    crops = [images.read(PHOTOS / name)[:150, :130] for name in ("coffee.png", "astronaut.png")]
    a = np.stack([*crops, np.full_like(crops[0], 250), crops[0]])
    b = np.clip(a + rng.normal(0, [[[[8]]], [[[2]]], [[[0.5]]], [[[0]]]], a.shape), 0, 255).astype(np.uint8)
    b[3] = crops[1]
    return a, b


def luma(z):
    return 16 + z @ np.array([65.481, 128.553, 24.966]) / 255


def reference_ssim(a, b, **options):
    return structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, **options
    )


@pytest.mark.parametrize("crop", [0, 4])
def test_equal_to_scikit_image(crop):
    a, b = pairs()
    inside = (slice(None), slice(crop, 150 - crop), slice(crop, 130 - crop))
    u, v = a[inside], b[inside]
    psnr = [peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(u, v, strict=True)]
    np.testing.assert_allclose(metrics.psnr(a, b, crop=crop), psnr, rtol=1e-6)
    ssim = [reference_ssim(x.astype(float), y.astype(float), channel_axis=-1) for x, y in zip(u, v, strict=True)]
    np.testing.assert_allclose(metrics.ssim(a, b, crop=crop), ssim, rtol=0, atol=1e-6)
    u, v = luma(u), luma(v)
    psnr = [peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(u, v, strict=True)]
    np.testing.assert_allclose(metrics.psnr(a, b, "y", crop), psnr, rtol=1e-6)
    ssim = [reference_ssim(x, y) for x, y in zip(u, v, strict=True)]
    np.testing.assert_allclose(metrics.ssim(a, b, "y", crop), ssim, rtol=0, atol=1e-6)


def test_float32_holds_on_a_large_picture():
    a = images.read(PHOTOS / "astronaut.png")[None]
    b = np.clip(a + np.random.default_rng(1).normal(0, 3, a.shape), 0, 255).astype(np.uint8)
    expected = reference_ssim(a[0].astype(float), b[0].astype(float), channel_axis=-1)
    np.testing.assert_allclose(metrics.ssim(a, b), [expected], rtol=0, atol=1e-6)
    np.testing.assert_allclose(metrics.psnr(a, b), [peak_signal_noise_ratio(a[0], b[0], data_range=255)], rtol=1e-6)


def test_equal_pictures():
    a, _ = pairs()
    assert np.all(np.asarray(metrics.psnr(a, a)) == np.inf)
    np.testing.assert_allclose(metrics.ssim(a, a), 1, rtol=0, atol=1e-6)
    assert np.all(np.asarray(metrics.mean_squared_error(a, a)) == 0)


def test_analytic_cases():
    flat = np.full((1, 16, 16, 3), 100, np.uint8)
    np.testing.assert_allclose(metrics.mean_squared_error(flat, flat + 5), [25])
    np.testing.assert_allclose(metrics.psnr(flat, flat + 5), [20 * np.log10(255 / 5)], rtol=1e-6)
    c1 = (0.01 * 255) ** 2
    np.testing.assert_allclose(
        metrics.ssim(flat, flat + 5), [(2 * 100 * 105 + c1) / (100**2 + 105**2 + c1)], rtol=0, atol=1e-6
    )
    # White and black are the ends of the studio range, 235 and 16.
    np.testing.assert_allclose(metrics.mean_squared_error(0 * flat, 0 * flat + 255, "y"), [(235 - 16) ** 2], rtol=1e-6)


def test_float_and_uint8_agree_symmetric_and_batched():
    a, b = pairs()
    for metric in (metrics.psnr, metrics.ssim):
        together = np.asarray(metric(a, b))
        np.testing.assert_array_equal(metric(a.astype(np.float32), jnp.asarray(b)), together)
        np.testing.assert_allclose(metric(b, a), together, rtol=1e-6)
        np.testing.assert_allclose(
            np.concatenate([metric(x[None], y[None]) for x, y in zip(a, b, strict=True)]), together, rtol=1e-6
        )
    assert jax.eval_shape(metrics.ssim, a, b).dtype == jnp.float32
    with jax.enable_x64(True):
        double = metrics.ssim(a, b)
        assert double.dtype == jnp.float64
        expected = [
            reference_ssim(x.astype(float), y.astype(float), channel_axis=-1) for x, y in zip(a, b, strict=True)
        ]
        np.testing.assert_allclose(double, expected, rtol=1e-12)


def test_crop_hides_the_border():
    a, b = pairs()
    framed = b.copy()
    framed[:, :4], framed[:, -4:], framed[:, :, :4], framed[:, :, -4:] = 0, 255, 0, 255
    for metric in (metrics.psnr, metrics.ssim):
        np.testing.assert_array_equal(metric(a, framed, crop=4), metric(a, b, crop=4))
        assert np.all(np.asarray(metric(a, framed)) < np.asarray(metric(a, b)))


def test_mean_colour_error():
    a, b = pairs()
    expected = np.abs(a.mean((1, 2)) - b.mean((1, 2))).mean(1)
    np.testing.assert_allclose(metrics.mean_colour_error(a, b), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(metrics.mean_colour_error(a, a), 0)
    # Blind to where colours are, and blind to nothing of their mean.
    np.testing.assert_allclose(metrics.mean_colour_error(a, a[:, ::-1]), 0, atol=1e-5)
    shifted = np.clip(a, 10, 240) + np.int16([6, -3, 0])
    error = metrics.mean_colour_error(np.clip(a, 10, 240), shifted.astype(np.uint8))
    np.testing.assert_allclose(error, 3, rtol=1e-6)
    with pytest.raises(UserError, match="both"):
        metrics.mean_colour_error(a, b[:, :5])


def test_wrong_inputs():
    a = np.zeros((1, 16, 16, 3), np.uint8)
    with pytest.raises(UserError, match="at least 11 x 11"):
        metrics.ssim(a, a, crop=3)
    for metric in (metrics.psnr, metrics.ssim, metrics.mean_squared_error):
        with pytest.raises(UserError, match="channel"):
            metric(a, a, channel="Y")
        with pytest.raises(UserError, match="crop=8"):
            metric(a, a, crop=8)
        with pytest.raises(UserError, match="both"):
            metric(a, a[:, :12])
    with pytest.raises(UserError, match="3 colours"):
        metrics.psnr(a[..., :1], a[..., :1], "y")


def test_sixteen_bits_are_measured_as_eight():
    a, b = (np.random.default_rng(seed).integers(0, 256, (2, 24, 20, 3), dtype=np.uint8) for seed in (0, 1))
    deep = [picture.astype(np.uint16) * 257 for picture in (a, b)]
    for measure in (pixels.psnr, pixels.ssim):
        for channel in ("rgb", "y"):
            np.testing.assert_allclose(measure(*deep, channel=channel), measure(a, b, channel=channel), rtol=1e-5)
    np.testing.assert_allclose(pixels.mean_colour_error(*deep), pixels.mean_colour_error(a, b), rtol=1e-5)
    assert np.all(np.isinf(pixels.psnr(deep[0] - deep[0] // 16, deep[0] - deep[0] // 16)))
