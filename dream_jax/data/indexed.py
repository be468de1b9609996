"""Sources: pictures by index. A source has len(source), and source[i] is a picture uint8 [H, W, 3]."""

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np

from dream_jax.errors import UserError
from dream_jax.files import images


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


def middle(picture: np.ndarray, crop: int) -> np.ndarray:
    """The middle square of `crop` pixels."""
    top, left = ((side - crop) // 2 for side in picture.shape[:2])
    return picture[top : top + crop, left : left + crop]


def fingerprint(source) -> str:
    """What a checkpoint records about its data: the number of pictures, and a CRC-32 of eight of them, evenly spaced.

    It depends on the pixels alone, so the same data in another place, or prepared by another machine, is the same.
    """
    crc = 0
    for index in sorted(set(np.linspace(0, len(source) - 1, 8).astype(int).tolist())):
        picture = np.ascontiguousarray(source[index])
        crc = zlib.crc32(picture, zlib.crc32(repr(picture.shape).encode(), crc))
    return f"{len(source)} pictures, crc32 {crc:08x}"


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
