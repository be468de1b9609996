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
    arrays = tensors.read_weights(config.weights)
    try:
        network, params = NETWORKS[config.name].load(arrays, config.norm_groups)
    except UserError as error:
        raise UserError(f"{shown(config.weights)}: {error}") from None
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, shapes):
        # The official code names attention by the picture's side, as the config does.
        sides = [experiment.config.image_size >> level for level in network.attention_levels]
        raise UserError(
            f"{config.weights} holds another network; set network.channels={network.inner_channels}, "
            f"network.channel_multipliers={','.join(map(str, network.channel_multipliers))}, network.num_res_blocks="
            f"{network.num_res_blocks}, network.attention_resolutions={','.join(map(str, sides))}, network.patch=1"
        )
    return jax.tree.map(lambda array, shape: array.astype(shape.dtype), params, shapes)
