"""Measures of maps that say something of every pixel: its depth, or its class. On the host, of levels [N, H, W, C]."""

import math

import numpy as np

# Of the diagonal: how far apart boundaries may lie that count as the same one.
_TOLERANCE = 0.0075


def abs_rel(results: np.ndarray, originals: np.ndarray, span: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Mean of |d - d*| / d* over the pixels of a map with d* > 0: levels twice -> [N].

    span: the numbers that black and white mean. Of a map without any depth above 0, see `has_depth`, it is NaN.
    """
    return _over_depth(results, originals, span, lambda d, true: np.abs(d - true) / true)


def rmse(results: np.ndarray, originals: np.ndarray, span: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Root of the mean of (d - d*)^2 over the pixels of a map with d* > 0, by the same span."""
    return np.sqrt(_over_depth(results, originals, span, lambda d, true: (d - true) ** 2))


def has_depth(original: np.ndarray, span: tuple[float, float] = (0.0, 1.0)) -> bool:
    """Whether any pixel of a map [H, W, 1] has a depth above 0; without one nothing of a result can be measured."""
    return bool((_depth(original, span) > 0).any())


def _depth(levels, span):
    return span[0] + levels * ((span[1] - span[0]) / np.iinfo(levels.dtype).max)


def _over_depth(results, originals, span, error):
    means = []
    for result, original in zip(results, originals, strict=True):
        d, true = _depth(result, span), _depth(original, span)
        there = true > 0
        means.append(error(d[there], true[there]).mean() if there.any() else np.nan)
    return np.array(means)


def mean_iou(results: np.ndarray, originals: np.ndarray) -> float:
    """Intersection over union of each class that occurs, both summed over all maps, mean over these classes.

    Maps hold numbers of classes; white is void. Pixels that are void in the original are left out, here and below; a
    result's own void is a class that is wrong everywhere. Without any pixel it is 1.
    """
    both, either = np.zeros((2, 1 + max(_void(results), _void(originals))), np.int64)
    for pair in zip(results, originals, strict=True):
        of_one = _overlap(*pair)
        for total, counts in zip((both, either), of_one, strict=True):
            total[: len(counts)] += counts
    return _ratio(both, either)


def picture_iou(results: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """`mean_iou` of each map by itself: levels twice -> [N]."""
    return np.array([_ratio(*_overlap(*pair)) for pair in zip(results, originals, strict=True)])


def _overlap(result, original):
    """(pixels of a class in both maps, in either), int [classes], up to the largest that occurs."""
    result, original = _known(result, original)
    count = 1 + int(max(result.max(initial=0), original.max(initial=0)))
    both = np.bincount(original[result == original], minlength=count)
    return both, sum(np.bincount(each, minlength=count) for each in (result, original)) - both


def _ratio(both, either):
    there = either > 0
    return float((both[there] / either[there]).mean()) if there.any() else 1.0


def _known(result, original):
    known = original != _void(original)
    return result[known], original[known]


def _void(levels):
    return np.iinfo(levels.dtype).max


def pixel_accuracy(results: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Share of a map's pixels that are of the right class, 1 without any: levels twice -> [N]."""
    pairs = [_known(*pair) for pair in zip(results, originals, strict=True)]
    return np.array([(a == b).mean() if b.size else 1.0 for a, b in pairs])


def boundary_f(results: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """F-measure of the boundaries of classes, mean over the classes that have one in either map: levels twice -> [N].

    A pixel is of its class's boundary where a neighbour in its row or column is of another class. It is found where the
    other map has one of that class within 0.75% of the diagonal, rounded up to whole pixels. Precision is the share of
    the result's that are found, recall of the original's (Csurka et al. 2013, "What is a good evaluation measure for
    semantic segmentation?", section 2.2). Void has no boundary. Where neither map has any, it is 1 if they
    are the same where something is known, else 0.
    """
    return np.array([_boundary_f(a[..., 0], b[..., 0]) for a, b in zip(results, originals, strict=True)])


def _boundary_f(result, original):
    void, reach = _void(original), math.ceil(_TOLERANCE * math.hypot(*original.shape))
    result = np.where(original == void, void, result)
    edges = [_edges(each, void) for each in (result, original)]
    values = []
    for number in np.union1d(*(each[edge] for each, edge in zip((result, original), edges, strict=True))):
        ours, theirs = (edge & (each == number) for each, edge in zip((result, original), edges, strict=True))
        # 0 where one map has no boundary of the class.
        precision, recall = _found(ours, theirs, reach), _found(theirs, ours, reach)
        values.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return np.mean(values) if values else float(np.array_equal(result, original))


def _edges(classes, void):
    """Pixels with a neighbour of another class; neither is void."""
    edges = np.zeros(classes.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (classes[one] != classes[other]) & (classes[one] != void) & (classes[other] != void)
        edges[one] |= differ
        edges[other] |= differ
    return edges


def _found(pixels, others, reach):
    """The share of pixels with one of the others within reach."""
    from scipy import ndimage

    if not pixels.any() or not others.any():
        return 0.0
    return (ndimage.distance_transform_edt(~others)[pixels] <= reach).mean()
