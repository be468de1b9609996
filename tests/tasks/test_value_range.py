import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.tasks import value_range


def test_ranges_are_inverses():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(jax.jit(lambda x: value_range.to_uint8(value_range.to_float(x)))(levels), levels)
    np.testing.assert_array_equal(value_range.to_float(np.uint8([0, 255])), [-1, 1])
    np.testing.assert_array_equal(value_range.to_uint8(jnp.array([-9.0, 9.0, 0.0])), [0, 255, 128])


def test_ranges_of_sixteen_bits_are_inverses():
    levels = np.arange(65536, dtype=np.uint16)
    floats = value_range.to_float(levels)
    np.testing.assert_array_equal(jax.jit(value_range.to_levels, static_argnums=1)(floats, jnp.uint16), levels)
    np.testing.assert_array_equal(floats[jnp.array([0, 65535])], [-1, 1])
    # A file of 8 bits, and the same of 16.
    np.testing.assert_allclose(
        value_range.to_float(levels[::257]), value_range.to_float(np.arange(256, dtype=np.uint8)), atol=2e-7
    )
