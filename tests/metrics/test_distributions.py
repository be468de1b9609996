import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.stats

from dream_jax import metrics
from dream_jax.errors import UserError
from dream_jax.metrics import distributions


def exactly(rng, n, mean, covariance):
    """n samples whose own mean and covariance are exactly these."""
    x = rng.standard_normal((n, len(mean)))
    x -= x.mean(0)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False)), x.T)
    return mean + (np.linalg.cholesky(covariance) @ white).T


def test_frechet_distance_of_gaussians():
    rng = np.random.default_rng(0)
    shift, s, t = rng.standard_normal(6), rng.uniform(0.5, 2, 6), rng.uniform(0.5, 2, 6)
    f, g = exactly(rng, 50, 0 * shift, np.diag(s**2)), exactly(rng, 40, shift, np.diag(t**2))
    np.testing.assert_allclose(metrics.frechet_distance(f, g), (shift**2).sum() + ((s - t) ** 2).sum(), rtol=1e-9)

    f, g = rng.standard_normal((90, 7)) @ rng.standard_normal((7, 7)), rng.standard_normal((30, 7)) + 0.3
    S, T = np.cov(f, rowvar=False), np.cov(g, rowvar=False)
    root = scipy.linalg.sqrtm(S @ T).real
    expected = ((f.mean(0) - g.mean(0)) ** 2).sum() + np.trace(S + T - 2 * root)
    distance = metrics.frechet_distance(f, g)
    np.testing.assert_allclose(distance, expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.frechet_distance(g, f), distance, rtol=1e-9)
    np.testing.assert_allclose(metrics.frechet_distance(f, f), 0, atol=1e-6)
    np.testing.assert_allclose(metrics.frechet_distance(f, f + 2), 7 * 2**2, rtol=1e-6)
    rotation = np.linalg.qr(rng.standard_normal((7, 7)))[0]
    np.testing.assert_allclose(metrics.frechet_distance(f @ rotation, g @ rotation), distance, rtol=1e-9)
    np.testing.assert_allclose(metrics.frechet_distance(f.astype(np.float32), jnp.asarray(g)), distance, rtol=1e-5)


def test_frechet_distance_of_few_samples():
    """Dimensions in which nothing varies add nothing, and that few samples are no ground for a figure is said."""
    rng = np.random.default_rng(1)
    f, g = rng.standard_normal((30, 7)), 2 * rng.standard_normal((25, 7))
    wider = [np.pad(x, [(0, 0), (0, 33)]) for x in (f, g)]
    with pytest.warns(UserWarning, match="40 dimensions from 25 samples"):
        distance = metrics.frechet_distance(*wider)
    np.testing.assert_allclose(distance, metrics.frechet_distance(f, g), rtol=1e-6)


