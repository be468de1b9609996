"""The UNet of SR3 (arXiv 2104.07636) as the official DREAM code has it."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from dream_jax.networks import convolution, layers, parameters

_KERNEL_INIT = parameters.once_a_shape(nn.initializers.orthogonal())


class SR3UNet(nn.Module):
    """Noise-level-conditioned UNet of pictures of any size that `divisor` divides.

    The published network for 16 -> 128 pixels (6 input channels) is SR3UNet(): 97,807,491 parameters. Kernels start
    orthogonal and biases zero, as in the official training code.

    Attributes:
        inner_channels: channels at full resolution, and of the noise level's embedding.
        channel_multipliers: channels of each level over inner_channels; each level after the first halves the picture.
        attention_levels: levels with self-attention after each of their blocks; 0 is full resolution.
        num_res_blocks: residual blocks of each level on the way down (one more on the way up).
        norm_groups: groups of every GroupNorm; must divide all channels.
        dropout: rate inside the residual blocks, where the call gives keys.
        out_channels: channels of the output.
        patch: n > 1 works on n x n patches as pixels of n * n as many channels: n * n times cheaper.
        dtype: of the computation. Norm statistics, softmax and the output are float32 at least.
        param_dtype: of the parameters.
        remat: recompute blocks in the backward pass, for memory.
        zero_init_output: start from an output of zero.
    """

    inner_channels: int = 64
    channel_multipliers: Sequence[int] = (1, 2, 4, 8, 8)
    attention_levels: Sequence[int] = (3,)
    num_res_blocks: int = 2
    norm_groups: int = 32
    dropout: float = 0.0
    out_channels: int = 3
    patch: int = 1
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False
    zero_init_output: bool = False

    @property
    def divisor(self) -> int:
        """What height and width must divide by."""
        return self.patch * 2 ** (len(self.channel_multipliers) - 1)

    def told(self, schedule, alpha):
        """The level that the network is told at alpha [B]: alpha itself."""
        return alpha

    @nn.compact
    def __call__(self, inputs, level, dropout_keys=None):
        """Predicts from [B, H, W, Cin] inputs (the condition, then x_t) at level [B] = alpha = sqrt(alpha_bar).

        dropout_keys: [B] typed PRNG keys, None for no dropout. Returns [B, H, W, out_channels], float32, or float64
        where dtype is. Raises UserError where H or W does not divide by `divisor`, or an attribute
        does not fit the others.
        """
        layers.check(inputs, self.divisor, self.attention_levels, len(self.channel_multipliers))
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options = {"kernel_init": _KERNEL_INIT, **types}
        res_block = nn.remat(layers.ResBlock) if self.remat else layers.ResBlock
        attention = nn.remat(layers.Attention) if self.remat else layers.Attention

        def block(x, name, features, attend):
            x = res_block(features, self.norm_groups, self.dropout, scale_and_shift=False, name=name, **options)(
                x, embedding, dropout_keys
            )
            if attend:
                x = attention(self.norm_groups, 1, qkv_bias=False, name=f"{name}_attention", **options)(x)
            return x

        embedding = layers.noise_level_encoding(level, self.inner_channels)
        embedding = layers.Dense(4 * self.inner_channels, name="level_0", **options)(embedding)
        embedding = layers.Dense(self.inner_channels, name="level_1", **options)(nn.silu(embedding))

        x = layers.space_to_depth(inputs.astype(self.dtype), self.patch)
        x = convolution.conv(self.inner_channels, name="conv_in", **options)(x)
        skips = [x]
        last = len(self.channel_multipliers) - 1
        for i, multiplier in enumerate(self.channel_multipliers):
            for j in range(self.num_res_blocks):
                x = block(x, f"down_{i}_{j}", multiplier * self.inner_channels, i in self.attention_levels)
                skips.append(x)
            if i < last:
                x = convolution.conv(x.shape[-1], stride=2, name=f"down_{i}_conv", **options)(x)
                skips.append(x)

        x = block(x, "mid_0", x.shape[-1], True)
        x = block(x, "mid_1", x.shape[-1], False)

        for i, multiplier in reversed(list(enumerate(self.channel_multipliers))):
            for j in range(self.num_res_blocks + 1):
                x = layers.side_by_side(x, skips.pop())
                x = block(x, f"up_{i}_{j}", multiplier * self.inner_channels, i in self.attention_levels)
            if i > 0:
                x = convolution.enlarged_conv(x.shape[-1], name=f"up_{i}_conv", **options)(x)

        if self.zero_init_output:
            options["kernel_init"] = nn.initializers.zeros
        x = layers.group_norm(x, self.norm_groups, name="norm_out", silu=True, **types)
        x = convolution.wide_conv(self.out_channels * self.patch**2, name="conv_out", **options)(x)
        return layers.depth_to_space(x, self.patch)


def build(config, task, dtype) -> SR3UNet:
    """The network of a config; raises UserError where its settings do not fit each other."""
    network = SR3UNet(
        inner_channels=config.network.channels,
        patch=config.network.patch,
        # A residual's best first guess is none: training starts at the enlarged picture's quality.
        zero_init_output=config.objective.kind == "x0" and config.task.residual,
        **layers.options_of(config, task, dtype),
    )
    layers.check_settings(config, network.divisor)
    return network
