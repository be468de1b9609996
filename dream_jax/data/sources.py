"""Where the pictures of a config come from: folders and files, a dataset of the catalog, or the bundled photographs."""

import dataclasses

from dream_jax import tasks
from dream_jax.data import bundled, scenes
from dream_jax.data.indexed import Source, is_paired
from dream_jax.errors import UserError
from dream_jax.files.picture import Reading
from dream_jax.tasks.super_resolution import NEEDS_LOW


def open_source(config, split: str) -> Source:
    """The pictures of split "train" or "eval" of a config; raises UserError where they have not what its task needs."""
    source = _open(config, split)
    task = tasks.make(config)
    if task.beside == "low" and task.needs_beside and not is_paired(source):
        raise UserError(f"task.scale = 1: {NEEDS_LOW}")
    if split == "eval" or config.data.limit is None:
        return source
    return dataclasses.replace(source, pictures=min(source.pictures, config.data.limit))


def reading_of(config) -> Reading:
    """How the pictures of a config are read."""
    c = config.data
    return Reading(c.channels, c.bits, tuple(c.range) or None, c.clip)


def _open(config, split):
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
            whole=c.crop == "centre",
            lr_folder=c.lr_folder,
            eval_lr_folder=c.eval_lr_folder,
            scale=config.task.scale,
            reading=reading_of(config),
        )
    if c.tfds is not None:
        from dream_jax.data.catalog import tfds_source

        chosen = c.train_split if split == "train" else c.eval_split
        low_key = c.lr_key if tasks.make(config).beside == "low" else "none"
        kept = c.tfds_dir, c.image_key, low_key, config.task.scale, reading_of(config)
        source = tfds_source(c.tfds, chosen, *kept)
        if is_paired(source) and c.resize is not None:
            raise UserError(
                f"data.resize = {c.resize}: the low-resolution pictures of {c.tfds} are those of its originals as they "
                "are; leave it out, or set data.lr_key=none"
            )
        return source
    if c.bundled == "scenes":
        return scenes.scenes(split, config)
    return bundled.photographs(split, reading_of(config))
