"""LPIPS, the learned perceptual distance of pictures (Zhang et al. 2018, arXiv 1801.03924), version 0.1."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.errors import UserError
from dream_jax.metrics import layers

# The networks see ImageNet's mean and deviation, here of pictures in [-1, 1].
_SHIFT = np.float32([-0.030, -0.088, -0.188])
_SCALE = np.float32([0.458, 0.448, 0.450])


def _conv(get, name, x, channels, size, stride=1, padding=None):
    kernel = get(f"{name}.weight", (channels, x.shape[-1], size, size))
    bias = get(f"{name}.bias", (channels,))
    padding = size // 2 if padding is None else padding
    return jax.nn.relu(layers.conv(x, kernel, stride, (padding, padding)) + bias[None, None, None])


def _alex(get, x):
    """AlexNet's five layers of convolution."""
    conv = functools.partial(_conv, get)
    one = conv("net.slice1.0", x, 64, 11, stride=4, padding=2)
    two = conv("net.slice2.3", layers.max_pool(one), 192, 5)
    three = conv("net.slice3.6", layers.max_pool(two), 384, 3)
    four = conv("net.slice4.8", three, 256, 3)
    return [one, two, three, four, conv("net.slice5.10", four, 256, 3)]


def _vgg(get, x):
    """VGG-16 before each of its poolings."""
    features, place = [], 0
    for i, (channels, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        if i > 0:
            x, place = layers.max_pool(x, 2), place + 1
        for _ in range(count):
            x, place = _conv(get, f"net.slice{i + 1}.{place}", x, channels, 3), place + 2
        features.append(x)
    return features


def _squeeze(get, x):
    """SqueezeNet 1.1 before each of its poolings, then after each of its last modules."""

    def fire(name, x, channels):
        x = _conv(get, f"{name}.squeeze", x, channels, 1)
        expand = (_conv(get, f"{name}.expand{n}x{n}", x, 4 * channels, n) for n in (1, 3))
        return jnp.concatenate(list(expand), -1)

    def pool(x):
        return layers.max_pool(x, ceil=True)

    one = _conv(get, "net.slice1.0", x, 64, 3, stride=2, padding=0)
    two = fire("net.slice2.4", fire("net.slice2.3", pool(one), 16), 16)
    three = fire("net.slice3.7", fire("net.slice3.6", pool(two), 32), 32)
    four = fire("net.slice4.9", pool(three), 48)
    five = fire("net.slice5.10", four, 48)
    six = fire("net.slice6.11", five, 64)
    return [one, two, three, four, five, six, fire("net.slice7.12", six, 64)]


class Net(NamedTuple):
    """A network that LPIPS looks into.

    Attributes:
      features: `(get, pictures [B, H, W, 3]) -> [features [B, h, w, C], ...]`, of each layer that is compared.
      smallest: the smallest side of pictures that leaves a pixel at every layer.
    """

    features: Callable
    smallest: int


NETS = {"alex": Net(_alex, 31), "vgg": Net(_vgg, 16), "squeeze": Net(_squeeze, 17)}


def _features(net, get, x):
    """[(features of unit length over channels [B, h, w, C], weight of each channel [C]), ...], one for each layer."""
    features = NETS[net].features(get, (x - _SHIFT[None, None, None]) / _SCALE[None, None, None])
    heads = [get(f"lin{i}.model.1.weight", (1, f.shape[-1], 1, 1)) for i, f in enumerate(features)]
    lengths = [jnp.sqrt(jnp.sum(f**2, -1, keepdims=True)) for f in features]
    return [(f / (n + 1e-10), head[0, :, 0, 0]) for f, n, head in zip(features, lengths, heads, strict=True)]


# One function for each net, so that what they ask for is found once.
_NETWORKS = {net: functools.partial(_features, net) for net in NETS}


def shapes(net):
    """PyTorch name -> shape of every array that `lpips` needs of the network."""
    if net not in NETS:
        raise UserError(f"net must be one of {', '.join(NETS)}, not {net!r}")
    return layers.shapes(_NETWORKS[net], NETS[net].smallest)


def _distance(f, g, head):
    return ((f - g) ** 2 * head[None, None, None]).sum(-1).mean(2).mean(1)


@functools.partial(jax.jit, static_argnames="net")
def _lpips(weights, a, b, net):
    pairs = _NETWORKS[net](lambda name, shape: weights[name], jnp.concatenate([a, b]))
    return sum(_distance(f[: len(a)], f[len(a) :], head) for f, head in pairs)


@functools.partial(jax.jit, static_argnames="net")
def _diversity(weights, pictures, net):
    features = _NETWORKS[net](lambda name, shape: weights[name], pictures)

    def from_one(i):
        return sum(_distance(f, f[i][None], head) for f, head in features).sum()

    n = len(pictures)
    return jax.lax.map(from_one, jnp.arange(n)).sum() / (n * (n - 1))


def _inputs(weights, net, *pictures):
    needed = layers.select(weights, shapes(net), f"LPIPS of {net}")
    pictures = [jnp.asarray(p) for p in pictures]
    first = pictures[0].shape
    if len(first) != 4 or first[-1] != 3 or any(p.shape != first for p in pictures):
        raise UserError(f"LPIPS compares pictures [B, H, W, 3], not {' and '.join(str(p.shape) for p in pictures)}")
    least = NETS[net].smallest
    if min(first[1:3]) < least:
        raise UserError(f"LPIPS of {net} needs at least {least} x {least} pixels, not {first[1]} x {first[2]}")
    if not all(jnp.issubdtype(p.dtype, jnp.floating) for p in pictures):
        raise UserError("LPIPS takes pictures in [-1, 1], not whole grey levels: value_range.to_float converts them")
    return layers.on_device(needed), *(p.astype(jnp.float32) for p in pictures)


def lpips(weights, a, b, net="alex"):
    """Perceptual distance, 0 for equal pictures: [B, H, W, 3] twice, in [-1, 1] -> [B] (Zhang et al. 2018, equation 1).

    `weights`: PyTorch name -> array, as in the state dict of version 0.1 (`weights.load` makes one); surplus arrays are
    ignored. `net` is the network they belong to: "alex", "vgg" or "squeeze". In float32 throughout.

    Raises UserError for weights that are missing or of another shape, by name; for pictures that are too small, of
    different shapes, or in whole grey levels.
    """
    return _lpips(*_inputs(weights, net, a, b), net=net)


def lpips_diversity(weights, pictures, net="alex"):
    """Mean LPIPS over all pairs of samples [S, H, W, 3] of one input, in [-1, 1]: how much a model's answers differ.

    Weights, net and errors as for `lpips`; at least 2 samples.
    """
    weights, pictures = _inputs(weights, net, pictures)
    if len(pictures) < 2:
        raise UserError(f"diversity needs at least 2 samples of one input, not {len(pictures)}")
    return _diversity(weights, pictures, net=net)
