"""The official PyTorch weights as the parameters that a run begins with."""

import jax
import numpy as np

from dream_jax.errors import UserError, shown
from dream_jax.experiment import Experiment
from dream_jax.files import tensors
from dream_jax.networks import NETWORKS


def read(experiment: Experiment, shapes):
    """The weights of `network.weights` as parameters with the given shapes and dtypes, those of the experiment.

    Raises UserError for a file that cannot be read, and for a network with other shapes, with the keys to set.
    """
    config = experiment.config.network
    network, params = _load(config.weights, config)
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, shapes):
        # The official code names attention by the picture's side, as the config does.
        sides = [experiment.config.image_size >> level for level in network.attention_levels]
        raise UserError(
            f"{config.weights} holds another network; set network.channels={network.inner_channels}, "
            f"network.channel_multipliers={','.join(map(str, network.channel_multipliers))}, network.num_res_blocks="
            f"{network.num_res_blocks}, network.attention_resolutions={','.join(map(str, sides))}, network.patch=1"
        )
    return jax.tree.map(lambda array, shape: array.astype(shape.dtype), params, shapes)


def arrays_of(experiment: Experiment, path):
    """The parameters that a file holds, whatever network they make up.

    Raises UserError for a file that cannot be read, and where the experiment's network has no reader.
    """
    config = experiment.config.network
    if NETWORKS[config.name].load is None:
        readers = [name for name, other in NETWORKS.items() if other.load]
        raise UserError(f"{shown(path)}: files are read for the network {', '.join(readers)}, not for {config.name}")
    return _load(path, config)[1]


def _load(path, config):
    arrays = tensors.read_weights(path)
    try:
        return NETWORKS[config.name].load(arrays, config.norm_groups)
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from None
