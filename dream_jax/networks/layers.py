"""Layers that the networks share. Pictures are NHWC; a noise level is one number per example."""

import functools
import itertools
import math
import operator
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from dream_jax.errors import UserError
from dream_jax.networks import convolution, dropout, normalization, products
from dream_jax.networks.parameters import Layer


def group_norm(x, groups: int, *, name: str, dtype, param_dtype, **beside):
    """GroupNorm over H, W and each group of channels, as PyTorch's; statistics in float32 or better.

    Args:
        x: a picture [B, H, W, C], or a tuple of those that lie side by side.
        beside: what else `normalization.normalize` does in the same passes.

    Raises:
        UserError: where groups does not divide the channels.
    """
    pictures = x if isinstance(x, tuple) else (x,)
    channels = sum(each.shape[-1] for each in pictures)
    if groups < 1 or channels % groups:
        raise UserError(f"norm_groups = {groups} does not divide the {channels} channels of a layer of the network")
    return GroupNorm(groups, dtype=dtype, param_dtype=param_dtype, name=name)(*pictures, **beside)


class GroupNorm(Layer):
    """`nn.GroupNorm`, computed by `normalization.normalize`.

    Where the collection "statistics" is mutable, those of each example are written into it; where it is given, they are
    what examples are judged by.
    """

    groups: int
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, *pictures, **beside):
        """pictures: each [B, H, W, Ci]. Returns [B, H, W, C] in dtype."""
        channels = (sum(x.shape[-1] for x in pictures),)
        scale = self.param("scale", nn.initializers.ones, channels, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, self.param_dtype)
        if self.is_mutable_collection("statistics") and not self.is_initializing():
            affine = {name: beside[name] for name in ("factor", "shift") if name in beside}
            self.put_variable("statistics", "norm", normalization.measure(pictures, self.groups, **affine))
        beside["statistics"] = self.get_variable("statistics", "norm")
        return normalization.normalize(pictures, scale, bias, self.groups, jnp.dtype(self.dtype), **beside)


class Dropout(nn.Module):
    """Dropout whose masks depend on each example's key and the layer's place in the network, on nothing else.

    Not on the batch, its order, its size or its sharding, and not on the compute dtype.
    """

    rate: float

    def words(self, keys=None):
        """What `dropout.kept` takes, two uint32 [B]; None for no dropout. keys: [B] typed threefry keys, or None."""
        if keys is None or self.rate == 0:
            return None
        layer = np.uint32(zlib.crc32("/".join(self.path).encode()))
        words = jax.random.key_data(jax.vmap(lambda key: jax.random.fold_in(key, layer))(keys))
        return words[:, 0], words[:, 1]

    def __call__(self, x, keys=None):
        """x: [B, ...]; keys: [B] typed PRNG keys, or None for the identity."""
        words = self.words(keys)
        if words is None:
            return x
        return jnp.where(dropout.kept(words, x.shape, self.rate), x / (1 - self.rate), jnp.zeros((), x.dtype))


