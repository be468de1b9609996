import os

import jax
import jax.numpy as jnp

from dream_jax.inference import memory


def test_live_bytes():
    def count(function, *shapes):
        return memory.live_bytes(
            jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr
        )

    one = 4 * 1000
    assert count(lambda x: x + 1, (1000,)) == one
    assert count(lambda x: jnp.sin(jnp.sin(jnp.sin(x))), (1000,)) == 2 * one
    assert count(lambda x: sum(jnp.sin(x) * k for k in range(9)), (1000,)) <= 3 * one
    inner = count(lambda x: jax.jit(lambda y: jnp.sin(jnp.sin(y)) + y)(x), (1000,))
    assert 2 * one <= inner <= 4 * one
    # Of a loop's rounds one is alive.
    looped = count(lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=50)[0], (1000,))
    assert looped <= 3 * one


def test_live_bytes_are_somewhat_more_than_the_compiler_takes():
    def network(x):
        for width in 16, 32, 16:
            kernel = jnp.ones((3, 3, x.shape[-1], width))
            x = jax.nn.silu(
                jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            )
        return x

    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    estimate = memory.live_bytes(jax.make_jaxpr(network)(x).jaxpr)
    compiled = jax.jit(network).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert 0.2 < compiled / estimate < 1.05


def test_compiled_bytes():
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    assert memory.compiled_bytes(jax.jit(lambda x: x + 1).lower(x).compile()) == 8000


def test_compiled_bytes_where_the_backend_does_not_tell():
    class Silent:
        def memory_analysis(self):
            return None

    assert memory.compiled_bytes(Silent()) is None


def test_free_bytes():
    assert 2**20 < memory.free_bytes(jax.devices()[0]) < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
