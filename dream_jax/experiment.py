"""From a checked config to the things it names: schedule, task, network, data and predictions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dream_jax import networks, noise_schedule, tasks
from dream_jax.config import SCHEDULES
from dream_jax.data import batches, sources
from dream_jax.errors import UserError
from dream_jax.noise_schedule import NoiseSchedule


class Experiment(NamedTuple):
    config: object
    schedule: NoiseSchedule
    task: tasks.Task
    network: object

    def inputs_shape(self) -> tuple:
        """The shape of one network input, [1, H, W, C]."""
        size = self.config.image_size
        return (1, size, size, 3 + self.task.cond_channels)

    def predict(self, params, x_t, cond, alpha, dropout_keys=None):
        """The network's raw output for x_t [B, H, W, 3] at alpha [B], given cond."""
        level = alpha
        if self.config.network.name == "generation":
            # The face study numbers its T levels from 0.
            level = noise_schedule.time_of(self.schedule, alpha) - 1
        return self.network.apply({"params": params}, jnp.concatenate([cond, x_t], -1), level, dropout_keys)


def build(config) -> Experiment:
    """Everything but the data of a validated config."""
    return Experiment(config, SCHEDULES[config.schedule.name](config.schedule), make_task(config), make_network(config))


def make_task(config) -> tasks.Task:
    c = config.task
    if c.name == "super_resolution":
        return tasks.super_resolution(c.scale, c.kernel, c.residual, c.gain)
    return tasks.unconditional()


def estimator(experiment: Experiment) -> Experiment:
    """The experiment as it computes the self-estimate: the same weights, at `objective.estimate_dtype`."""
    name = experiment.config.objective.estimate_dtype
    if name == "same":
        return experiment
    return experiment._replace(network=experiment.network.clone(dtype=_dtype("objective.estimate_dtype", name)))


def compute_dtype(config):
    return _dtype("compute_dtype", config.compute_dtype)


def _dtype(key, name):
    if name == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    if name == "float64" and not jax.config.jax_enable_x64:
        raise UserError(f"{key} = 'float64': set the environment variable JAX_ENABLE_X64=1 for it")
    return jnp.dtype(name)


def make_network(config):
    c = config.network
    dtype = compute_dtype(config)
    common = {
        "channel_multipliers": c.channel_multipliers,
        "attention_levels": tuple(
            level
            for level in range(len(c.channel_multipliers))
            if config.image_size // c.patch >> level in c.attention_resolutions
        ),
        "num_res_blocks": c.num_res_blocks,
        "norm_groups": c.norm_groups,
        "dropout": c.dropout,
        "remat": c.remat,
        "dtype": dtype,
        "param_dtype": jnp.promote_types(dtype, jnp.float32),
    }
    if c.name == "generation":
        return networks.GenerationUNet(channels=c.channels, num_heads=c.num_heads, **common)
    return networks.SR3UNet(
        inner_channels=c.channels,
        patch=c.patch,
        # A residual's best first guess is none: training starts at the enlarged picture's quality.
        zero_init_output=config.objective.kind == "x0" and config.task.residual,
        **common,
    )


def make_source(config, split: str):
    """The pictures of split "train" or "eval"."""
    c = config.data
    if c.folder is not None:
        return sources.folder_source(
            c.folder,
            split=split,
            crop=config.image_size,
            eval_folder=c.eval_folder,
            cache_dir=c.cache_dir,
            resize=c.resize,
            skip_unreadable=c.skip_unreadable,
            eval_percent=c.eval_percent,
        )
    if c.tfds is not None:
        return sources.tfds_source(c.tfds, c.train_split if split == "train" else c.eval_split, c.tfds_dir, c.image_key)
    return sources.bundled(split)


def eval_side(config) -> int:
    """The side of the middle crops that are evaluated."""
    return config.image_size if config.evaluation.crop is None else config.evaluation.crop


def eval_pictures(config, split: str = "eval"):
    """At most `evaluation.pictures` pictures, uint8 [N, side, side, 3]: held-out ones, or of split "train"."""
    source = make_source(config, split)
    return batches.eval_pictures(source, eval_side(config), config.evaluation.pictures, resize=config.data.resize)
