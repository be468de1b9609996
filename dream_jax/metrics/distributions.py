"""Distances between two sets of pictures, and the score of one set.

Those of features and logits run on the host in float64: sums of thousands of terms that nearly cancel.
"""

import functools
import itertools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.errors import UserError


def _samples(least, **sets):
    """The sets as float64 [N, d] of one d, finite and of at least so many samples."""
    arrays = {name: np.asarray(x, np.float64) for name, x in sets.items()}
    for name, x in arrays.items():
        if x.ndim != 2 or len(x) < least or x.shape[1] < 1:
            raise UserError(f"{name} must be [samples, dimensions] with at least {least} samples, not {x.shape}")
        if not np.isfinite(x).all():
            raise UserError(f"{name} holds values that are not finite")
    if len({x.shape[1] for x in arrays.values()}) > 1:
        raise UserError(
            f"{' and '.join(sets)} have {' and '.join(str(x.shape[1]) for x in arrays.values())} dimensions"
        )
    return list(arrays.values())


def frechet_distance(f, g):
    """Fréchet distance of the Gaussians with the samples' moments (Dowson & Landau 1982; FID, Heusel et al. 2017).

    `|mu_f - mu_g|^2 + tr S_f + tr S_g - 2 tr (S_f S_g)^(1/2)`, covariances divided by N - 1: features [N, d] and [M, d]
    -> float. With `A^T A = S_f`, `S_f S_g` has the eigenvalues of `A S_g A^T`, which is symmetric and nowhere negative:
    their roots are real, also of singular covariances, where the matrix root of a product strays into complex numbers.

    Warns where a set has no more samples than dimensions: the value then depends on their number more than on the
    pictures, and compares only with others of as many. Raises UserError for other shapes and for values that are not
    finite.
    """
    f, g = _samples(2, f=f, g=g)
    few, dimensions = min(len(f), len(g)), f.shape[1]
    if few <= dimensions:
        warnings.warn(
            f"a Fréchet distance in {dimensions} dimensions from {few} samples compares only with others of as many",
            stacklevel=2,
        )
    f, g = sorted((f, g), key=len)
    mean_f, mean_g = f.mean(0), g.mean(0)
    root, other = ((x - mean) / math.sqrt(len(x) - 1) for x, mean in ((f, mean_f), (g, mean_g)))
    traces = (root**2).sum() + (other**2).sum()
    if len(root) > dimensions:
        values, vectors = np.linalg.eigh(root.T @ root)
        root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    product = np.linalg.eigvalsh(root @ (other.T @ other) @ root.T)
    return float(((mean_f - mean_g) ** 2).sum() + traces - 2 * np.sqrt(np.maximum(product, 0)).sum())


def kernel_sum(f, g, rows=1024):
    """Sum of `(x . y / d + 1)**3` over all pairs, a block of rows at a time."""
    return sum(((f[i : i + rows] @ g.T / f.shape[1] + 1) ** 3).sum() for i in range(0, len(f), rows))


def _squared_discrepancy(f, g):
    """Maximum mean discrepancy squared, the unbiased estimate (Gretton et al. 2012, equation 3)."""

    def within(x):
        itself = (((x**2).sum(1) / x.shape[1] + 1) ** 3).sum()
        return (kernel_sum(x, x) - itself) / (len(x) * (len(x) - 1))

    return within(f) + within(g) - 2 * kernel_sum(f, g) / (len(f) * len(g))


def kernel_distance(f, g, subsets=None, subset_size=1000, seed=0):
    """Kernel distance (KID, Binkowski et al. 2018): squared maximum mean discrepancy under `(x . y / d + 1)**3`.

    Features [N, d] and [M, d] -> float; unbiased, so two sets of one distribution average 0 and may fall below. By
    default one estimate from all samples; with `subsets`, the mean over so many pairs of random subsets of
    `subset_size` (fewer if a set is smaller), drawn without replacement from `seed`, as KID is mostly reported (100 of
    1000).

    Raises UserError for other shapes, values that are not finite, or impossible subsets.
    """
    f, g = _samples(2, f=f, g=g)
    if subsets is None:
        return float(_squared_discrepancy(f, g))
    if subsets < 1 or subset_size < 2:
        raise UserError(f"subsets={subsets} of subset_size={subset_size}: at least 1 of 2 samples is needed")
    size, rng = min(subset_size, len(f), len(g)), np.random.default_rng(seed)
    pairs = ([x[rng.choice(len(x), size, replace=False)] for x in (f, g)] for _ in range(subsets))
    return float(np.mean([_squared_discrepancy(*pair) for pair in pairs]))


def inception_score(logits, splits=10):
    """Inception Score (Salimans et al. 2016): logits [N, classes] -> (mean, standard deviation) over the splits.

    `exp(E KL(p(y|x) || p(y)))` of each of `splits` consecutive parts: 1 where all pictures get one answer, and the
    number of classes at most. Raises UserError for fewer pictures than splits, other shapes and
    values that are not finite.
    """
    if splits < 1:
        raise UserError(f"splits={splits}: at least 1 is needed")
    (logits,) = _samples(splits, logits=logits)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    def score(log_p):
        p = np.exp(log_p)
        mean = p.mean(0)
        # Of a class that nobody is given, 0 log 0 is 0.
        marginal = np.log(np.where(mean > 0, mean, 1))
        return np.exp((p * (log_p - marginal)).sum(1).mean())

    bounds = [i * len(log_p) // splits for i in range(splits + 1)]
    scores = [score(log_p[start:end]) for start, end in itertools.pairwise(bounds)]
    return float(np.mean(scores)), float(np.std(scores))


# Of Karras et al. 2018, section 5: patches of a picture and level, their side, and batches and numbers of directions.
_PATCHES, _SIDE, _REPEATS, _DIRECTIONS = 128, 7, 4, 128
_SMALLEST = 16
_BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def _blur(x):
    """Binomial filter of 5 x 5 pixels, mirrored at the edge pixels: [N, H, W, C]."""
    for axis in (1, 2):
        size = x.shape[axis]
        x = jnp.pad(x, [(2, 2) if k == axis else (0, 0) for k in range(4)], mode="reflect")
        x = sum(w * jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i, w in enumerate(_BLUR))
    return x


def _enlarge(x, height, width):
    spread = [(0, n - (2 * m - 1), 1) for n, m in zip((height, width), x.shape[1:3], strict=True)]
    return 4 * _blur(jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spread, (0, 0, 0)]))


