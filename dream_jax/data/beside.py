"""What may lie beside pictures: its kinds, and where one of them is found."""

from typing import NamedTuple

from dream_jax.errors import UserError
from dream_jax.files.picture import MASK, USUAL, Reading


class Kind(NamedTuple):
    """A kind of what lies beside pictures, one of `Task.beside`.

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


KINDS = {
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


class Beside(NamedTuple):
    """What lies beside the pictures of a config, or of a call.

    Attributes:
      kind: of KINDS.
      folder, eval_folder: the places of low-resolution pictures, conditions or masks, as many as there are of the
        pictures themselves, see `listing.pictures`.
      key: a dataset's feature; None is the usual one of the kind, "none" is none.
      scale: how many times larger pictures are.
      reading: how it is read, None as the pictures are.
      classes: the names of labels' numbers 0, 1, ...
    """

    kind: str = "low"
    folder: str | None = None
    eval_folder: str | None = None
    key: str | None = None
    scale: int = 1
    reading: Reading | None = None
    classes: tuple[str, ...] = ()

    @property
    def noun(self) -> str:
        return KINDS[self.kind].noun

    def read_as(self, pictures: Reading) -> Reading:
        """How it is read, beside pictures that are read so."""
        return self.reading or pictures


def of_config(config, kind: str) -> Beside | None:
    """What lies beside the pictures of a config whose task takes this kind; None where it takes nothing.

    It says where things would be, whether they are there or not.
    """
    if not kind:
        return None
    c, keys = config.data, KINDS[kind]
    folder, eval_folder, key = (c[name] if name else None for name in (keys.folder, keys.eval_folder, keys.feature))
    found = Beside(kind, folder, eval_folder, key)
    if kind == "low":
        return found._replace(scale=int(config.task.scale))
    if kind == "condition":
        span = tuple(c.condition_range) or None
        return found._replace(reading=Reading(c.condition_channels, c.condition_bits, span, c.clip))
    return found._replace(reading=MASK) if kind == "mask" else found._replace(reading=LABEL, classes=tuple(c.classes))


def check_scale(config) -> None:
    """Raises UserError where low-resolution pictures that are there cannot be of the scale that a config trains."""
    scale, scales = config.task.scale, tuple(config.task.get("scales") or ())
    if scales:
        raise UserError(f"task.scales = {scales}: low-resolution pictures that are there are of one scale, task.scale")
    if int(scale) != scale:
        raise UserError(
            f"task.scale = {scale}: low-resolution pictures that are there are of a whole scale (data.lr_key=none makes "
            "them anew)"
        )


# Numbers of classes, as prepared datasets hold them.
LABEL = USUAL._replace(channels=1, bits=16, classes=True)
