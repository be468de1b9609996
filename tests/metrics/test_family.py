import jax
import numpy as np
import pytest
from stand_ins import random_weights

from dream_jax import metrics
from dream_jax.errors import UserError
from dream_jax.metrics import METRICS, PROTOCOLS, features, perceptual, weights
from dream_jax.tasks import value_range

WITHOUT_NETWORKS = [name for name, metric in METRICS.items() if metric.weights is None]


def compare(results, originals, **changes):
    """What metrics look at, where a picture is observed as its mean colour."""

    def consistency(results, observed):
        return ((results.mean((1, 2)) - observed) ** 2).mean(1) / 255**2

    sets = (metrics.picture_set(pictures, {}) for pictures in (results, originals))
    compared = metrics.Compared(*sets, originals.mean((1, 2)), consistency, {}, batch_size=2)
    return compared._replace(**changes)


def pictures(count=3, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.mark.parametrize("name", WITHOUT_NETWORKS)
def test_results_that_are_the_originals_are_best(name):
    originals, metric = pictures(), METRICS[name]
    noise = np.random.default_rng(1).integers(0, 40, originals.shape)
    noisy = np.clip(originals // 2 + noise, 0, 255).astype(np.uint8)
    best, worse = (np.mean(metric.function(compare(results, originals))) for results in (originals, noisy))
    assert best > worse if metric.higher_is_better else best < worse


@pytest.mark.parametrize("name", WITHOUT_NETWORKS)
def test_the_smallest_side_is_taken_and_a_smaller_one_refused(name):
    metric = METRICS[name]
    smallest = pictures(side=metric.smallest)
    assert not np.isnan(np.mean(metric.function(compare(smallest, smallest))))
    if metric.smallest > 1:
        smaller = pictures(side=metric.smallest - 1)
        with pytest.raises(UserError, match=f"at least {metric.smallest}"):
            metric.function(compare(smaller, smaller))


def test_each_network_has_metrics_and_each_metric_its_network():
    assert {metric.weights for metric in METRICS.values()} == {None, *weights.NETWORKS}
    for metric in METRICS.values():
        assert not metric.over_seeds or metric.paired, "samples of several seeds answer one input"


def test_protocols_have_the_same_metrics():
    standard, official = PROTOCOLS["standard"], PROTOCOLS["dream_official"]
    assert list(standard) == list(official)
    originals = pictures()
    for name in WITHOUT_NETWORKS:
        a, b = (np.mean(table[name].function(compare(originals[::-1], originals))) for table in (standard, official))
        assert b == pytest.approx((1e5 if name == "consistency" else 1) * a)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_metrics_are_chosen_by_their_networks_and_by_what_a_task_has(protocol):
    names = ["psnr", "ssim", "consistency", "mean_colour", "swd"]
    assert list(metrics.chosen(protocol, (), paired=True)) == names
    assert list(metrics.chosen(protocol, (), paired=False)) == ["swd"]
    learned, of_sets = ("lpips_vgg", "inception"), {"swd", "fid", "kid", "is", "is_spread"}
    paired = {"lpips_vgg", "lpips_vgg_diversity"}
    assert set(metrics.chosen(protocol, learned, paired=True)) == {*names, *paired, *of_sets}
    assert set(metrics.chosen(protocol, learned, paired=False)) == {*of_sets, "lpips_vgg_pairs"}


def test_a_task_without_a_measure_of_consistency_has_none():
    for table in PROTOCOLS.values():
        assert table["consistency"].function(compare(pictures(), pictures(), consistency=None)) is None


def test_the_most_telling_metric_stands_for_its_kind():
    names = ["psnr", "ssim", "swd", "fid", "lpips_squeeze"]
    assert metrics.first_that_measures("distortion", names) == "psnr"
    assert metrics.first_that_measures("perception", names) == "lpips_squeeze"
    assert metrics.first_that_measures("perception", ["swd", "fid"]) == "fid"
    assert metrics.first_that_measures("distortion", ["swd", "fid"]) is None


def test_the_diversity_of_a_set_is_that_of_its_pairs():
    weights = random_weights(perceptual.shapes("squeeze"))
    given = compare(pictures(4), pictures(4))._replace(weights={"lpips_squeeze": weights})
    function = METRICS["lpips_squeeze_pairs"].function
    samples = value_range.to_float(pictures(4))
    expected = metrics.lpips_diversity(weights, samples, "squeeze")
    assert function(given) == pytest.approx(float(expected), rel=1e-5)


def test_batches_are_of_one_size():
    shapes = []

    @jax.jit
    def difference(a, b):
        shapes.append(a.shape)
        return (a - b).sum(1)

    a, b = np.arange(15.0).reshape(5, 3), np.ones((5, 3))
    for size in (2, 5, 8):
        np.testing.assert_allclose(metrics.in_batches(difference, a, b, size=size), (a - b).sum(1))
    assert shapes == [(2, 3), (5, 3), (8, 3)]


def test_inception_looks_at_a_set_once(monkeypatch):
    """Whatever the number of metrics, and of sets that it is compared with."""
    looked_at = []

    def inception_features(weights, pictures, resize):
        looked_at.append(weights)
        return pictures.mean((1, 2)), pictures.mean((1, 2))

    monkeypatch.setattr(features, "inception_features", inception_features)
    learned = {"inception": "its weights"}
    originals, *drawn = (metrics.picture_set(pictures(seed=seed), learned) for seed in range(3))
    for results in drawn:
        compared = compare(pictures(), pictures())._replace(results=results, originals=originals)
        for name in ("fid", "kid", "is"):
            assert np.isfinite(METRICS[name].function(compared))
    assert looked_at == ["its weights"] * 3


def test_clean_resizing_averages_what_the_other_way_skips():
    """Every third line is white: a third of white at a third of the size; black where the middle ones are picked."""
    stripes = np.zeros((1, 3 * features.SIZE, 3 * features.SIZE, 3), np.uint8)
    stripes[:, ::3] = 255
    clean, linear = (np.asarray(features.RESIZES[name](stripes)) for name in ("clean", "linear"))
    np.testing.assert_allclose(clean[:, 2:-2], (85 - 128) / 128, atol=0.1)
    np.testing.assert_array_equal(linear, -1)
    same = pictures(1, features.SIZE)
    np.testing.assert_allclose(features.RESIZES["clean"](same), (same - 128.0) / 128, atol=1e-6)
