"""The environment variables by which a launcher tells a process that it is one of several."""

import os

# Where the processes meet, HOST:PORT; "auto" on a TPU, whose hosts know each other.
COORDINATOR = "DREAM_JAX_COORDINATOR"
PROCESS, PROCESSES = "DREAM_JAX_PROCESS", "DREAM_JAX_PROCESSES"


def is_one_of_several() -> bool:
    """Whether a launcher started this process as one of several."""
    return COORDINATOR in os.environ


def is_first() -> bool:
    """Whether this process speaks for all."""
    return os.environ.get(PROCESS, "0") == "0"
