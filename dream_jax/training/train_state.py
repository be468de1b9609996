"""What training carries from step to step, and how it starts."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
    """What a step changes.

    step: int32 scalar, the number of steps done, those included that were not applied. params, ema: trees of the same
    shape. opt_state: optax's.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def create(network, optimizer, key, inputs_shape) -> TrainState:
    """The state before the first step, for inputs [B, H, W, C] = [cond, x_t]; traceable."""
    return start(network.init(key, jnp.zeros(inputs_shape), jnp.ones(inputs_shape[:1]))["params"], optimizer)


def start(params, optimizer) -> TrainState:
    """The state before the first step, from these parameters."""
    # A copy: donating one buffer as both params and ema would be an error.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=ema, opt_state=optimizer.init(params))


def ema_decay(step, decay):
    """`min(decay, (1 + step) / (10 + step))`: a short run's average is not mostly its initial weights."""
    return jnp.minimum(decay, (1 + step) / (10 + step))
