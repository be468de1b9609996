"""The Inception network of FID, KID and the Inception Score: the 2015 TensorFlow one, as pytorch-fid carries it over.

It differs from torchvision's: average pooling leaves the padding out of its count, the last block pools by maximum, and
there are 1008 classes.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dream_jax.errors import UserError
from dream_jax.metrics import layers

SIZE = 299


def _conv(get, name, x, channels, size=(1, 1), stride=1, pad=True):
    kernel = get(f"{name}.conv.weight", (channels, x.shape[-1], *size))
    norm = {n: get(f"{name}.bn.{n}", (channels,)) for n in ("weight", "bias", "running_mean", "running_var")}
    scale = norm["weight"] / jnp.sqrt(norm["running_var"] + 1e-3)
    x = layers.conv(x, kernel, stride, [n // 2 if pad else 0 for n in size])
    return jax.nn.relu(
        (x - norm["running_mean"][None, None, None]) * scale[None, None, None] + norm["bias"][None, None, None]
    )


def _halve(get, name, x, channels):
    return _conv(get, name, x, channels, (3, 3), stride=2, pad=False)


def _chain(get, name, x, *steps):
    """name_1, name_2, ...: convolutions one after the other; a step is (channels, size)."""
    for i, step in enumerate(steps, 1):
        x = _conv(get, f"{name}_{i}", x, *step)
    return x


def _join(*branches):
    return jnp.concatenate(branches, -1)


# The network's five kinds of blocks, in pytorch-fid's letters.


def _block_a(get, name, x, pooled):
    return _join(
        _conv(get, f"{name}.branch1x1", x, 64),
        _chain(get, f"{name}.branch5x5", x, (48,), (64, (5, 5))),
        _chain(get, f"{name}.branch3x3dbl", x, (64,), (96, (3, 3)), (96, (3, 3))),
        _conv(get, f"{name}.branch_pool", layers.avg_pool(x), pooled),
    )


def _block_b(get, name, x):
    double = _chain(get, f"{name}.branch3x3dbl", x, (64,), (96, (3, 3)))
    return _join(
        _halve(get, f"{name}.branch3x3", x, 384),
        _halve(get, f"{name}.branch3x3dbl_3", double, 96),
        layers.max_pool(x),
    )


def _block_c(get, name, x, n):
    wide, tall = (1, 7), (7, 1)
    return _join(
        _conv(get, f"{name}.branch1x1", x, 192),
        _chain(get, f"{name}.branch7x7", x, (n,), (n, wide), (192, tall)),
        _chain(get, f"{name}.branch7x7dbl", x, (n,), (n, tall), (n, wide), (n, tall), (192, wide)),
        _conv(get, f"{name}.branch_pool", layers.avg_pool(x), 192),
    )


def _block_d(get, name, x):
    long = _chain(get, f"{name}.branch7x7x3", x, (192,), (192, (1, 7)), (192, (7, 1)))
    return _join(
        _halve(get, f"{name}.branch3x3_2", _conv(get, f"{name}.branch3x3_1", x, 192), 320),
        _halve(get, f"{name}.branch7x7x3_4", long, 192),
        layers.max_pool(x),
    )


def _block_e(get, name, x, pooled):
    single = _conv(get, f"{name}.branch3x3_1", x, 384)
    double = _chain(get, f"{name}.branch3x3dbl", x, (448,), (384, (3, 3)))
    return _join(
        _conv(get, f"{name}.branch1x1", x, 320),
        _conv(get, f"{name}.branch3x3_2a", single, 384, (1, 3)),
        _conv(get, f"{name}.branch3x3_2b", single, 384, (3, 1)),
        _conv(get, f"{name}.branch3x3dbl_3a", double, 384, (1, 3)),
        _conv(get, f"{name}.branch3x3dbl_3b", double, 384, (3, 1)),
        _conv(get, f"{name}.branch_pool", pooled, 192),
    )


def _network(get, x):
    """[B, 299, 299, 3] in [-1, 1] -> (pool3 [B, 2048], logits [B, 1008]) (Szegedy et al. 2015, arXiv 1512.00567)."""
    x = _halve(get, "Conv2d_1a_3x3", x, 32)
    x = _conv(get, "Conv2d_2a_3x3", x, 32, (3, 3), pad=False)
    x = layers.max_pool(_conv(get, "Conv2d_2b_3x3", x, 64, (3, 3)))
    x = _conv(get, "Conv2d_3b_1x1", x, 80)
    x = layers.max_pool(_conv(get, "Conv2d_4a_3x3", x, 192, (3, 3), pad=False))
    x = _block_a(get, "Mixed_5b", x, 32)
    x = _block_a(get, "Mixed_5c", x, 64)
    x = _block_a(get, "Mixed_5d", x, 64)
    x = _block_b(get, "Mixed_6a", x)
    x = _block_c(get, "Mixed_6b", x, 128)
    x = _block_c(get, "Mixed_6c", x, 160)
    x = _block_c(get, "Mixed_6d", x, 160)
    x = _block_c(get, "Mixed_6e", x, 192)
    x = _block_d(get, "Mixed_7a", x)
    x = _block_e(get, "Mixed_7b", x, layers.avg_pool(x))
    x = _block_e(get, "Mixed_7c", x, layers.max_pool(x, stride=1, padding=1))
    pool3 = x.mean((1, 2))
    kernel, bias = get("fc.weight", (1008, 2048)), get("fc.bias", (1008,))
    return pool3, jnp.matmul(pool3, kernel.T, precision=jax.lax.Precision.HIGHEST) + bias[None]


def shapes():
    """PyTorch name -> shape of every array that `inception` needs."""
    return layers.shapes(_network, SIZE)


@jax.jit
def _linear(pictures):
    return 2 * layers.enlarge(pictures, SIZE) - 1


def _clean(pictures):
    """Each channel by Pillow's bicubic in floating point, which averages where it makes smaller."""
    channels = [
        np.asarray(Image.fromarray(channel).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        for channel in np.moveaxis(np.asarray(pictures, np.float32), -1, 1).reshape(-1, *pictures.shape[1:3])
    ]
    resized = np.reshape(channels, (len(pictures), 3, SIZE, SIZE)).clip(0, 255)
    return (np.moveaxis(resized, 1, -1) - 128) / 128


# How pictures come to 299 x 299 pixels in [-1, 1]: as pytorch-fid does it (linear between the nearest pixels, no
# antialiasing), and as clean-fid does (Parmar et al. 2022, arXiv 2104.11222).
RESIZES = {"linear": _linear, "clean": _clean}


@jax.jit
def run_network(weights, x):
    """Pictures as the network takes them, float [B, 299, 299, 3] in [-1, 1] -> (pool3 [B, 2048], logits [B, 1008])."""
    return _network(lambda name, shape: weights[name], x)


def _checked(pictures):
    if np.ndim(pictures) != 4 or np.shape(pictures)[-1] != 3 or 0 in np.shape(pictures):
        raise UserError(f"Inception takes pictures [B, H, W, 3], not {np.shape(pictures)}")
    if pictures.dtype != np.uint8:
        raise UserError(f"Inception takes uint8 grey levels, not {pictures.dtype}: value_range.to_uint8 converts")
    return pictures


def inception(weights, images_uint8):
    """Features and class scores of pictures: uint8 [B, H, W, 3] -> (pool3 [B, 2048], logits [B, 1008]).

    `weights`: PyTorch name -> array, as in pytorch-fid's state dict; surplus arrays are ignored. Pictures of any size
    are resized to 299 x 299, bilinear without antialiasing. In float32 throughout.

    Raises UserError for weights that are missing or of another shape, by name, and for pictures that are no uint8 RGB.
    """
    weights = layers.on_device(layers.select(weights, shapes(), "Inception"))
    return run_network(weights, _linear(_checked(images_uint8)))


def inception_features(weights, pictures, batch_size=16, resize="linear"):
    """`inception` of any number of pictures, `batch_size` at a time: numpy (pool3 [N, 2048], logits [N, 1008]).

    `pictures`: an array uint8 [N, H, W, 3], or an iterable of uint8 [H, W, 3] whose sizes may differ. `resize`: one of
    RESIZES. The network is compiled once and memory is that of one batch.

    Raises UserError as `inception` does, and for no pictures at all.
    """
    weights = layers.on_device(layers.select(weights, shapes(), "Inception"))
    pictures, outputs = iter(pictures), []
    while batch := list(itertools.islice(pictures, batch_size)):
        rows = [RESIZES[resize](_checked(picture[None])) for picture in batch]
        rows.append(jnp.zeros((batch_size - len(batch), SIZE, SIZE, 3)))
        pool3, logits = run_network(weights, jnp.concatenate(rows))
        outputs.append((np.asarray(pool3)[: len(batch)], np.asarray(logits)[: len(batch)]))
    if not outputs:
        raise UserError("Inception was given no pictures")
    return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))
