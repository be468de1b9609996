"""The networks that predict: `network.apply({"params": params}, inputs, level, dropout_keys=None) -> output`, NHWC.

To add a network, write its module with `divisor` (what sides of pictures must divide by), `told` (the level that it is
told) and a function `build`, and name it in NETWORKS. Norms are `layers.group_norm` and attention is
`layers.Attention`: those know the collection `statistics`, by which pictures in tiles are judged as one.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from dream_jax.networks import generation, pytorch, sr3

# The name under which other programs read published weights.
from dream_jax.networks import pytorch as pytorch_import
from dream_jax.networks.generation import GenerationUNet
from dream_jax.networks.sr3 import SR3UNet


class Network(NamedTuple):
    """How a network is made.

    Attributes:
      build: `(config, task, dtype) -> module`; raises UserError where `config.network` does not fit.
      load: `(PyTorch name -> array, norm_groups) -> (module, params)` of published weights; None where there are none.
      save: `(module, params) -> {PyTorch name: array}`, its inverse.
    """

    build: Callable[..., nn.Module]
    load: Callable | None = None
    save: Callable | None = None


NETWORKS = {
    "sr3": Network(sr3.build, pytorch.load_sr3, pytorch.to_state_dict),
    "generation": Network(generation.build),
}

__all__ = ["NETWORKS", "GenerationUNet", "Network", "SR3UNet", "pytorch_import"]
