"""What a picture's own key draws from the ranges of a config."""

import jax
import jax.numpy as jnp


def within(key, limits):
    """A float32 of (LOW, HIGH), all alike likely; of (VALUE,) that value."""
    return jax.random.uniform(key, (), jnp.float32, limits[0], limits[-1])


def whole_within(key, limits):
    """A whole number of (LOW, HIGH), both among them; of (VALUE,) that value."""
    return jax.random.randint(key, (), limits[0], limits[-1] + 1, jnp.int32)


def is_fixed(limits) -> bool:
    """Whether nothing is drawn."""
    return limits[0] == limits[-1]


def each(function):
    """`(keys [B], pictures [B, ...]) -> [B, ...]` of `(key, picture)`: each picture is drawn for by its key alone."""
    return lambda keys, pictures: jax.vmap(function)(keys, jnp.asarray(pictures))
