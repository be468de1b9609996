"""Which values dropout keeps, as a function that is computed anew wherever it is needed: a mask is never stored."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax


def kept(words, shape, rate: float):
    """Which values of each example stay, a function of its words and the value's place alone.

    A value stays where a hash of its place and the two words, as a whole number, reaches rate * 2^32. The hash is the
    32-bit finaliser "triple32" (C. Wellons, "Prospecting for Hash Functions", 2018, public domain), with one word mixed
    in before its first product and one before its second, and without its last step, which leaves the high bits as they
    are. It only spreads the words' randomness: they come from a generator and are not counted up. Dearer ones XLA:GPU
    does not compute inside sums.

    Args:
      words: two uint32 [B].
      shape: [B, ...], of fewer than 2^32 values each.
      rate: 0 to 1, the share that is dropped.

    Returns:
      bool of that shape.
    """
    first, second = (word.reshape(-1, *(1,) * (len(shape) - 1)) for word in words)
    place = lax.iota(jnp.uint32, math.prod(shape[1:])).reshape(1, *shape[1:])
    x = place ^ first
    x = (x ^ (x >> 17)) * np.uint32(0xED5AD4BB)
    x = (x ^ (x >> 11) ^ second) * np.uint32(0xAC4C1B51)
    x = (x ^ (x >> 15)) * np.uint32(0x31848BAB)
    return x >= np.uint32(int(rate * 2**32))
