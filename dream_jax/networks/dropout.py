"""Which values dropout keeps, as a function that is computed anew wherever it is needed: a mask is never stored."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax


def kept(words, shape, rate: float):
    """Which values of each example stay, a function of its words and the value's place alone.

    A value stays where a hash of its place and the two words, as a whole number, reaches rate * 2^32. The hash is the
    32-bit finaliser "lowbias32" (C. Wellons, "Prospecting for Hash Functions", 2018, public domain), once with each
    word. It only spreads the words' randomness: they come from a generator and are not counted up.

    Args:
      words: two uint32 [B].
      shape: [B, ...], of fewer than 2^32 values each.
      rate: 0 to 1, the share that is dropped.

    Returns:
      bool of that shape.
    """
    first, second = (word.reshape(-1, *(1,) * (len(shape) - 1)) for word in words)
    place = lax.iota(jnp.uint32, math.prod(shape[1:])).reshape(1, *shape[1:])
    return _mixed(_mixed(place ^ first) ^ second) >= np.uint32(int(rate * 2**32))


def _mixed(x):
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
