"""Against straightforward loops over pixels."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from dream_jax.metrics import dense


def blobs(seed, count=3, side=24, classes=4, dtype=np.uint8, void=0.1):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(classes, count, side, side)), (0, 0, 3, 3))
    maps = smooth.argmax(0).astype(dtype)
    maps[rng.random(maps.shape) < void] = np.iinfo(dtype).max
    return maps[..., None]


def pixels(*maps):
    """The pairs of a map's pixels whose original is not void."""
    void = np.iinfo(maps[0].dtype).max
    return [(int(a), int(b)) for a, b in zip(*(each.ravel() for each in maps), strict=True) if b != void]


def iou(pairs):
    values = []
    for number in {n for pair in pairs for n in pair}:
        both = sum(a == b == number for a, b in pairs)
        values.append(both / sum(number in pair for pair in pairs))
    return sum(values) / len(values)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_intersections_over_unions(dtype):
    ours, theirs = blobs(0, dtype=dtype), blobs(1, dtype=dtype)
    each = [pixels(*pair) for pair in zip(ours, theirs, strict=True)]
    np.testing.assert_allclose(dense.picture_iou(ours, theirs), [iou(pairs) for pairs in each])
    assert dense.mean_iou(ours, theirs) == pytest.approx(iou(pixels(ours, theirs)))
    accuracy = [sum(a == b for a, b in pairs) / len(pairs) for pairs in each]
    np.testing.assert_allclose(dense.pixel_accuracy(ours, theirs), accuracy)


def test_many_maps_of_sixteen_bits_take_no_more_memory_than_one():
    maps = blobs(0, count=64, side=8, dtype=np.uint16)
    tracemalloc.start()
    values = dense.mean_iou(maps, maps[::-1]), dense.picture_iou(maps, maps[::-1])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * 2**20 and values[0] == pytest.approx(iou(pixels(maps, maps[::-1]))) and len(values[1]) == 64


def boundary(classes, number, void):
    height, width = classes.shape
    found = []
    for y in range(height):
        for x in range(width):
            near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            near = [classes[at] for at in near if 0 <= at[0] < height and 0 <= at[1] < width]
            if classes[y, x] == number and any(n not in (number, void) for n in near):
                found.append((y, x))
    return found


def f_measure(ours, theirs):
    void, (height, width) = np.iinfo(ours.dtype).max, ours.shape
    reach = math.ceil(0.0075 * math.sqrt(height**2 + width**2))
    ours = np.where(theirs == void, void, ours)
    values = []
    for number in set(ours.ravel()) | set(theirs.ravel()) - {void}:
        if number == void:
            continue
        sets = [boundary(each, number, void) for each in (ours, theirs)]
        if not (sets[0] or sets[1]):
            continue
        shares = [
            sum(any(math.dist(p, q) <= reach for q in others) for p in points) / max(len(points), 1)
            for points, others in (sets, sets[::-1])
        ]
        values.append(2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0)
    return sum(values) / len(values) if values else 1.0


@pytest.mark.parametrize("side, void", [(16, 0.0), (24, 0.05)])
def test_the_f_measure_of_boundaries(side, void):
    ours, theirs = blobs(2, side=side, void=void), blobs(3, side=side, void=void)
    expected = [f_measure(a[..., 0], b[..., 0]) for a, b in zip(ours, theirs, strict=True)]
    assert min(expected) > 0.05 and max(expected) < 0.95
    np.testing.assert_allclose(dense.boundary_f(ours, theirs), expected)


def test_a_boundary_may_lie_as_far_off_as_the_diagonal_allows():
    """200 x 200 pixels have a diagonal of 283, and 0.75% of it is 3 when rounded up."""
    maps = np.zeros((3, 200, 200, 1), np.uint8)
    for number, edge in enumerate((100, 103, 104)):
        maps[number, :, edge:] = 1
    near, far = dense.boundary_f(maps[1:], maps[[0, 0]])
    assert near == 1 and far == 0


def test_perfect_and_hopeless_maps():
    ours, measures = blobs(4), (dense.picture_iou, dense.boundary_f, dense.pixel_accuracy)
    for measure in measures:
        np.testing.assert_array_equal(measure(ours, ours), 1)
    assert dense.mean_iou(ours, ours) == 1
    void, flat = np.full((1, 8, 8, 1), 255, np.uint8), np.zeros((1, 8, 8, 1), np.uint8)
    for measure in measures:
        assert measure(flat, void) == 1, "where nothing is known, nothing is wrong"
    for measure in measures:
        assert measure(flat, flat + np.uint8(1)) == 0 and measure(void, flat) == 0
    halves = flat.copy()
    halves[:, 4:] = 1
    assert dense.boundary_f(flat, halves) == 0 and dense.boundary_f(flat, flat) == 1


@pytest.mark.parametrize("dtype, span", [(np.uint8, (0.0, 1.0)), (np.uint16, (0.0, 80.0)), (np.uint16, (2.0, 10.0))])
def test_depth(dtype, span):
    white = np.iinfo(dtype).max
    levels = np.random.default_rng(0).integers(0, white + 1, (2, 3, 8, 8, 1)).astype(dtype)
    levels[1, :, 0] = 0
    d, true = (span[0] + each.reshape(3, -1).astype(float) / white * (span[1] - span[0]) for each in levels)
    known = [[(a, b) for a, b in zip(*pair, strict=True) if b > 0] for pair in zip(d, true, strict=True)]
    relative, squares = (
        [np.mean([error(a, b) for a, b in each]) for each in known]
        for error in (lambda a, b: abs(a - b) / b, lambda a, b: (a - b) ** 2)
    )
    np.testing.assert_allclose(dense.abs_rel(*levels, span), relative)
    np.testing.assert_allclose(dense.rmse(*levels, span), np.sqrt(squares))
    assert not dense.abs_rel(levels[1], levels[1], span).any()
    if not span[0]:
        levels[1, 1] = 0
        assert [dense.has_depth(each, span) for each in levels[1]] == [True, False, True]
        for measure in (dense.abs_rel, dense.rmse):
            assert np.isnan(measure(*levels, span)).tolist() == [False, True, False], "nothing is known of any pixel"
