"""Training batches by step number."""

import os
from concurrent.futures import ThreadPoolExecutor

import grain
import jax
import numpy as np

from dream_jax.data import indexed


class Crop(grain.transforms.RandomMap):
    """A square of `crop` pixels, its place uniform; of a pair the same in both."""

    def __init__(self, crop):
        self.crop = crop

    def random_map(self, picture, rng):
        top, left = (int(rng.integers(places)) for places in indexed.starts(picture, self.crop))
        return indexed.square(picture, self.crop, top, left)


class Mask(grain.transforms.RandomMap):
    """Any mask of a source's beside a picture, at its size."""

    def __init__(self, source):
        self.source = source

    def random_map(self, picture, rng):
        return indexed.masked(self.source, picture, int(rng.integers(len(self.source.masks))))


def train_pictures(source, seed: int, crop: int, resize: int | None = None, place: str = "random") -> grain.MapDataset:
    """An endless sequence of uint8 [crop, crop, 3], a function of (seed, index): shuffled anew each epoch, cropped.

    Of a source with something beside its pictures, a sequence of `indexed.Pair`; a mask is drawn after the crop.

    With resize, the shorter side is first made that many pixels. Crops lie at random places, or in the middle, where
    those lie that are evaluated. A picture that is smaller than the crop is a UserError when it is reached.
    """
    large_enough = indexed.Source(lambda index: indexed.fit(source, index, crop, resize), len(source))
    # Seeds are derived in order, so another order would be other pictures.
    pictures = grain.MapDataset.source(large_enough).seed(seed).shuffle().repeat()
    if place == "centre":
        pictures = pictures.map(lambda picture: indexed.middle(picture, crop))
    else:
        pictures = pictures.random_map(Crop(crop))
    return pictures if getattr(source, "masks", None) is None else pictures.random_map(Mask(source))


def batch_indices(source, seed: int, batch_size: int, k: int) -> list[int]:
    """The places in the source of the pictures of global batch k of `train_pictures`, in the order of its rows."""
    shuffled = grain.MapDataset.source(range(len(source))).seed(seed).shuffle().repeat()
    return [int(shuffled[k * batch_size + row]) for row in range(batch_size)]


def batch_rows(pictures, k: int, batch_size: int, rows, pool) -> np.ndarray | indexed.Pair:
    """Rows of global batch k, uint8 [len(rows), crop, crop, 3]: row r is pictures[k * batch_size + r]."""
    return indexed.stack(pool.map(lambda row: pictures[k * batch_size + int(row)], rows))


def named(pictures: np.ndarray | indexed.Pair) -> dict[str, np.ndarray]:
    """What a batch calls the arrays of its pictures: {"image"}, and of pairs {"image", "beside"}."""
    return pictures._asdict() if isinstance(pictures, indexed.Pair) else {"image": pictures}


class Batches:
    """Global batches by step number: batches(k) -> {"image": uint8 [G, H, W, C], "row": int32 [G]}, sharded alike.

    Batches of pairs have "beside", levels [G, h, w, .], too.

    Any k may be asked for at any time. This process reads only the rows that its own devices hold, in `workers`
    threads for each of them, if there are so many cores, and the `ahead` batches after k are prepared meanwhile. Close
    it, or use it in a with statement, to end the threads.
    """

    def __init__(self, pictures, batch_size: int, sharding, workers: int = 2, ahead: int = 2):
        self._pictures, self._batch_size, self._sharding, self._ahead = pictures, batch_size, sharding, ahead
        local = sharding.addressable_devices_indices_map((batch_size,)).values()
        self._rows = np.unique(np.concatenate([np.arange(batch_size)[index] for index in local]))
        threads = max(workers, min(workers * len(local), os.cpu_count() or 1))
        self._readers = ThreadPoolExecutor(threads, "dream_jax_read")
        self._preparer = ThreadPoolExecutor(1, "dream_jax_batch")
        self._coming = {}

    def __call__(self, k: int) -> dict[str, jax.Array]:
        wanted = range(k, k + self._ahead + 1)
        for stale in self._coming.keys() - set(wanted):
            self._coming.pop(stale).cancel()
        for j in wanted:
            if j not in self._coming:
                self._coming[j] = self._preparer.submit(self._prepare, j)
        return self._coming.pop(k).result()

    def _prepare(self, k):
        local = named(batch_rows(self._pictures, k, self._batch_size, self._rows, self._readers))
        row = np.arange(self._batch_size, dtype=np.int32)

        def spread(array):
            def local_part(index):
                return array[np.searchsorted(self._rows, row[index[0]])]

            shape = (self._batch_size, *array.shape[1:])
            return jax.make_array_from_callback(shape, self._sharding, local_part)

        rows = jax.make_array_from_callback(row.shape, self._sharding, lambda index: row[index])
        return {name: spread(array) for name, array in local.items()} | {"row": rows}

    def close(self):
        self._preparer.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
