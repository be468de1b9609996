"""What metrics are given, `Compared`, and helpers that make a metric of a function of two batches."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dream_jax.files.numbers import of_bits
from dream_jax.metrics import efficientnet, features

Array = jax.Array | np.ndarray

# What is seen in so many pictures is held in memory.
SEEN_AT_ONCE = 200


class PictureSet(NamedTuple):
    """Pictures, and what networks say of them. The first call of each computes it, later ones remember.

    Attributes:
      pictures: levels uint8 or uint16 [N, H, W, C].
      inception: `(resize="linear") -> (pool3 [N, 2048], logits [N, 1008])`, see `features.RESIZES`.
      efficientnet: `() -> pooled features [N, 1280]`.
      seen: `(n) -> efficientnet.Seen` of the n-th SEEN_AT_ONCE pictures; only the last call is remembered.
    """

    pictures: np.ndarray
    inception: Callable[..., tuple[np.ndarray, np.ndarray]]
    efficientnet: Callable[[], np.ndarray]
    seen: Callable[[int], efficientnet.Seen]


class Compared(NamedTuple):
    """What a metric may look at.

    Attributes:
      results: the pictures drawn, of one seed.
      originals: held-out pictures. For paired tasks, result i should be original i.
      observed: what was observed of the originals, levels [N, ...]: the results were drawn from it. None: from nothing.
      consistency: the task's `(results [B, ...], observed [B, ...]) -> [B]`; None where it has none.
      weights: {network: {PyTorch name: array}} of the learned networks that were asked for.
      batch_size: pictures that are compared at once.
      samples: the results of every seed, each levels [N, H, W, C].
      channel, border: of PSNR and SSIM, as `pixels.psnr` has them.
      span: the numbers that black and white mean, of depth.
    """

    results: PictureSet
    originals: PictureSet
    observed: np.ndarray | None
    consistency: Callable[[Array, Array], Array] | None
    weights: Mapping[str, Mapping[str, Array]]
    batch_size: int
    samples: Sequence[np.ndarray] = ()
    channel: str = "rgb"
    border: int = 0
    span: tuple[float, float] = (0.0, 1.0)


def picture_set(pictures: np.ndarray, weights: Mapping[str, Mapping[str, Array]]) -> PictureSet:
    """Pictures, levels [N, H, W, C], as metrics take them; weights as in `Compared`."""

    @functools.cache
    def resized(resize):
        return features.inception_features(weights["inception"], _seen_by_networks(pictures), resize=resize)

    def inception(resize="linear"):
        return resized(resize)

    @functools.lru_cache(maxsize=1)
    def seen(number):
        some = pictures[number * SEEN_AT_ONCE : (number + 1) * SEEN_AT_ONCE]
        return efficientnet.see(weights["efficientnet_lite0"], rgb8(some))

    @functools.cache
    def pooled():
        return np.concatenate([seen(number).pooled for number in range(-(-len(pictures) // SEEN_AT_ONCE))])

    return PictureSet(pictures, inception, pooled, seen)


def rgb8(pictures: np.ndarray) -> np.ndarray:
    """Levels uint8 or uint16 [..., 1 or 3] as networks of photographs want them: uint8 [..., 3]."""
    pictures = of_bits(pictures, 8)
    return np.repeat(pictures, 3, -1) if pictures.shape[-1] == 1 else pictures


def _seen_by_networks(pictures):
    """An array, or a list of pictures of several sizes."""
    return rgb8(pictures) if isinstance(pictures, np.ndarray) else [rgb8(picture) for picture in pictures]


def in_batches(measure: Callable[..., Array], *arrays: Array, size: int) -> np.ndarray:
    """`measure(*arrays)` [N] in batches of one size, so that it is compiled once; the last batch is filled up."""
    count, parts = len(arrays[0]), []
    for start in range(0, count, size):
        batch = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(np.asarray(measure(*(array[batch] for array in arrays)))[: count - start])
    return np.concatenate(parts)


def each(measure: Callable[[Array, Array], Array]) -> Callable[[Compared], np.ndarray]:
    """The function of a paired metric, from one of levels `(results [B, ...], originals [B, ...]) -> [B]`."""

    def function(compared):
        pair = compared.results.pictures, compared.originals.pictures
        return in_batches(measure, *pair, size=compared.batch_size)

    return function
