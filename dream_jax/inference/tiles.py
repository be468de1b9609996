"""Pictures in overlapping tiles: a network is evaluated in pieces of one shape, so that memory stays bounded.

In every network evaluation the tiles' outputs are averaged with smooth weights that sum to one (Bar-Tal et al. 2023,
MultiDiffusion, arXiv 2302.08113, eq. 5; Jimenez 2023, Mixture of Diffusers, arXiv 2302.02412, section 3, averages the
predicted noise). So the sampler sees one whole picture and no seam arises; tiles joined at the end would each have
gone their own way.

Norms and attention judge by what they see, which in a tile is not what it is in the picture. So in every evaluation
the network is shown a sample of the picture first, crops from all over it put together to one tile; its norms judge
all tiles by that, and its attention attends to it.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def offsets(side: int, tile: int, overlap: int, align: int = 1) -> np.ndarray:
    """Where tiles begin that cover 0..side, int [n]: as few as overlap by at least `overlap`, evenly spread.

    All are multiples of align, by which side, tile and overlap must divide: what the network learned of the place of
    low-resolution pixels within its patches then holds in every tile. A tile no smaller than side is the only one.
    """
    if not 0 <= overlap < tile or any(length % align for length in (side, tile, overlap)):
        raise ValueError(f"side {side}, tile {tile} and overlap {overlap} < tile must be multiples of {align}")
    if tile >= side:
        return np.array([0])
    count = 1 + math.ceil((side - tile) / (tile - overlap))
    # Rounded down, no step exceeds tile - overlap, which align divides.
    return np.arange(count) * (side - tile) // (count - 1) // align * align


def windows(side: int, tile: int, overlap: int, align: int = 1) -> np.ndarray:
    """The weights along one axis of the tiles at `offsets`, float64 [n, min(tile, side)]; they sum to 1 everywhere.

    A quarter of `overlap`, where a tile lacks its surroundings, counts for nothing; then the weight rises as a squared
    sine, to the same distance from the end of the tile before, which may reach further than `overlap`: the wider, the
    less a difference between tiles shows. At the ends of the picture there is no rise.
    """
    starts, tile = offsets(side, tile, overlap, align), min(tile, side)
    margin = overlap // 4
    depth = np.arange(tile) + 0.5 - margin

    def rise(shared):
        return np.sin(np.pi / 2 * np.clip(depth / max(shared - 2 * margin, 1), 0, 1)) ** 2

    weights = np.ones((len(starts), tile))
    for i, shared in enumerate(starts[:-1] + tile - starts[1:]):
        weights[i + 1] *= rise(shared)
        weights[i] *= rise(shared)[::-1]
    total = np.zeros(side)
    for a, weight in zip(starts, weights, strict=True):
        total[a : a + tile] += weight
    return np.stack([weight / total[a : a + tile] for a, weight in zip(starts, weights, strict=True)])


def sampled(side: int, tile: int, crop: int, align: int = 1) -> np.ndarray:
    """Which of the pixels 0..side a sample has along one axis, int [n], n <= tile: those of crops evenly spread.

    Each is in the middle of one of as many equal parts as there are crops, and begins at a multiple of align, which
    divides crop. Of a side no longer than a tile it is all.
    """
    if tile >= side:
        return np.arange(side)
    parts = tile // crop
    middles = (2 * np.arange(parts) + 1) * side // (2 * parts)
    starts = (middles - crop // 2) // align * align
    return (starts[:, None] + np.arange(crop)).ravel()


def count(height: int, width: int, tile: int, overlap: int, align: int = 1) -> int:
    """How many tiles cover a picture."""
    return len(offsets(height, tile, overlap, align)) * len(offsets(width, tile, overlap, align))


def tiled(
    predict,
    tile: int,
    overlap: int,
    align: int = 1,
    group: int = 1,
    spread=lambda tiles: tiles,
    crop: int | None = None,
):
    """`(x [B, H, W, C], cond [B, H, W, Cc], alpha [B]) -> output [B, H, W, C]` that calls predict on tiles.

    Args:
      predict: the same function, called with [group * B, min(tile, H), min(tile, W), .] only; with crop it takes one
        more argument, what `predict.measure` made of the pictures' samples, for each tile.
      tile, overlap, align: pixels, see `offsets`; align must divide H and W.
      group: tiles at once. The result depends on it only in rounding.
      spread: what is done with tiles [group * B, ...] beforehand, a sharding constraint for example.
      crop: the side of the crops of samples, see `sampled`; None for tiles that are judged by themselves.
    """

    def predict_whole(x, cond, alpha):
        batch, height, width, _ = x.shape
        axes = [(offsets(side, tile, overlap, align), windows(side, tile, overlap, align)) for side in (height, width)]
        shape = min(tile, height), min(tile, width)
        # The last group is filled up with tiles that count for nothing.
        total = math.prod(len(starts) for starts, _ in axes)
        missing = -total % group
        (starts_down, down), (starts_across, across) = axes
        chosen = np.array([*itertools.product(range(len(down)), range(len(across))), *[(0, 0)] * missing])
        counts = (np.arange(total + missing) < total)[:, None]
        parts = (
            np.stack([starts_down[chosen[:, 0]], starts_across[chosen[:, 1]]], 1),
            jnp.asarray(down[chosen[:, 0]] * counts, x.dtype),
            jnp.asarray(across[chosen[:, 1]], x.dtype),
        )
        groups = jax.tree.map(lambda part: part.reshape(-1, group, *part.shape[1:]), parts)

        def cut(z, start):
            return lax.dynamic_slice(z, (0, start[0], start[1], 0), (batch, *shape, z.shape[-1]))

        statistics = []
        if crop is not None:
            rows, columns = (sampled(side, tile, crop, align) for side in (height, width))
            found = predict.measure(*(z[:, rows[:, None], columns] for z in (x, cond)), alpha)
            statistics = [jax.tree.map(lambda a: jnp.concatenate([a] * group), found)]

        def add(blended, part):
            starts, down, across = part
            x_tiles, cond_tiles = (spread(jnp.concatenate([cut(z, start) for start in starts])) for z in (x, cond))
            out = predict(x_tiles, cond_tiles, jnp.tile(alpha, group), *statistics).astype(x.dtype)
            out = out.reshape(group, batch, *shape, -1) * down[:, None, :, None, None] * across[:, None, None, :, None]
            for start, piece in zip(starts, out, strict=True):
                at = (0, start[0], start[1], 0)
                blended = lax.dynamic_update_slice(blended, cut(blended, start) + piece, at)
            return blended, None

        return lax.scan(add, jnp.zeros_like(x), groups)[0]

    return predict_whole
