"""The pictures that models are evaluated on."""

import numpy as np

from dream_jax.data import indexed, sources


def middle_crops(source, crop: int, count: int, resize: int | None = None) -> np.ndarray:
    """The middle crop of the first `count` pictures, in order: uint8 [N, crop, crop, 3]."""
    chosen = range(min(count, len(source)))
    return np.stack([indexed.middle(indexed.fit(source, index, crop, resize), crop) for index in chosen])


def side_of(config) -> int:
    """The side of the middle crops that are evaluated."""
    return config.image_size if config.evaluation.crop is None else config.evaluation.crop


def eval_pictures(config, split: str | None = None) -> np.ndarray:
    """At most `evaluation.pictures` pictures, uint8 [N, side, side, 3], of a split; `evaluation.against` by default."""
    source = sources.open_source(config, split or config.evaluation.against)
    return middle_crops(source, side_of(config), config.evaluation.pictures, resize=config.data.resize)
