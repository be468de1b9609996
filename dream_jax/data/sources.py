"""Where the pictures of a config come from: a folder, a dataset of the catalog, or the bundled photographs."""

import dataclasses

from dream_jax.data import bundled
from dream_jax.data.indexed import Source


def open_source(config, split: str) -> Source:
    """The pictures of split "train" or "eval" of a config."""
    source = _open(config, split)
    if split == "eval" or config.data.limit is None:
        return source
    return dataclasses.replace(source, pictures=min(source.pictures, config.data.limit))


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
        )
    if c.tfds is not None:
        from dream_jax.data.catalog import tfds_source

        return tfds_source(c.tfds, c.train_split if split == "train" else c.eval_split, c.tfds_dir, c.image_key)
    return bundled.photographs(split)
