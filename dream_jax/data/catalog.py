"""Datasets of the TensorFlow Datasets catalog, read without TensorFlow; its own builders need it while they prepare."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from dream_jax.data.beside import Beside
from dream_jax.data.indexed import Source
from dream_jax.errors import UserError
from dream_jax.files import images
from dream_jax.files.picture import USUAL, Reading
from dream_jax.tasks.beside import BESIDE


def tfds_source(
    name: str,
    split: str,
    data_dir: str | None = None,
    image_key: str | None = None,
    beside: Beside | None = None,
    reading: Reading = USUAL,
) -> Source:
    """A prepared dataset of the TensorFlow Datasets catalog, as "cifar10" or "div2k/bicubic_x4:2.0.0".

    split is in the notation of TensorFlow Datasets ("train", "test[:100]"), data_dir defaults to its own
    (~/tensorflow_datasets, or TFDS_DATA_DIR); image_key defaults to "hr", else "image", else the only picture there is.
    beside: what is read with them; reading: how pictures are read.

    Raises UserError if there is no such dataset, split or picture, if it is not prepared for random access, or has more
    classes than `beside` names; and where a picture is read that has no class.
    """
    builder = _prepared(name, data_dir)
    decode = functools.partial(images.read, reading=reading)
    if beside is None:
        return builder_source(builder, split, image_key, decode)
    if beside.kind == "label":
        key = _label_key(builder, beside.key)
        _check_names(builder, key, beside.classes)
        found = beside._replace(key=key or "none"), functools.partial(_label, f"{builder.name}/{key}")
    else:
        found = beside, functools.partial(images.read, reading=beside.read_as(reading))
    return builder_source(builder, split, image_key, decode, beside=found)


def class_names(name: str, data_dir: str | None = None, label_key: str | None = None) -> tuple[str, ...]:
    """The names of a catalog dataset's classes, in the order of their numbers; errors as of `tfds_source`."""
    builder = _prepared(name, data_dir)
    key = _label_key(builder, label_key)
    if key is None:
        raise UserError(f"data.label_key: {name} has no feature 'label' that holds classes; name another")
    return tuple(builder.info.features[key].names)


def _label_key(builder, key):
    """The feature that holds the classes of a dataset, the one of this key; by default "label", if that does."""
    found = [k for k, feature in builder.info.features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if key is None:
        return "label" if "label" in found else None
    if key not in found:
        raise UserError(
            f"data.label_key: {builder.name} has the classes {', '.join(found) or '(none)'}; {key!r} is not one of them"
        )
    return key


def _check_names(builder, key, names):
    """Raises UserError where a dataset has more classes than there are names."""
    has = key and builder.info.features[key].num_classes
    if names and has and has > len(names):
        raise UserError(
            f"data.classes: it names {len(names)} classes, and {builder.name}/{key} has {has}; name all, in the order "
            "of their numbers, or leave it out"
        )


def _label(name, number):
    if not 0 <= number < 2**16:
        raise UserError(
            f"{name}: a picture has no class ({number}); choose a split whose pictures all have one: data.train_split, "
            "data.eval_split"
        )
    return np.full((1, 1, 1), number, np.uint16)


def _prepared(name, data_dir):
    builder = _catalog_builder(name, data_dir)
    if not builder.is_prepared():
        raise UserError(f"{name} is not prepared in {builder.data_dir}. {_how_to_prepare(name, data_dir)}")
    _need_random_access(builder, name, data_dir)
    return builder


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


def builder_source(builder, split, image_key=None, decode=images.read, name_key=None, beside=None) -> Source:
    """The pictures of a prepared dataset.

    Args:
      decode: `bytes -> levels [H, W, C]` of a picture's file.
      name_key: the feature that holds their names, where one does.
      beside: (what lies beside them, `its feature's value -> levels [h, w, .]`). Without a key, low-resolution pictures
        are "lr" beside "hr" where there are such, and others are none.
    """
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
    lies, decode_beside = beside or (None, None)
    key = _key_of(lies, builder, image_key, pictures) if lies else None
    # Decoded here: what TensorFlow Datasets decodes with depends on whether OpenCV is installed.
    encoded = {key: tfds.decode.SkipDecoding() for key in pictures}
    try:
        records = builder.as_data_source(split=split, decoders=encoded)
    except ValueError as error:
        known = ", ".join(builder.info.splits)
        raise UserError(
            f"data.train_split, data.eval_split: {builder.name} has the splits {known}; {split!r} is refused: {error}"
        ) from error
    name = None if name_key is None else lambda index: records[index][name_key].decode()

    def reader(key, decode):
        return lambda index: decode(records[index][key])

    found = Source(reader(image_key, decode), len(records), name=name)
    if key is None:
        return found
    return dataclasses.replace(found, beside=reader(key, decode_beside), scale=lies.scale, kind=lies.kind)


def _key_of(beside, builder, image_key, pictures):
    """The feature that holds what lies beside the pictures of a dataset; None where there is none."""
    key = beside.key
    if beside.kind == "low" and key is None and image_key == "hr" and "lr" in pictures:
        return "lr"
    if key in (None, "none"):
        return None
    if key not in pictures and beside.kind != "label":
        raise UserError(
            f"data.{BESIDE[beside.kind].feature}: {builder.name} has pictures {', '.join(pictures)}; {key!r} is not "
            "one of them"
        )
    return key
