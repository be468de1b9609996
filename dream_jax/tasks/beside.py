"""The kinds of what may lie beside pictures in the data, by the names of `Task.beside`."""

from typing import NamedTuple

from dream_jax.errors import UserError


class Kind(NamedTuple):
    """A kind of what lies beside pictures, a name of `Task.beside`.

    Attributes:
      noun, nouns: what one and several are called.
      folder, eval_folder, feature: the keys of a config's `data` that say where they are, empty where there is none.
      others: further keys of `data` that are of this kind alone.
      where: what a person can give, for a message.
    """

    noun: str
    nouns: str
    folder: str = ""
    eval_folder: str = ""
    feature: str = ""
    others: tuple[str, ...] = ()
    where: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key in (self.folder, self.eval_folder, self.feature, *self.others) if key)


BESIDE = {
    "low": Kind(
        *("low-resolution picture", "low-resolution pictures", "lr_folder", "eval_lr_folder", "lr_key"),
        where="data.lr_folder, data.lr_key, or --low",
    ),
    "condition": Kind(
        *("condition", "conditions", "condition_folder", "eval_condition_folder", "condition_key"),
        others=("condition_channels", "condition_bits", "condition_range"),
        where="data.condition_folder, data.condition_key, or --low",
    ),
    "mask": Kind(
        *("mask", "masks", "mask_folder", "eval_mask_folder"),
        where="data.mask_folder, data.eval_mask_folder, or --low",
    ),
    "label": Kind(
        *("class", "classes"),
        feature="label_key",
        others=("classes",),
        where="folders of data.folder, whose names are the classes, or data.label_key",
    ),
}


# What makes them anew, of a dataset that has them.
_REMEDY = "(or data.lr_key=none)"


def check_scale(config) -> None:
    """Raises UserError where low-resolution pictures that are there cannot be of the scale that a config trains."""
    scale, scales = config.task.scale, tuple(config.task.scales)
    for key, made in (("blur", config.task.blur > 0), ("degradation", config.task.degradation == "mixed")):
        if made:
            raise UserError(
                f"task.{key} = {config.task[key]}: low-resolution pictures that are there are as they are {_REMEDY}"
            )
    if scales:
        raise UserError(
            f"task.scales = {scales}: low-resolution pictures that are there are of one scale, task.scale {_REMEDY}"
        )
    if int(scale) != scale:
        raise UserError(f"task.scale = {scale}: low-resolution pictures that are there are of a whole scale {_REMEDY}")
