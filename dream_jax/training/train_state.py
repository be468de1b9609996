"""The state that a train step changes, and the first one."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from dream_jax.networks import parameters
from dream_jax.training import flat
from dream_jax.training.flat import Flat


@flax.struct.dataclass
class TrainState:
    """The state that a train step changes.

    Attributes:
      step: int32 scalar, the number of steps done, with those that were not applied.
      params: the network's parameters.
      ema: their running average.
      opt_state: the state of the optax optimizer, whose moments are flat as the parameters are.
    """

    step: jax.Array
    params: Flat
    ema: Flat
    opt_state: optax.OptState


def create(
    network: nn.Module, optimizer: optax.GradientTransformation, key, inputs_shape: tuple, shards: int = 1
) -> TrainState:
    """The state before the first step, for inputs [B, H, W, C] = [cond, x_t]; traceable. See `start`."""
    draw, _ = parameters.drawing(network, key, inputs_shape)
    return start(draw(key), optimizer, shards)


def start(params: optax.Params, optimizer: optax.GradientTransformation, shards: int = 1) -> TrainState:
    """The state before the first step, from a tree of parameters, in buffers that divide into so many shards."""
    params = flat.flatten(params, shards)
    # A copy, because a train step cannot donate one buffer as both params and ema.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=ema, opt_state=optimizer.init(params))


def ema_decay(step, decay):
    """`min(decay, (1 + step) / (10 + step))`: a short run's average is not mostly its initial weights."""
    return jnp.minimum(decay, (1 + step) / (10 + step))