class ResBlock(nn.Module):
    """norm, SiLU, conv, the noise level, norm, SiLU, dropout, conv; and the input added.

    The noise level's embedding is added as it is (scale_and_shift=False, SR3) or, after SiLU, gives a scale and a
    shift (the face study). kernel_init is that of all kernels.
    """

    features: int
    norm_groups: int
    dropout: float
    scale_and_shift: bool
    dtype: DTypeLike
    param_dtype: DTypeLike
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x, embedding, dropout_keys=None):
        """x: [B, H, W, C], or pictures side by side; embedding: [B, E]; dropout_keys: [B] or None.

        Returns [B, H, W, features].
        """
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options = {"kernel_init": self.kernel_init, **types}
        h = group_norm(x, self.norm_groups, name="norm_0", silu=True, **types)
        h, shift = convolution.conv(self.features, apart=True, name="conv_0", **options)(h)
        factor = 1
        if self.scale_and_shift:
            level = Dense(2 * self.features, name="level", **options)(nn.silu(embedding))
            scale, level = jnp.split(level, 2, axis=-1)
            factor = 1 + scale
            shift = shift[None] * factor + level
        else:
            shift = shift[None] + Dense(self.features, name="level", **options)(embedding)
        words = Dropout(self.dropout, name="dropout").words(dropout_keys)
        beside = {"factor": factor, "shift": shift, "silu": True, "words": words, "rate": self.dropout}
        h = group_norm(h, self.norm_groups, name="norm_1", **beside, **types)
        h = convolution.conv(self.features, name="conv_1", **options)(h)
        pictures = x if isinstance(x, tuple) else (x,)
        if sum(each.shape[-1] for each in pictures) != self.features:
            return Dense(self.features, name="shortcut", **options)(*pictures) + h
        return jnp.concatenate(pictures, axis=-1) + h


def side_by_side(*pictures):
    """What a block takes of pictures whose channels lie side by side: one array on CPU, where that is faster."""
    return jnp.concatenate(pictures, axis=-1) if jax.default_backend() == "cpu" else pictures


class Dense(Layer):
    """`nn.Dense` of pictures side by side: a product for each, so that they need not be written side by side."""

    features: int
    dtype: DTypeLike
    param_dtype: DTypeLike
    kernel_init: Initializer
    use_bias: bool = True

    @nn.compact
    def __call__(self, *pictures):
        """pictures: each [..., Ci]. Returns [..., features]."""
        ends = list(itertools.accumulate(x.shape[-1] for x in pictures))
        kernel = self.param("kernel", self.kernel_init, (ends[-1], self.features), self.param_dtype)
        kernels = jnp.split(kernel.astype(self.dtype), ends[:-1])
        y = functools.reduce(operator.add, (x.astype(self.dtype) @ w for x, w in zip(pictures, kernels, strict=True)))
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return y + bias.astype(self.dtype).reshape(*(1,) * (y.ndim - 1), -1)


class Attention(nn.Module):
    """Self-attention over all pixels, and the input added. The softmax is in float32 or better.

    Where the collection "statistics" is mutable, keys and values are written into it; where it is given, its own are
    attended to instead.
    """

    norm_groups: int
    num_heads: int
    qkv_bias: bool
    dtype: DTypeLike
    param_dtype: DTypeLike
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x):
        """x: [B, H, W, C]; C is divided among the heads."""
        batch, height, width, channels = x.shape
        if channels % self.num_heads:
            raise UserError(f"num_heads = {self.num_heads} does not divide the {channels} channels of an attention")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options = {"kernel_init": self.kernel_init, **types}
        h = group_norm(x, self.norm_groups, name="norm", **types)
        h = Dense(3 * channels, use_bias=self.qkv_bias, name="qkv", **options)(h)
        q, k, v = jnp.moveaxis(h.reshape(batch, height * width, 3, self.num_heads, -1), 2, 0)
        if self.is_mutable_collection("statistics") and not self.is_initializing():
            self.put_variable("statistics", "attended", (k, v))
        attended = self.get_variable("statistics", "attended", (k, v))
        k, v = (jnp.broadcast_to(a, (batch, *a.shape[1:])) for a in attended)
        if _has_cudnn_attention(q):
            h = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        else:
            logits = products.wide(functools.partial(jnp.einsum, "bqhc,bkhc->bhqk"), q, k)
            weights = nn.softmax(logits / math.sqrt(q.shape[-1])).astype(v.dtype)
            h = jnp.einsum("bhqk,bkhc->bqhc", weights, v)
        h = h.reshape(x.shape)
        return x + Dense(channels, name="out", **options)(h)


def _has_cudnn_attention(q) -> bool:
    """Whether cuDNN's fused attention takes queries [B, pixels, heads, channels]: JAX never chooses it by itself."""
    if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] > 128 or q.shape[-1] % 8:
        return False
    device = jax.devices()[0]
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= 8.0


