"""Networks: `network.apply({"params": params}, inputs, level, dropout_keys=None) -> output`, NHWC."""

from dream_jax.networks.generation import GenerationUNet
from dream_jax.networks.sr3 import SR3UNet

__all__ = ["GenerationUNet", "SR3UNet"]
