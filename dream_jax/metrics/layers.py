"""What the networks of learned metrics are made of: NHWC pictures, PyTorch's names and layouts of weights.

A network is a function `network(get, x)` that asks `get(name, shape)` for each array as it needs it, so that one
function computes and also says which arrays there must be.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.errors import UserError


def conv(x, kernel, stride=1, padding=(0, 0)):
    """Cross-correlation of [B, H, W, I] with a kernel [O, I, h, w] at full float32 precision."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(p, p) for p in padding],
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )


def _pool(x, start, combine, size, stride, padding):
    return jax.lax.reduce_window(x, start, combine, (1, size, size, 1), (1, stride, stride, 1), padding)


def max_pool(x, size=3, stride=2, padding=0, ceil=False):
    """Largest value in each window; with `ceil`, the last window may reach beyond the picture by less than a stride."""

    def beyond(n):
        return -(n + 2 * padding - size) % stride if ceil else 0

    pads = [(padding, padding + beyond(n)) for n in x.shape[1:3]]
    return _pool(x, -jnp.inf, jax.lax.max, size, stride, [(0, 0), *pads, (0, 0)])


def avg_pool(x, size=3):
    """Mean of each window of stride 1 over those of its pixels that lie inside the picture; the size is kept."""
    total, count = (_pool(z, 0.0, jax.lax.add, size, 1, "SAME") for z in (x, jnp.ones((1, *x.shape[1:3], 1), x.dtype)))
    return total / jnp.broadcast_to(count, total.shape)


def enlarge(pictures, size):
    """Grey levels [B, H, W, 3] -> [B, size, size, 3] in [0, 1], linear between the nearest pixels, no antialiasing."""
    x = pictures.astype(jnp.float32) / 255
    for axis in (1, 2):
        n = x.shape[axis]
        place = np.maximum((np.arange(size) + 0.5) * (n / size) - 0.5, 0)
        low = place.astype(int)
        weight = np.expand_dims(np.float32(place - low), [k for k in range(4) if k != axis])
        high = np.minimum(low + 1, n - 1)
        x = jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, high, axis) * weight
    return x


@functools.cache
def shapes(network, size):
    """Name -> shape of the arrays that a network asks for, in its order; `size` is one of pictures that it can take."""
    asked = {}

    def get(name, shape):
        asked[name] = shape
        return jnp.zeros(shape, jnp.float32)

    jax.eval_shape(lambda x: network(get, x), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    return asked


def select(weights, shapes, what):
    """Those of the weights that a network needs, as they are.

    Raises UserError, by name, for one that is missing, of another shape or no floating point; `what` names the network.
    """
    for name, shape in shapes.items():
        if name not in weights:
            raise UserError(f"the weights of {what} lack {name}")
        array = weights[name]
        if np.shape(array) != shape:
            raise UserError(f"{name} among the weights of {what} has the shape {np.shape(array)}; {shape} was expected")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(
                f"{name} among the weights of {what} has the type {array.dtype}, which is no floating point"
            )
    return {name: weights[name] for name in shapes}


def on_device(weights):
    return {name: jnp.asarray(array, jnp.float32) for name, array in weights.items()}
