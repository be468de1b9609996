"""Networks: `network.apply({"params": params}, inputs, level, dropout_keys=None) -> output`, NHWC."""

# The name under which published weights are read by other programs.
from dream_jax.networks import pytorch as pytorch_import
from dream_jax.networks.generation import GenerationUNet
from dream_jax.networks.sr3 import SR3UNet

__all__ = ["GenerationUNet", "SR3UNet", "pytorch_import"]
