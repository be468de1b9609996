"""What makes the train step fast on CPU, undone, for `benchmarks.train_step --without`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dream_jax.networks import convolution, layers, normalization
from dream_jax.runtime import compiler


def _options():
    compiler.options = lambda deterministic=False: {}


def _gradients():
    convolution.conv_general_dilated = lax.conv_general_dilated


def _norm():
    def normalize(pictures, scale, bias, groups, dtype, *, factor=1, shift=0, silu=False, kept=None, rate=0):
        x = jnp.concatenate(pictures, axis=-1)
        factor, shift = (jnp.broadcast_to(a, (len(x), x.shape[-1]))[:, None, None] for a in (factor, shift))
        norm = nn.GroupNorm(groups, epsilon=1e-5, dtype=dtype)
        y = norm.apply({"params": {"scale": scale, "bias": bias}}, factor * x + shift)
        y = nn.silu(y) if silu else y
        return y if kept is None else jnp.where(kept, y / (1 - rate), jnp.zeros((), y.dtype))

    normalization.normalize = normalize


def _dropout():
    class Dropout(layers.Dropout):
        def kept(self, shape, keys=None):
            if keys is None or self.rate == 0:
                return None
            return jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, shape[1:]))(keys)

    layers.Dropout = Dropout


WITHOUT = {"options": _options, "gradients": _gradients, "norm": _norm, "dropout": _dropout}
