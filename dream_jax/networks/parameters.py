"""How layers come to their parameters."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jax.nn.initializers import Initializer


class Layer(nn.Module):
    """A layer that takes the parameters that it is given as they are.

    Flax traces their initializers again, to compare shapes, which is half of the tracing of a network. Here the shapes
    of a file's arrays are compared where it is read.
    """

    def param(self, name, init_fn, *init_args, **options):
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        return super().param(name, init_fn, *init_args, **options)


class Conv(Layer, nn.Conv):
    """`nn.Conv`."""


def once_a_shape(initializer: Initializer) -> Initializer:
    """The initializer, traced and compiled once for kernels of one shape."""
    return jax.jit(initializer, static_argnums=(1, 2))


# A program that loads one model after another traces a network once.
@functools.lru_cache(64)
def shapes_of(network: nn.Module, inputs_shape: tuple) -> dict:
    """The parameters of a network for inputs [B, H, W, C], as ShapeDtypeStructs."""
    inputs, level = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (inputs_shape, inputs_shape[:1]))
    return jax.eval_shape(network.init, jax.random.key(0), inputs, level)["params"]


def drawing(network: nn.Module, key, inputs_shape: tuple):
    """(draw, shapes): `draw(key) -> parameters`, those of `network.init` to the bit, and their ShapeDtypeStructs.

    Outside jit, kernels are drawn one after the other, by a program for each shape and initializer. In one program
    every kernel would be compiled; and it would be that of one config, where these are of all with such kernels.
    """

    def init(key):
        return network.init(key, jnp.zeros(inputs_shape), jnp.ones(inputs_shape[:1]))["params"]

    traced, shapes = jax.make_jaxpr(init, return_shape=True)(key)
    # Without what the network computes of them.
    needed, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.out_avals), instantiate=True)

    def draw(key):
        return jax.tree.unflatten(jax.tree.structure(shapes), jax.core.eval_jaxpr(needed, traced.consts, key))

    return draw, shapes
