"""From a checked config to what it names: noise schedule, task, network and objective."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from dream_jax import objectives, tasks
from dream_jax.errors import UserError
from dream_jax.networks import NETWORKS
from dream_jax.noise_schedule import SCHEDULES, NoiseSchedule
from dream_jax.tasks import Task


class Experiment(NamedTuple):
    """What a config describes, without data and weights."""

    config: FrozenConfigDict
    schedule: NoiseSchedule
    task: Task
    network: nn.Module

    @property
    def objective(self) -> objectives.Objective:
        return objectives.chosen(self.config.objective)

    @property
    def cond_channels(self) -> int:
        """Of what the network is given beside x_t: the task's, and those of its own estimate where it is shown one."""
        return self.task.cond_channels + (self.task.x0_channels if self.objective.self_conditions else 0)

    def inputs_shape(self) -> tuple:
        """The shape of one network input, [1, H, W, C]."""
        size = self.config.image_size
        return (1, size, size, self.task.x0_channels + self.cond_channels)

    def shown(self, cond, previous=None, like=None):
        """cond as `predict` takes it: of a network that is shown its own estimate, with that; zeros for None.

        Args:
          previous: x0_hat [B, H, W, C]; like: x_t, where it may be None.
        """
        if not self.objective.self_conditions:
            return cond
        return jnp.concatenate([cond, jnp.zeros_like(like) if previous is None else previous], -1)

    def predict(self, params, x_t, cond, alpha, dropout_keys=None, statistics=None):
        """The network's raw output for x_t [B, H, W, C] at alpha [B], given cond [B, H, W, cond_channels].

        statistics: what it judges by, see `measure`; those of each x_t and cond by default.
        """
        given = {} if statistics is None else {"statistics": statistics}
        return self._apply({"params": params, **given}, x_t, cond, alpha, dropout_keys)

    def measure(self, params, x_t, cond, alpha):
        """What the network judges each example by: its norms' statistics, attention's keys and values, [B, ...] each.

        Arguments are those of `predict`, to which the result may be given for other pictures of any size.
        """
        return self._apply({"params": params}, x_t, cond, alpha, mutable="statistics")[1].get("statistics", {})

    def _apply(self, variables, x_t, cond, alpha, dropout_keys=None, **options):
        level = self.network.told(self.schedule, alpha)
        return self.network.apply(variables, jnp.concatenate([cond, x_t], -1), level, dropout_keys, **options)


def build(config) -> Experiment:
    """Everything but the data of a validated config."""
    task = tasks.make(config)
    network = NETWORKS[config.network.name].build(config, task, compute_dtype(config))
    return Experiment(config, SCHEDULES[config.schedule.name](config.schedule), task, network)


def compute_dtype(config):
    """The dtype that networks compute in."""
    name = config.compute_dtype
    if name == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    if name == "float64" and not jax.config.jax_enable_x64:
        raise UserError("compute_dtype = 'float64': set the environment variable JAX_ENABLE_X64=1 for it")
    return jnp.dtype(name)
