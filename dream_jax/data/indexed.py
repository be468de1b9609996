"""Sources: pictures by index. A source has len(source), and source[i] is a picture: levels [H, W, C]."""

import dataclasses
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dream_jax.errors import UserError, shown
from dream_jax.files import images
from dream_jax.tasks.beside import BESIDE


@dataclasses.dataclass(frozen=True)
class Source:
    """Pictures by index: len(source), source[i] -> levels [H, W, C], uint8 or uint16, or numbers of classes.

    Attributes:
      read: `i -> picture`, for i in 0..pictures-1.
      pictures: how many there are.
      copies: how often each is listed.
      name: `i -> what the picture is called`, where that is known.
      beside: `i -> what lies beside it`, levels [h, w, C], where there is such.
      scale: how many times larger pictures are than that.
      kind: what lies beside pictures, of `tasks.beside.BESIDE`.
      masks: instead, of which each example gets any one, at its own size.
    """

    read: Callable[[int], np.ndarray]
    pictures: int
    copies: int = 1
    name: Callable[[int], str] | None = None
    beside: Callable[[int], np.ndarray] | None = None
    scale: int = 1
    kind: str = "low"
    masks: "Source | None" = None

    def __len__(self):
        return self.pictures * self.copies

    def __getitem__(self, index):
        return self.read(range(len(self))[index] % self.pictures)

    def label(self, index: int) -> str:
        """A name for a person: the file's, else the number."""
        number = int(index) % self.pictures
        return f"picture {number}" if self.name is None else self.name(number)

    def pair(self, index: int) -> "Pair":
        """A picture with what lies beside it; raises UserError where they do not fit."""
        number = range(len(self))[index] % self.pictures
        return pair(self.read(number), self.beside(number), self.scale, self.label(number), self.kind)


class Pair(NamedTuple):
    """A picture with what lies beside it, or stacks of both: image [..., s h, s w, C], beside [..., h, w, .].

    What is beside may also be of the picture as a whole, as a class is: [..., 1, 1, 1].
    """

    image: np.ndarray
    beside: np.ndarray

    @property
    def scale(self) -> int:
        """How many times larger the picture is: s; 1 of what is of the picture as a whole."""
        return 1 if self.of_whole else self.image.shape[-3] // self.beside.shape[-3]

    @property
    def of_whole(self) -> bool:
        """Whether what is beside is the same wherever the picture is cut."""
        return self.beside.shape[-3:-1] == (1, 1)

    @property
    def grid(self) -> np.ndarray:
        """The coarser of both, on whose pixels both can be cut."""
        return self.image if self.of_whole else self.beside


