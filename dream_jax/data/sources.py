"""Sources of pictures by index.

A source is anything with len(source) and source[i] -> uint8 [H, W, 3]: photographs bundled with scikit-image, a catalog
dataset of TensorFlow Datasets by name, or a folder of pictures prepared once into an ArrayRecord dataset. TensorFlow is
never imported, except by the builders of the catalog while they prepare.
"""

import dataclasses
import importlib.util
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from dream_jax.data import folders
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


def bundled(split: str) -> Source:
    """Photographs that come with scikit-image: eleven to train on, 20 times each, and two others to evaluate on."""
    if split not in BUNDLED:
        raise UserError(f"the bundled photographs have the splits {', '.join(BUNDLED)}, not {split!r}")
    package = importlib.util.find_spec("skimage")
    if package is None:
        raise UserError("the bundled photographs are part of scikit-image: pip install scikit-image")
    folder = Path(package.submodule_search_locations[0]) / "data"
    pictures = [images.read(folder / name) for name in BUNDLED[split]]
    # A draw from a shuffled list of five takes grain 6 ms, and correspondingly less from a longer one.
    copies = 20 if split == "train" else 1
    return Source(pictures.__getitem__, len(pictures), copies, BUNDLED[split].__getitem__)


def tfds_source(name: str, split: str, data_dir: str | None = None, image_key: str | None = None) -> Source:
    """A prepared dataset of the TensorFlow Datasets catalog, as "cifar10" or "div2k/bicubic_x4:2.0.0".

    split is in the notation of TensorFlow Datasets ("train", "test[:100]"), data_dir defaults to its own
    (~/tensorflow_datasets, or TFDS_DATA_DIR); image_key defaults to "hr", else "image", else the only picture there is.
    Raises UserError if there is no such dataset, split or picture, or if it is not prepared for random access.
    """
    builder = _catalog_builder(name, data_dir)
    if not builder.is_prepared():
        raise UserError(f"{name} is not prepared in {builder.data_dir}. {_how_to_prepare(name, data_dir)}")
    _need_random_access(builder, name, data_dir)
    return _builder_source(builder, split, image_key)


def prepare_tfds(name: str, data_dir: str | None = None) -> Path:
    """Downloads a catalog dataset and writes it as ArrayRecord; returns its folder. Needs TensorFlow, only here."""
    builder = _catalog_builder(name, data_dir)
    if not builder.is_prepared():
        if importlib.util.find_spec("tensorflow") is None:
            raise UserError(
                f"the catalog's own code unpacks {name} with TensorFlow: pip install tensorflow (only for preparing; "
                "training and evaluation do not import it)"
            )
        try:
            builder.download_and_prepare(file_format="array_record")
        except (OSError, AssertionError, tfds.download.DownloadError) as error:  # no network, or files to fetch by hand
            raise UserError(f"{name} could not be prepared in {builder.data_dir}: {error}") from error
    _need_random_access(builder, name, data_dir)
    return Path(builder.data_dir)


def _catalog_builder(name, data_dir):
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise UserError(f"data.tfds: TensorFlow Datasets has no {name!r}: {error}") from error


def _how_to_prepare(name, data_dir):
    where = f" --tfds_dir {data_dir}" if data_dir else ""
    return (
        f"Prepare it with: python -m dream_jax prepare --tfds {name}{where} (the catalog's own code needs TensorFlow "
        "for that, and nothing else does: pip install tensorflow)"
    )


def _need_random_access(builder, name, data_dir):
    found = sorted(file_format.value for file_format in builder.info.available_file_formats())
    if not {"array_record", "parquet"} & set(found):
        raise UserError(
            f"{name} in {builder.data_dir} is in the format {', '.join(found)}, which has no random access. Delete "
            f"that folder or choose another data.tfds_dir. {_how_to_prepare(name, data_dir)}"
        )


def _builder_source(builder, split, image_key):
    features = builder.info.features
    pictures = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if image_key is None:
        image_key = next((key for key in ("hr", "image") if key in pictures), None)
        if image_key is None and len(pictures) == 1:
            image_key = pictures[0]
    if image_key not in pictures:
        raise UserError(
            f"data.image_key: {builder.name} has the pictures {', '.join(pictures) or '(none)'}; "
            + (f"{image_key!r} is not one of them" if image_key else "name one of them")
        )
    if features[image_key].np_dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"data.image_key: {builder.name}/{image_key} holds {features[image_key].np_dtype}, not a picture"
        )
    # Decoded here: what TensorFlow Datasets decodes with depends on whether OpenCV is installed.
    encoded = {key: tfds.decode.SkipDecoding() for key in pictures}
    try:
        records = builder.as_data_source(split=split, decoders=encoded)
    except ValueError as error:
        known = ", ".join(builder.info.splits)
        raise UserError(
            f"data.train_split, data.eval_split: {builder.name} has the splits {known}; {split!r} is refused: {error}"
        ) from error
    # A folder's own records know their files.
    name = (lambda index: records[index]["name"].decode()) if builder.name == folders.Pictures.name else None
    return Source(lambda index: images.read(records[index][image_key]), len(records), name=name)


def folder_source(
    folder,
    *,
    split: str,
    crop: int,
    eval_folder=None,
    cache_dir=None,
    resize: int | None = None,
    skip_unreadable: bool = False,
    eval_percent: float = 10.0,
) -> Source:
    """The split "train" or "eval" of a folder of pictures, prepared by prepare_folder if it is not yet."""
    path = folders.prepare_folder(
        folder,
        crop=crop,
        eval_folder=eval_folder,
        cache_dir=cache_dir,
        resize=resize,
        skip_unreadable=skip_unreadable,
        eval_percent=eval_percent,
    )
    return _builder_source(tfds.builder_from_directory(path), split, "image")


def open_source(config, split: str) -> Source:
    """The pictures of split "train" or "eval" of a config."""
    c = config.data
    if c.folder is not None:
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
