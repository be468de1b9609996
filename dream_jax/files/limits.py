"""How large a picture may be that is read whole."""

import os

from dream_jax.errors import UserError, shown

_PIXELS = "DREAM_JAX_MAX_PIXELS"


def most_pixels() -> int:
    """The most pixels of a picture that is read whole: 2**26, or what the environment variable DREAM_JAX_MAX_PIXELS
    says. Raises UserError where that is no whole number of at least 1.
    """
    said = os.environ.get(_PIXELS, "").strip()
    if not said:
        return 2**26
    if not (said.isascii() and said.isdigit() and len(said) < 19 and int(said)):
        raise UserError(f"{_PIXELS}={shown(said)[:100]}: it must be a whole number of pixels, like 200000000")
    return int(said)


def most_bytes() -> int:
    """The most bytes of a picture's file: no sound one of so many pixels has more."""
    return 8 * most_pixels() + 2**24
