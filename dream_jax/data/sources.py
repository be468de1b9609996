"""Sources of pictures by index.

A source is anything with len(source) and source[i] -> uint8 [H, W, 3]: photographs bundled with scikit-image, a catalog
dataset of TensorFlow Datasets by name, or a folder of pictures prepared once into an ArrayRecord dataset. TensorFlow is
never imported, except by the builders of the catalog while they prepare.
"""

import dataclasses
import functools
import importlib.util
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dream_jax.errors import UserError
from dream_jax.files import images

# Photographs inside the scikit-image package. The two motorcycles are a stereo pair, so they must stay on one side.
BUNDLED = {
    "train": (
        *("astronaut.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg", "hubble_deep_field.jpg"),
        *("brick.png", "camera.png", "coins.png", "grass.png", "gravel.png", "moon.png"),
    ),
    "eval": ("chelsea.png", "coffee.png"),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Pictures by index: len(source), source[i] -> uint8 [H, W, 3].

    Attributes:
      read: `i -> picture`, for i in 0..pictures-1.
      pictures: how many there are.
      copies: how often each is listed.
      name: `i -> what the picture is called`, where that is known.
    """

    read: Callable[[int], np.ndarray]
    pictures: int
    copies: int = 1
    name: Callable[[int], str] | None = None

    def __len__(self):
        return self.pictures * self.copies

    def __getitem__(self, index):
        return self.read(range(len(self))[index] % self.pictures)

    def label(self, index: int) -> str:
        """A name for a person: the file's, else the number."""
        number = int(index) % self.pictures
        return f"picture {number}" if self.name is None else self.name(number)


def fingerprint(source) -> str:
    """What a checkpoint records about its data: the number of pictures, and a CRC-32 of eight of them, evenly spaced.

    It depends on the pixels alone, so the same data in another place, or prepared by another machine, is the same.
    """
    crc = 0
    for index in sorted(set(np.linspace(0, len(source) - 1, 8).astype(int).tolist())):
        picture = np.ascontiguousarray(source[index])
        crc = zlib.crc32(picture, zlib.crc32(repr(picture.shape).encode(), crc))
    return f"{len(source)} pictures, crc32 {crc:08x}"


@functools.cache
def _decoded(folder, split):
    # Once a process: decoding them takes longer than starting to train on them.
    return [images.read(folder / name) for name in BUNDLED[split]]


def bundled(split: str) -> Source:
    """Photographs that come with scikit-image: eleven to train on, 20 times each, and two others to evaluate on."""
    if split not in BUNDLED:
        raise UserError(f"the bundled photographs have the splits {', '.join(BUNDLED)}, not {split!r}")
    package = importlib.util.find_spec("skimage")
    if package is None:
        raise UserError("the bundled photographs are part of scikit-image: pip install scikit-image")
    folder = Path(package.submodule_search_locations[0]) / "data"
    pictures = _decoded(folder, split)
    # A draw from a shuffled list of five takes grain 6 ms, and correspondingly less from a longer one.
    copies = 20 if split == "train" else 1
    return Source(pictures.__getitem__, len(pictures), copies, BUNDLED[split].__getitem__)


def open_source(config, split: str) -> Source:
    """The pictures of split "train" or "eval" of a config."""
    # TensorFlow Datasets is imported by those only who need it.
    c = config.data
    if c.folder is not None:
        from dream_jax.data.folders import folder_source

        return folder_source(
            c.folder,
            split=split,
            crop=config.image_size,
            eval_folder=c.eval_folder,
            cache_dir=c.cache_dir,
            resize=c.resize,
            skip_unreadable=c.skip_unreadable,
            eval_percent=c.eval_percent,
        )
    if c.tfds is not None:
        from dream_jax.data.catalog import tfds_source

        return tfds_source(c.tfds, c.train_split if split == "train" else c.eval_split, c.tfds_dir, c.image_key)
    return bundled(split)


def fit(source, index, crop, resize):
    picture = source[index]
    if resize is not None and min(picture.shape[:2]) != resize:
        try:
            picture = images.resize_shorter_side(picture, resize)
        except UserError as error:
            raise UserError(f"picture {index} of the data: {error}; leave it out, or lower data.resize") from error
    height, width = picture.shape[:2]
    if min(height, width) < crop:
        raise UserError(
            f"picture {index} of the data is {width}x{height}, smaller than the crop of {crop}; lower image_size (or "
            "evaluation.crop), set data.resize, or leave the picture out"
        )
    return picture
