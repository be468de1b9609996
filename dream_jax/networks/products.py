"""Products of narrow numbers with a wide result."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide(product, a, b):
    """`product(a, b)` in float32 or better, whose gradients are products of the operands' own type. Reverse mode only.

    By itself the gradient of a wide result is wide, and so are the products with it: of float32 where the others are of
    bfloat16, and of operands that are written out in it first.

    Args:
      product: `(a, b, preferred_element_type=None) -> array`, bilinear.
    """
    return product(a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _forward(product, a, b):
    return wide(product, a, b), (a, b)


def _backward(product, saved, g):
    _, transpose = jax.vjp(product, *saved)
    return transpose(g.astype(saved[0].dtype))


wide.defvjp(_forward, _backward)
