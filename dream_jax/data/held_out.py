"""The pictures that models are evaluated on."""

import numpy as np

from dream_jax.data import indexed, sources


def middle_crops(source, crop: int, count: int, resize: int | None = None) -> np.ndarray | indexed.Pair:
    """The middle crop of the first `count` pictures, in order: uint8 [N, crop, crop, 3], or such a pair.

    Of masks that are not of one picture each, picture i gets the one of its number.
    """
    chosen = range(min(count, len(source)))
    crops = (indexed.middle(indexed.fit(source, index, crop, resize), crop) for index in chosen)
    return indexed.stack(indexed.masked(source, picture, index) for index, picture in enumerate(crops))


def side_of(config) -> int:
    """The side of the middle crops that are evaluated."""
    return config.image_size if config.evaluation.crop is None else config.evaluation.crop


def label(config, number: int) -> str:
    """A name for a person of one of `eval_pictures`, by its place among them."""
    return sources.open_source(config, config.evaluation.against).label(number)


def eval_pictures(config, split: str | None = None) -> np.ndarray | indexed.Pair:
    """At most `evaluation.pictures` pictures, uint8 [N, side, side, 3], of a split; `evaluation.against` by default.

    Of a source with something beside its pictures, a pair of arrays.
    """
    source = sources.open_source(config, split or config.evaluation.against)
    return middle_crops(source, side_of(config), config.evaluation.pictures, resize=config.data.resize)
