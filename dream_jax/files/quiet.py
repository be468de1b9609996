"""What libraries of pictures print by themselves: nothing, as all that goes wrong is raised and told."""

import contextlib
import ctypes
import logging
import warnings
from pathlib import Path

import PIL


def silence() -> None:
    """Turns off the lines of Pillow, tifffile and the libtiff within Pillow, where that is found."""
    for name in ("PIL", "tifffile"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    package = Path(PIL.__file__).parent
    # Wheels for Linux and for macOS; loading the library again gives the one that Pillow uses.
    for library in (*package.parent.glob("pillow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)
