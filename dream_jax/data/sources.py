"""Where the pictures of a config come from: folders and files, a dataset of the catalog, or the bundled photographs."""

import dataclasses

import numpy as np

from dream_jax import tasks
from dream_jax.data import beside, bundled, scenes
from dream_jax.data.beside import Beside
from dream_jax.data.indexed import Source, has_beside, is_paired
from dream_jax.errors import UserError, shown
from dream_jax.files.picture import Reading
from dream_jax.tasks.beside import BESIDE, check_scale
from dream_jax.tasks.super_resolution import NEEDS_LOW


def open_source(config, split: str) -> Source:
    """The pictures of split "train" or "eval" of a config; raises UserError where they have not what its task needs."""
    source = _open(config, split)
    check_beside(config, source)
    if is_of_classes(config):
        source = _of_known_classes(source, tasks.make(config).classes)
    if split == "eval" or config.data.limit is None:
        return source
    return dataclasses.replace(source, pictures=min(source.pictures, config.data.limit))


def check_beside(config, source: Source) -> None:
    """Raises UserError where a task takes what lies beside pictures, and nothing does."""
    task = tasks.make(config)
    if not task.needs_beside or has_beside(source):
        return
    if task.beside == "low":
        raise UserError(f"task.scale = 1: {NEEDS_LOW}")
    kind = BESIDE[task.beside]
    raise UserError(f"task.name = {config.task.name}: it needs {kind.nouns} beside pictures: {kind.where}")


def reading_of(config) -> Reading:
    """How the pictures of a config are read."""
    c = config.data
    if is_of_classes(config):
        return Reading(c.channels, c.bits, classes=True)
    # Depths of several files are comparable.
    told = tasks.make(config).measured_as == "depth"
    return Reading(c.channels, c.bits, tuple(c.range) or None, c.clip, told=told)


def is_of_classes(config) -> bool:
    """Whether a config's pictures are maps of classes."""
    return tasks.make(config).measured_as == "classes"


def beside_of(config) -> Beside | None:
    """What lies beside the pictures of a config, by its task and its keys; None where its task takes nothing."""
    return beside.of_config(config, tasks.make(config).beside)


def beside_given(config, folder) -> Beside | None:
    """What lies beside a person's pictures, in a folder that is given with them or is None.

    Raises UserError where the task of a config takes nothing from folders, and where it needs a folder.
    """
    lies = beside_of(config)
    if folder is None:
        task = tasks.make(config)
        if lies is not None and task.needs_beside:
            raise UserError(
                f"{config.task.name}: it needs {BESIDE[lies.kind].nouns} beside pictures; name them with --low"
            )
        return None
    if lies is None or lies.kind == "label":
        raise UserError(f"--low: {config.task.name} takes no pictures that are there")
    return lies._replace(folder=folder)


def class_names(config) -> tuple[str, ...]:
    """The names of the classes in the data of a config, in the order of their numbers; raises UserError without any."""
    c = config.data
    if c.folder is not None:
        from dream_jax.data import listing

        return listing.classes(c.folder)
    if c.tfds is not None:
        from dream_jax.data import catalog

        return catalog.class_names(c.tfds, c.tfds_dir, c.label_key)
    if c.bundled == "scenes":
        return scenes.NAMES[: config.task.num_classes]
    raise UserError(f"task.name = {config.task.name}: it needs classes: {BESIDE['label'].where}")


def _of_known_classes(source, number):
    """A source of maps of classes; to read one that has other numbers raises UserError."""

    def read(i):
        classes = source.read(i)
        void = np.iinfo(classes.dtype).max
        if others := set(np.unique(classes).tolist()) - set(range(number)) - {void}:
            raise UserError(
                f"{shown(source.label(i))}: it has class {min(others)}; task.num_classes = {number} has 0 to "
                f"{number - 1}, and {void} for pixels of none"
            )
        return classes

    return dataclasses.replace(source, read=read)


def _open(config, split):
    c, lies = config.data, beside_of(config)
    if lies and lies.kind == "label" and not lies.classes:
        lies = lies._replace(classes=class_names(config))
    if lies and lies.kind == "mask":
        return _with_masks(config, split, lies)
    if c.folder is not None and lies and lies.kind != "label" and lies.folder is None:
        lies = None
    return _plain(config, split, lies)


def _plain(config, split, lies=None):
    if config.data.folder is not None:
        return _of_folder(config, split, lies)
    if config.data.tfds is not None:
        return _of_catalog(config, split, lies)
    if config.data.bundled == "scenes":
        return scenes.scenes(split, config)
    return bundled.photographs(split, reading_of(config))


def _of_folder(config, split, lies, only=None):
    # TensorFlow Datasets is imported by those only who need it.
    from dream_jax.data.folders import folder_source

    c = config.data
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
        beside=lies,
        reading=reading_of(config),
        only=only,
    )


def _of_catalog(config, split, lies):
    from dream_jax.data.catalog import tfds_source

    c = config.data
    chosen = c.train_split if split == "train" else c.eval_split
    source = tfds_source(c.tfds, chosen, c.tfds_dir, c.image_key, lies, reading_of(config))
    if is_paired(source) and source.kind == "low":
        check_scale(config)
    if is_paired(source) and source.kind != "label" and c.resize is not None:
        kind = BESIDE[source.kind]
        raise UserError(
            f"data.resize = {c.resize}: the {kind.nouns} of {c.tfds} are those of its pictures as they are; leave it "
            f"out, or set data.{kind.feature}=none"
        )
    return source


def _with_masks(config, split, lies):
    """Pictures with their own masks, or with any of them; without a folder of masks with none."""
    c = config.data
    chosen = (lies.eval_folder if split == "eval" else None) or lies.folder
    if chosen is not None and c.folder is not None:
        from dream_jax.data import folders, masks

        held_out = split == "eval" and c.eval_folder is not None
        own = lies._replace(folder=None if held_out else chosen, eval_folder=chosen if held_out else None)

        def paired():
            return folders.split_files(c.folder, c.eval_folder, c.eval_percent, own)[split]

        pictures = c.eval_folder if held_out else c.folder
        if masks.by_name(pictures, chosen, paired, reading_of(config), f"the {split} pictures"):
            if c.resize is not None:
                raise UserError(f"data.resize = {c.resize}: masks that are there do not fit resized pictures")
            return _of_folder(config, split, own, only=split)
    source = _plain(config, split)
    if chosen is None:
        return source
    from dream_jax.data.folders import masks_source

    return dataclasses.replace(source, kind="mask", masks=masks_source(chosen, c.cache_dir, c.skip_unreadable))
