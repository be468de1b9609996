"""The form pytorch_sr3: a file that the official PyTorch code of SR3 and DREAM loads."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from dream_jax.config import keys
from dream_jax.errors import UserError, shown
from dream_jax.files import atomic, torch_archive
from dream_jax.inference.drawing import Model
from dream_jax.networks import NETWORKS, pytorch
from dream_jax.runtime import sharding

_AS_BYTES = {".safetensors": safetensors.numpy.save, ".pth": torch_archive.to_bytes}

# What the official sampler takes for granted.
_THEIRS = {
    "task.name": ("super_resolution", "unconditional"),
    "objective.kind": ("eps",),
    "task.residual": (False,),
    "schedule.name": ("linear",),
}


def files(output: Path) -> list[Path]:
    """The one file."""
    return [output]


def check(experiment, output: Path, options) -> None:
    """Raises UserError for what the official code does not have, and for a file of another kind."""
    config = experiment.config
    if NETWORKS[config.network.name].save is None:
        raise UserError(f"the official code has no network {config.network.name}; --format dream holds it")
    if config.network.patch != 1:
        raise UserError(f"network.patch = {config.network.patch}: the official network works on single pixels, 1, only")
    if experiment.objective.self_conditions:
        name = config.objective.name
        raise UserError(f"objective.name = {name}: the official code shows a network no estimate of its own")
    if output.suffix not in _AS_BYTES:
        raise UserError(f"{shown(output)}: --output is a file in this form; end it in {' or '.join(_AS_BYTES)}")


def write(model: Model, output: Path, options, console) -> None:
    """Writes the file, and says which settings of the official code are the network's."""
    experiment, config = model.experiment, model.experiment.config
    state = NETWORKS[config.network.name].save(experiment.network, sharding.on_host(model.params))
    arrays = {f"{pytorch.PREFIX}{name}": array for name, array in state.items()}
    schedule, flat = config.schedule, keys.flatten(config)
    if schedule.name == "linear":
        betas = np.linspace(schedule.beta_start, schedule.beta_end, schedule.num_steps)
        arrays |= pytorch.diffusion_buffers(betas)
    atomic.write_bytes(output, _AS_BYTES[output.suffix](arrays))
    console.print(f'settings of the official code: "unet": {json.dumps(_settings(experiment))}', markup=False)
    for key, theirs in _THEIRS.items():
        if flat[key] not in theirs:
            console.print(
                f"warning: {key} = {flat[key]}: the official code loads the weights, but it samples for "
                f"{' and '.join(map(str, theirs))} and draws nothing sensible with them",
                markup=False,
            )


def _settings(experiment) -> dict:
    network = experiment.network
    return {
        "in_channel": experiment.inputs_shape()[-1],
        "out_channel": network.out_channels,
        "inner_channel": network.inner_channels,
        "norm_groups": network.norm_groups,
        "channel_multiplier": list(network.channel_multipliers),
        # Named by the picture's side.
        "attn_res": [experiment.config.image_size >> level for level in network.attention_levels],
        "res_blocks": network.num_res_blocks,
    }
