"""What makes the train step fast on CPU, undone, for the parts "without ..." of `benchmarks.beside`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dream_jax.networks import convolution, layers
from dream_jax.runtime import compiler


def _options():
    compiler.options = lambda deterministic=False: {}


def _gradients():
    convolution.conv_general_dilated = lax.conv_general_dilated


def _norm():
    layers.GroupNorm = lambda groups, dtype, param_dtype, name: nn.GroupNorm(
        groups, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype, name=name
    )


def _dropout():
    class Dropout(nn.Module):
        rate: float

        @nn.compact
        def __call__(self, x, keys=None):
            if keys is None or self.rate == 0:
                return x
            kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
            return jnp.where(kept, x / (1 - self.rate), jnp.zeros((), x.dtype))

    layers.Dropout = Dropout


WITHOUT = {"options": _options, "gradients": _gradients, "norm": _norm, "dropout": _dropout}
