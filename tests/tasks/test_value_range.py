import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.tasks import value_range


def test_ranges_are_inverses():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(jax.jit(lambda x: value_range.to_uint8(value_range.to_float(x)))(levels), levels)
    np.testing.assert_array_equal(value_range.to_float(np.uint8([0, 255])), [-1, 1])
    np.testing.assert_array_equal(value_range.to_uint8(jnp.array([-9.0, 9.0, 0.0])), [0, 255, 128])