def test_kernel_distance_by_its_definition():
    rng = np.random.default_rng(2)
    f, g = rng.standard_normal((9, 4)), rng.standard_normal((7, 4)) + 0.5

    def mean(x, y, same=False):
        return np.mean([(u @ v / 4 + 1) ** 3 for i, u in enumerate(x) for j, v in enumerate(y) if not same or i != j])

    expected = mean(f, f, True) + mean(g, g, True) - 2 * mean(f, g)
    np.testing.assert_allclose(metrics.kernel_distance(f, g), expected, rtol=1e-10)
    np.testing.assert_allclose(metrics.kernel_distance(g[::-1], f), expected, rtol=1e-10)
    np.testing.assert_allclose(distributions.kernel_sum(f, g, 4), distributions.kernel_sum(f, g), rtol=1e-12)


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(3)
    same = [metrics.kernel_distance(*rng.standard_normal((2, 20, 5))) for _ in range(300)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(len(same)) and min(same) < 0
    f, g = rng.standard_normal((60, 5)), rng.standard_normal((50, 5)) + 1
    whole = metrics.kernel_distance(f, g)
    assert whole > 10 * np.std(same)
    parts = metrics.kernel_distance(f, g, subsets=400, subset_size=20)
    np.testing.assert_allclose(parts, whole, rtol=0.1)
    assert parts == metrics.kernel_distance(f, g, subsets=400, subset_size=20)
    assert parts != metrics.kernel_distance(f, g, subsets=400, subset_size=20, seed=1)
    np.testing.assert_allclose(metrics.kernel_distance(f[:50], g, subsets=2), metrics.kernel_distance(f[:50], g))


def test_inception_score_between_its_limits():
    classes = 7
    np.testing.assert_allclose(metrics.inception_score(np.zeros((20, classes)), 5), (1, 0), atol=1e-12)
    one_each = 1e3 * np.tile(np.eye(classes), (4, 1))
    np.testing.assert_allclose(metrics.inception_score(one_each, 4), (classes, 0), atol=1e-9)
    np.testing.assert_allclose(metrics.inception_score(one_each[:2], 1), (2, 0), atol=1e-9)
    logits = np.random.default_rng(4).normal(0, 3, (23, classes))
    mean, deviation = metrics.inception_score(logits, 4)
    assert 1 < mean < classes
    np.testing.assert_allclose(metrics.inception_score(logits + 1e3, 4), (mean, deviation), rtol=1e-9)
    scores = []
    for part in (logits[:5], logits[5:11], logits[11:17], logits[17:]):
        p = scipy.special.softmax(part, axis=1)
        scores.append(np.exp(np.mean([scipy.stats.entropy(row, p.mean(0)) for row in p])))
    np.testing.assert_allclose((mean, deviation), (np.mean(scores), np.std(scores)), rtol=1e-9)


def test_wrong_features():
    f = np.zeros((5, 3))
    for distance in (metrics.frechet_distance, metrics.kernel_distance):
        for g, message in ((f[:1], "at least 2"), (f[0], "g must be"), (f[:, :2], "3 and 2"), (f + np.nan, "finite")):
            with pytest.raises(UserError, match=message):
                distance(f, g)
    with pytest.raises(UserError, match="at least 10 samples"):
        metrics.inception_score(f)
    with pytest.raises(UserError, match="splits=0"):
        metrics.inception_score(f, 0)
    with pytest.raises(UserError, match="subset_size=1"):
        metrics.kernel_distance(f, f, subsets=3, subset_size=1)


def smooth_noise(rng, n, height, width):
    x = scipy.ndimage.gaussian_filter(rng.normal(0, 1, (n, height, width, 3)), (0, 1, 1, 0), mode="mirror")
    return np.clip(128 + 60 * x / x.std(), 0, 255).astype(np.uint8)


def blurred(pictures, sigma):
    return scipy.ndimage.gaussian_filter(pictures.astype(float), (0, sigma, sigma, 0)).round().astype(np.uint8)


def test_sliced_wasserstein_properties():
    rng = np.random.default_rng(5)
    a, b = smooth_noise(rng, 6, 32, 40), smooth_noise(rng, 6, 32, 40)
    assert metrics.sliced_wasserstein(a, a) == 0
    same = metrics.sliced_wasserstein(a, b)
    assert same == metrics.sliced_wasserstein(a, b) != metrics.sliced_wasserstein(a, b, seed=1)
    np.testing.assert_allclose(metrics.sliced_wasserstein(b, a), same, rtol=1e-6)
    little, much = (metrics.sliced_wasserstein(a, blurred(b, sigma)) for sigma in (0.7, 2))
    assert same < little < much
    levels = metrics.sliced_wasserstein_levels(a, b)
    assert list(levels) == [32, 16]
    np.testing.assert_allclose(same, np.mean(list(levels.values())))
    # Shifted and stretched colours go unseen: they leave no trace after scaling.
    darker = a // 4
    np.testing.assert_allclose(metrics.sliced_wasserstein(darker, 3 * darker + 20), 0, atol=0.01)


@pytest.mark.parametrize(("height", "width", "sizes"), [(16, 31, [16]), (33, 70, [33, 17]), (64, 64, [64, 32, 16])])
def test_sliced_wasserstein_of_other_sizes(height, width, sizes):
    a = smooth_noise(np.random.default_rng(6), 2, height, width)
    levels = metrics.sliced_wasserstein_levels(a, 255 - a[::-1])
    assert list(levels) == sizes and all(value > 0 for value in levels.values())
    flat = np.full_like(a, 7)
    assert metrics.sliced_wasserstein(flat, flat + 1) == 0
    assert metrics.sliced_wasserstein(a, flat) > 100


def test_sliced_wasserstein_on_one_axis_is_the_wasserstein_distance():
    rng = np.random.default_rng(7)
    a, b = rng.normal(0, 1, (2, 50)).astype(np.float32)
    distance = distributions.sliced(a[:, None], b[:, None], rng)
    np.testing.assert_allclose(distance, scipy.stats.wasserstein_distance(a, b), rtol=1e-5)


def test_laplacian_pyramid():
    """Against scipy's mirrored filter; what is taken apart goes together again."""
    x = np.random.default_rng(8).normal(0, 1, (2, 33, 20, 3)).astype(np.float32)
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])[None, :, :, None] / 256
    pyramid = jax.jit(distributions.laplacian_pyramid, static_argnums=1)(x, 2)
    smaller = scipy.ndimage.convolve(x, kernel, mode="mirror")[:, ::2, ::2]
    np.testing.assert_allclose(pyramid[1], smaller, atol=1e-5)
    spread = np.zeros_like(x)
    spread[:, ::2, ::2] = smaller
    larger = scipy.ndimage.convolve(spread, 4 * kernel, mode="mirror")
    np.testing.assert_allclose(pyramid[0], x - larger, atol=1e-5)
    assert jax.eval_shape(lambda z: distributions.laplacian_pyramid(z, 1), x)[0].shape == x.shape


def test_patches_come_from_their_corners():
    a = np.random.default_rng(9).integers(0, 256, (5, 16, 20, 3), np.uint8)
    corners = np.random.default_rng(10).integers(0, 10, (1, 5, distributions._PATCHES, 2), np.int32)
    (patches,) = distributions.patches(a, corners, 1, pictures_at_once=2)
    expected = np.stack(
        [p[y : y + 7, x : x + 7] for p, of_p in zip(a, corners[0], strict=True) for y, x in of_p]
    ).astype(float)
    expected = (expected - expected.mean((0, 1, 2))) / expected.std((0, 1, 2))
    np.testing.assert_allclose(patches, expected.reshape(len(patches), -1), atol=1e-5)


def test_wrong_sets():
    a = np.zeros((2, 16, 16, 3), np.uint8)
    for b, message in ((a[:1], "both"), (a.astype(float), "float64"), (a[0], "both")):
        with pytest.raises(UserError, match=message):
            metrics.sliced_wasserstein(a, b)
    with pytest.raises(UserError, match="16 x 16"):
        metrics.sliced_wasserstein(a[:, :15], a[:, :15])
