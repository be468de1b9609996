"""The state that a train step changes, and the first one."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """The state that a train step changes.

    Attributes:
      step: int32 scalar, the number of steps done, with those that were not applied.
      params: the network's parameters, a tree.
      ema: their running average, a tree like params.
      opt_state: the state of the optax optimizer.
    """

    step: jax.Array
    params: optax.Params
    ema: optax.Params
    opt_state: optax.OptState


def create(network: nn.Module, optimizer: optax.GradientTransformation, key, inputs_shape: tuple) -> TrainState:
    """The state before the first step, for inputs [B, H, W, C] = [cond, x_t]; traceable."""
    return start(network.init(key, jnp.zeros(inputs_shape), jnp.ones(inputs_shape[:1]))["params"], optimizer)


def start(params: optax.Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, from these parameters."""
    # A copy, because a train step cannot donate one buffer as both params and ema.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=ema, opt_state=optimizer.init(params))


def ema_decay(step, decay):
    """`min(decay, (1 + step) / (10 + step))`: a short run's average is not mostly its initial weights."""
    return jnp.minimum(decay, (1 + step) / (10 + step))