def laplacian_pyramid(x, levels):
    """What each size adds to the next smaller one, largest first; the last is the picture at its size (Burt 1983)."""
    pyramid = []
    for _ in range(levels - 1):
        smaller = _blur(x)[:, ::2, ::2]
        pyramid.append(x - _enlarge(smaller, *x.shape[1:3]))
        x = smaller
    return [*pyramid, x]


@functools.partial(jax.jit, static_argnames="levels")
def _cut(pictures, corners, levels):
    """Patches [levels][N, patches, side * side, C] of pictures [N, H, W, C] at corners int [levels, N, patches, 2]."""

    def patch(level, corner):
        return jax.lax.dynamic_slice(level, (*corner, 0), (_SIDE, _SIDE, level.shape[-1]))

    of_picture = jax.vmap(patch, (None, 0))
    pyramid = laplacian_pyramid(pictures.astype(jnp.float32), levels)
    cut = [jax.vmap(of_picture)(level, c) for level, c in zip(pyramid, corners, strict=True)]
    return [c.reshape(*c.shape[:2], _SIDE**2, -1) for c in cut]


def patches(pictures, corners, levels, pictures_at_once=64):
    """`_cut` on the host, each channel of each level shifted and scaled to mean 0 and deviation 1: [levels][n, d]."""
    starts = range(0, len(pictures), pictures_at_once)
    parts = [
        _cut(pictures[i : i + pictures_at_once], corners[:, i : i + pictures_at_once], levels=levels) for i in starts
    ]
    result = []
    for level in zip(*parts, strict=True):
        x = np.concatenate(level)
        mean, deviation = (moment((0, 1, 2), dtype=np.float64) for moment in (x.mean, x.std))
        # A set of one flat colour has no deviation.
        x = (x - np.float32(mean)) / np.float32(np.where(deviation > 0, deviation, 1))
        result.append(x.reshape(len(x) * _PATCHES, -1))
    return result


def sliced(a, b, rng):
    """Mean over random directions of the distance of two sets [n, d] along it (Rabin et al. 2011)."""

    def along(x, directions):
        # Sorting on the host: XLA's sort on a CPU takes 50 times as long.
        return np.sort(directions @ x.T, axis=1)

    distances = []
    for _ in range(_REPEATS):
        directions = rng.standard_normal((_DIRECTIONS, a.shape[1]))
        directions = np.float32(directions / np.linalg.norm(directions, axis=1, keepdims=True))
        distances.append(np.abs(along(a, directions) - along(b, directions)).mean(dtype=np.float64))
    return np.mean(distances)


def sliced_wasserstein_levels(a, b, seed=0):
    """`sliced_wasserstein` by size: {shorter side in pixels: distance}, largest first, halved down to 16 or more."""
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 4 or a.shape != b.shape or not len(a) or a.dtype != b.dtype or a.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"sets to compare must both be uint8 or uint16 [N, H, W, C], not {a.dtype} {a.shape}, {b.dtype} {b.shape}"
        )
    if min(a.shape[1:3]) < _SMALLEST:
        raise UserError(f"a sliced Wasserstein distance needs at least 16 x 16 pixels, not {a.shape[1]} x {a.shape[2]}")
    sizes = [a.shape[1:3]]
    while min(smaller := [(n + 1) // 2 for n in sizes[-1]]) >= _SMALLEST:
        sizes.append(smaller)
    rng = np.random.default_rng(seed)
    corners = np.stack([rng.integers(0, np.array(s) - _SIDE + 1, (len(a), _PATCHES, 2), np.int32) for s in sizes])
    # The same places in both sets, so that a set is at no distance from itself.
    of_a, of_b = (patches(x, corners, len(sizes)) for x in (a, b))
    return {int(min(s)): 1e3 * float(sliced(x, y, rng)) for s, x, y in zip(sizes, of_a, of_b, strict=True)}


def sliced_wasserstein(a, b, seed=0):
    """Sliced Wasserstein distance of two sets' small details, times 1000 (Karras et al. 2018, section 5).

    Levels [N, H, W, C] twice, at least 16 x 16 pixels -> float; the mean over the levels of a Laplacian pyramid of the
    distance between their patches of 7 x 7 pixels, 128 from each picture, in 512 random directions. No network is
    needed. Each set's patches are scaled to mean 0 and deviation 1 in each channel and level, so a shift or stretch of
    all its colours alike goes unseen. Deterministic for a seed. Both sets must have as many pictures, and the value
    falls with their number: compare only values from as many.

    Raises UserError for other shapes and types and for smaller pictures.
    """
    return float(np.mean(list(sliced_wasserstein_levels(a, b, seed).values())))
