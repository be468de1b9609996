"""The UNet of the face-generation study of conservative DREAM (github.com/akacmazz/dream-diffusion)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dream_jax import noise_schedule
from dream_jax.errors import UserError
from dream_jax.networks import convolution, layers, parameters

# PyTorch's default: uniform within 1/sqrt(fan_in). Of a transposed convolution PyTorch takes the fan-out.
_KERNEL_INIT = parameters.once_a_shape(nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"))
_DOUBLING_KERNEL_INIT = parameters.once_a_shape(nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"))


class GenerationUNet(nn.Module):
    """Time-conditioned UNet for pictures that `divisor` divides; 54,846,979 parameters as it stands, for 3 channels.

    Every level halves the picture, the last one too, and what a level hands over to the way up is taken *after* it was
    halved, then enlarged bilinearly: so in the study's code, and so here. Kernels start as PyTorch's, biases and the
    last kernel zero.

    Attributes:
        channels: channels at full resolution; the time's embedding has four times as many.
        channel_multipliers: channels of each level over `channels`.
        num_res_blocks: residual blocks of each level, on either way.
        attention_levels: levels that end with self-attention; 0 is full resolution.
        num_heads: of every attention.
        norm_groups, dropout, out_channels, dtype, param_dtype, remat: as in SR3UNet.
    """

    channels: int = 128
    channel_multipliers: Sequence[int] = (1, 2, 4)
    num_res_blocks: int = 2
    attention_levels: Sequence[int] = (2,)
    num_heads: int = 8
    norm_groups: int = 8
    dropout: float = 0.1
    out_channels: int = 3
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False

    @property
    def divisor(self) -> int:
        """What height and width must divide by."""
        return 2 ** len(self.channel_multipliers)

    def told(self, schedule, alpha):
        """The level that the network is told at alpha [B]: the time, which the face study numbers from 0."""
        return noise_schedule.time_of(schedule, alpha) - 1

    @nn.compact
    def __call__(self, inputs, level, dropout_keys=None):
        """Predicts from [B, H, W, Cin] inputs at level [B], the time 0 .. T - 1 (whole or not).

        dropout_keys: [B] typed PRNG keys, None for no dropout. Returns [B, H, W, out_channels], float32, or float64
        where dtype is. Raises UserError where H or W does not divide by `divisor`, or an attribute
        does not fit the others.
        """
        layers.check(inputs, self.divisor, self.attention_levels, len(self.channel_multipliers))
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options = {"kernel_init": _KERNEL_INIT, **types}
        res_block = nn.remat(layers.ResBlock) if self.remat else layers.ResBlock
        attention = nn.remat(layers.Attention) if self.remat else layers.Attention

        def block(x, name, features):
            make = res_block(features, self.norm_groups, self.dropout, scale_and_shift=True, name=name, **options)
            return make(x, embedding, dropout_keys)

        def attend(x, name):
            return attention(self.norm_groups, self.num_heads, qkv_bias=True, name=name, **options)(x)

        embedding = layers.time_encoding(level, self.channels)
        embedding = layers.Dense(4 * self.channels, name="level_0", **options)(embedding)
        embedding = layers.Dense(4 * self.channels, name="level_1", **options)(nn.silu(embedding))

        x = convolution.conv(self.channels, name="conv_in", **options)(inputs.astype(self.dtype))
        skips = []
        for i, multiplier in enumerate(self.channel_multipliers):
            for j in range(self.num_res_blocks):
                x = block(x, f"down_{i}_{j}", multiplier * self.channels)
            if i in self.attention_levels:
                x = attend(x, f"down_{i}_attention")
            x = convolution.conv(x.shape[-1], stride=2, name=f"down_{i}_conv", **options)(x)
            skips.append(x)

        x = block(x, "mid_0", x.shape[-1])
        x = attend(x, "mid_attention")
        x = block(x, "mid_1", x.shape[-1])

        for i, multiplier in reversed(list(enumerate(self.channel_multipliers))):
            doubling = {**options, "kernel_init": _DOUBLING_KERNEL_INIT}
            x = convolution.double_size_conv(multiplier * self.channels, name=f"up_{i}_conv", **doubling)(x)
            skip = skips.pop()
            skip = jax.image.resize(skip, (*x.shape[:3], skip.shape[-1]), "bilinear")
            x = layers.side_by_side(x, skip)
            for j in range(self.num_res_blocks):
                x = block(x, f"up_{i}_{j}", multiplier * self.channels)
            if i in self.attention_levels:
                x = attend(x, f"up_{i}_attention")

        x = layers.group_norm(x, self.norm_groups, name="norm_out", silu=True, **types)
        options["kernel_init"] = nn.initializers.zeros
        return convolution.wide_conv(self.out_channels, name="conv_out", **options)(x)


def build(config, task, dtype) -> GenerationUNet:
    """The network of a config; raises UserError where its settings do not fit each other."""
    c = config.network
    network = GenerationUNet(channels=c.channels, num_heads=c.num_heads, **layers.options_of(config, task, dtype))
    layers.check_settings(config, network.divisor)
    if c.patch != 1:
        raise UserError(f"network.patch = {c.patch}: the generation network takes 1 only")
    for multiplier in c.channel_multipliers:
        if c.channels * multiplier % c.num_heads:
            raise UserError(f"network.num_heads = {c.num_heads}: it must divide {c.channels * multiplier}")
    return network
