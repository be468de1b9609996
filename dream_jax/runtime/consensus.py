"""What all processes of a run agree on. Every process must call these, and waits for the others; one alone does not."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def synchronise(name: str) -> None:
    """Returns when all processes have come here; `name` must be the same in all of them."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def of_first(numbers: list[int]) -> list[int]:
    """The list that process 0 has. Others may see a file system later, or none."""
    if jax.process_count() == 1:
        return numbers
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    own = np.int32(numbers) if jax.process_index() == 0 else np.zeros(count, np.int32)
    return [int(number) for number in multihost_utils.broadcast_one_to_all(own)]


def any_process(said: bool) -> bool:
    """Whether this or any other process says so."""
    return said if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.int32(said))))