def pair(image: np.ndarray, beside: np.ndarray, scale: int, name: str, kind: str = "low") -> Pair:
    """A picture with what lies beside it, of this kind.

    It is cut at the right and below to whole low-resolution pixels. Raises UserError, which says `name`, unless each
    side of those is that of the picture divided by scale, rounded down; conditions and masks have the picture's sides.
    """
    if kind == "label":
        return Pair(image, beside)
    (height, width), (low_height, low_width) = image.shape[:2], beside.shape[:2]
    if kind != "low" and (height, width) != (low_height, low_width):
        raise UserError(
            f"{shown(name)}: {width}x{height} pixels, and its {BESIDE[kind].noun} has {low_width}x{low_height}; both "
            "must be of one size"
        )
    if (height // scale, width // scale) != (low_height, low_width):
        raise UserError(
            f"{shown(name)}: {width}x{height} pixels, and its low-resolution picture has {low_width}x{low_height}; "
            f"task.scale = {scale} needs {width // scale}x{height // scale} (or data.lr_key=none: it is made anew)"
        )
    return Pair(image[: low_height * scale, : low_width * scale], beside)


def masked(source, picture: np.ndarray | Pair, number: int) -> np.ndarray | Pair:
    """A picture with a mask of the source's, by this number and at the picture's size, where it has such."""
    if getattr(source, "masks", None) is None:
        return picture
    return Pair(picture, images.resize_nearest(source.masks[number % len(source.masks)], *picture.shape[:2]))


def images_of(pictures: np.ndarray | Pair) -> np.ndarray:
    """The pictures alone."""
    return pictures.image if isinstance(pictures, Pair) else pictures


def is_paired(source) -> bool:
    """Whether each picture of a source has its own beside it."""
    return getattr(source, "beside", None) is not None


def has_beside(source) -> bool:
    """Whether something lies beside the pictures of a source."""
    return is_paired(source) or getattr(source, "masks", None) is not None


def starts(picture: np.ndarray | Pair, crop: int) -> tuple[int, int]:
    """How many places there are, down and across, where a square of `crop` pixels can begin.

    In pairs it begins, and ends, where a pixel of both does.
    """
    if isinstance(picture, Pair):
        return starts(picture.grid, crop // picture.scale)
    height, width = picture.shape[:2]
    return height - crop + 1, width - crop + 1


def square(picture: np.ndarray | Pair, crop: int, top: int, left: int) -> np.ndarray | Pair:
    """The square of `crop` pixels at a place of `starts`."""
    if isinstance(picture, Pair):
        scale = picture.scale
        image = square(picture.image, crop, top * scale, left * scale)
        return Pair(image, picture.beside if picture.of_whole else square(picture.beside, crop // scale, top, left))
    return picture[top : top + crop, left : left + crop]


def middle(picture: np.ndarray | Pair, crop: int) -> np.ndarray | Pair:
    """The middle square of `crop` pixels."""
    top, left = ((places - 1) // 2 for places in starts(picture, crop))
    return square(picture, crop, top, left)


def stack(pictures) -> np.ndarray | Pair:
    """Pictures of one size, or pairs, as one array or a pair of arrays."""
    pictures = list(pictures)
    if isinstance(pictures[0], Pair):
        return Pair(*(np.stack(part) for part in zip(*pictures, strict=True)))
    return np.stack(pictures)


def fingerprint(source) -> str:
    """What a checkpoint records about its data: the number of pictures, and a CRC-32 of eight of them, evenly spaced.

    It depends on the pixels alone, so the same data in another place, or prepared by another machine, is the same.
    """
    crc, paired = 0, is_paired(source)
    for index in sorted(set(np.linspace(0, len(source) - 1, 8).astype(int).tolist())):
        for picture in source.pair(index) if paired else (source[index],):
            picture = np.ascontiguousarray(picture)
            crc = zlib.crc32(picture, zlib.crc32(repr(picture.shape).encode(), crc))
    masks = getattr(source, "masks", None)
    more = "" if masks is None else f", with masks: {fingerprint(masks)}"
    return f"{len(source)} {'pairs' if paired else 'pictures'}, crc32 {crc:08x}{more}"


def _said(source, index):
    """What a message calls a picture: its file, where that is known."""
    named = getattr(source, "name", None) is not None
    return shown(source.label(index)) if named else f"picture {index} of the data"


def fit(source, index: int, crop: int, resize: int | None = None) -> np.ndarray | Pair:
    """A picture of a source, or a pair, with its shorter side resized, of at least `crop` pixels a side.

    Raises UserError for smaller ones, and where what lies beside a picture of its places does not fit a resized one.
    """
    paired = source.pair(index) if is_paired(source) else None
    if resize is not None and paired is not None and source.kind != "label":
        raise UserError(
            f"data.resize = {resize}: {BESIDE[source.kind].nouns} that are there do not fit resized pictures; "
            "leave it out"
        )
    picture = source[index] if paired is None else paired.image
    if resize is not None and min(picture.shape[:2]) != resize:
        try:
            picture = images.resize_shorter_side(picture, resize)
        except UserError as error:
            raise UserError(f"{_said(source, index)}: {error}; leave it out, or lower data.resize") from error
    height, width = picture.shape[:2]
    if min(height, width) < crop:
        raise UserError(
            f"{_said(source, index)} is {width}x{height}, smaller than the crop of {crop}; lower image_size (or "
            "evaluation.crop), set data.resize, or leave the picture out"
        )
    return picture if paired is None else paired._replace(image=picture)
