"""Python's search for garbage."""

import atexit
import gc


def collect_seldom() -> None:
    """Looks for garbage a hundred times less often than Python does by itself, and not at all when the program ends.

    What JAX imports, traces and compiles is many small objects that stay: looking through them took a quarter of a
    start's time. What nothing refers to is freed at once as always; only objects that refer to each other wait.
    """
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)