def noise_level_encoding(level, features: int):
    """[B] -> [B, features]: sin and cos of level * 10000^(-i / (features/2)), i = 0 .. features/2 - 1.

    SR3's form (arXiv 2104.07636) of WaveGrad's encoding (arXiv 2009.00713), of the level alpha = sqrt(alpha_bar).
    """
    return _sinusoids(level, np.arange(features // 2) / (features // 2))


def time_encoding(time, features: int):
    """[B] -> [B, features]: sin and cos of time * 10000^(-i / (features/2 - 1)), i = 0 .. features/2 - 1.

    The transformer's positional encoding, of the time 0 .. T - 1 (DDPM, arXiv 2006.11239, as in its code).
    """
    return _sinusoids(time, np.arange(features // 2) / (features // 2 - 1))


def _sinusoids(x, exponents):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    angles = x[:, None] * jnp.asarray(1e4**-exponents, x.dtype)[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def space_to_depth(x, n: int):
    """[B, H, W, C] -> [B, H/n, W/n, n*n*C]: the pixels of each n x n patch as channels, row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // n, n, width // n, n, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // n, width // n, n * n * channels)


def depth_to_space(x, n: int):
    """[B, H, W, n*n*C] -> [B, n*H, n*W, C]: the inverse of space_to_depth."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, n, n, channels // (n * n))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * n, width * n, channels // (n * n))


def check(inputs, divisor: int, attention_levels, num_levels: int):
    """Raises UserError where the picture does not fit the network or attention is asked for at a missing level."""
    height, width = inputs.shape[1:3]
    if height % divisor or width % divisor:
        raise UserError(
            f"pictures of {height} x {width} pixels (height x width) do not fit the network: both must divide by "
            f"{divisor}; crop or pad them, or use fewer channel_multipliers or a smaller patch"
        )
    if missing := [i for i in attention_levels if not 0 <= i < num_levels]:
        raise UserError(
            f"attention_levels names level {missing[0]}, but the channel_multipliers make levels 0 to {num_levels - 1}"
        )


def options_of(config, task, dtype) -> dict:
    """The attributes that all networks have, from a config."""
    c = config.network
    return {
        "channel_multipliers": c.channel_multipliers,
        "attention_levels": tuple(i for i, side in enumerate(_sides(config)) if side in c.attention_resolutions),
        "num_res_blocks": c.num_res_blocks,
        "norm_groups": c.norm_groups,
        "dropout": c.dropout,
        "out_channels": task.x0_channels,
        "remat": c.remat,
        "dtype": dtype,
        "param_dtype": jnp.promote_types(dtype, jnp.float32),
    }


def check_settings(config, divisor: int) -> None:
    """Raises UserError where `config.network` does not fit itself or the pictures that are trained on."""
    c = config.network
    if c.channels % 2:
        raise UserError(f"network.channels = {c.channels}: it must be even, for the noise-level embedding")
    channels = [c.channels * multiplier for multiplier in c.channel_multipliers]
    if any(n % c.norm_groups for n in channels):
        raise UserError(
            f"network.norm_groups = {c.norm_groups}: it must divide every level's channels, "
            f"{', '.join(map(str, channels))}"
        )
    if config.image_size % divisor:
        raise UserError(
            f"image_size = {config.image_size}: it must divide by {divisor}, by which the network downsamples"
        )
    sides = _sides(config)
    if not set(c.attention_resolutions) <= set(sides):
        raise UserError(
            f"network.attention_resolutions = {c.attention_resolutions}: at image_size = {config.image_size} the "
            f"levels' sides are {', '.join(map(str, sides))}"
        )


def _sides(config):
    c = config.network
    return [config.image_size // c.patch >> level for level in range(len(c.channel_multipliers))]
