"""What lies beside pictures: where it is found, and how it is read."""

from typing import NamedTuple

from dream_jax.files.picture import MASK, USUAL, Reading
from dream_jax.tasks.beside import BESIDE


class Beside(NamedTuple):
    """What lies beside the pictures of a config, or of a call.

    Attributes:
      kind: of `tasks.beside.BESIDE`.
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
        return BESIDE[self.kind].noun

    def read_as(self, pictures: Reading) -> Reading:
        """How it is read, beside pictures that are read so."""
        return self.reading or pictures


def of_config(config, kind: str) -> Beside | None:
    """What lies beside the pictures of a config whose task takes this kind; None where it takes nothing.

    It says where things would be, whether they are there or not.
    """
    if not kind:
        return None
    c, keys = config.data, BESIDE[kind]
    folder, eval_folder, key = (c[name] if name else None for name in (keys.folder, keys.eval_folder, keys.feature))
    found = Beside(kind, folder, eval_folder, key)
    if kind == "low":
        return found._replace(scale=int(config.task.scale))
    if kind == "condition":
        span = tuple(c.condition_range) or None
        return found._replace(
            reading=Reading(c.condition_channels, c.condition_bits, span, c.clip, told=True, prefix="condition_")
        )
    return found._replace(reading=MASK) if kind == "mask" else found._replace(reading=LABEL, classes=tuple(c.classes))


# Numbers of classes, as prepared datasets hold them.
LABEL = USUAL._replace(channels=1, bits=16, classes=True)
