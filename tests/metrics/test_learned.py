"""LPIPS and Inception against a second implementation in plain numpy, written from PyTorch's lists of layers."""

import contextlib
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stand_ins import random_weights

from dream_jax import metrics
from dream_jax.errors import UserError
from dream_jax.metrics import features, layers, perceptual
from dream_jax.tasks import value_range

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "metrics.npz"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_file(), reason="the reference arrays are not at ../shared/reference beside this repository"
)


@functools.cache
def lpips_weights(net):
    return random_weights(perceptual.shapes(net))


@pytest.fixture(scope="module")
def inception_weights():
    return random_weights(features.shapes())


def pictures(*shape, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


# The second implementation: NCHW.


def windows(x, size, stride):
    return np.lib.stride_tricks.sliding_window_view(x, size, (2, 3))[:, :, ::stride, ::stride]


def convolve(x, kernel, stride, padding):
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    return np.einsum("nchwij,ocij->nohw", windows(x, kernel.shape[2:], stride), kernel, optimize=True)


def pool(x, size, stride, padding=0, ceil=False, reduce=np.nanmax):
    """nan is outside the picture."""
    pads = [(0, 0), (0, 0)] + [
        (padding, padding + (-(n + 2 * padding - size) % stride if ceil else 0)) for n in x.shape[2:]
    ]
    return reduce(windows(np.pad(x, pads, constant_values=np.nan), (size, size), stride), (4, 5))


CONV = "conv,1,1 relu"
BACKBONES = {  # torchvision's `features`, and after which of them LPIPS looks
    "alex": (f"conv,4,2 relu pool,3 conv,1,2 relu pool,3 {CONV} {CONV} {CONV}", (1, 4, 7, 9, 11)),
    "vgg": (" pool,2 ".join(" ".join([CONV] * n) for n in (2, 2, 3, 3, 3)), (3, 8, 15, 22, 29)),
    "squeeze": (
        "conv,2,0 relu pool,3 fire fire pool,3 fire fire pool,3 fire fire fire fire",
        (1, 4, 7, 9, 10, 11, 12),
    ),
}


def numpy_lpips(weights, a, b, net):
    weights = {re.sub(r"net\.slice\d\.", "", name): w.astype(np.float64) for name, w in weights.items()}

    def affine(x, name, stride=1, padding=0):
        bias = weights[f"{name}.bias"][:, None, None]
        return convolve(x, weights[f"{name}.weight"], stride, (padding, padding)) + bias

    def relu(x):
        return np.maximum(x, 0)

    def run(x):
        x = np.moveaxis(x.astype(np.float64), -1, 1)
        mean, deviation = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
        x = (x - mean[:, None, None]) / deviation[:, None, None]
        steps, taps = BACKBONES[net]
        for i, step in enumerate(steps.split()):
            kind, *numbers = step.split(",")
            numbers = [int(n) for n in numbers]
            if kind == "conv":
                x = affine(x, str(i), *numbers)
            elif kind == "relu":
                x = relu(x)
            elif kind == "pool":
                x = pool(x, *numbers, 2, ceil=net == "squeeze")
            else:
                x = relu(affine(x, f"{i}.squeeze"))
                wide = [relu(affine(x, f"{i}.expand{n}x{n}", padding=n // 2)) for n in (1, 3)]
                x = np.concatenate(wide, 1)
            if i in taps:
                yield x / np.linalg.norm(x, axis=1, keepdims=True)

    distance = 0
    for i, (f, g) in enumerate(zip(run(a), run(b), strict=True)):
        distance += (weights[f"lin{i}.model.1.weight"] * (f - g) ** 2).sum(1).mean((1, 2))
    return distance


@pytest.mark.parametrize(("net", "height", "width"), [("alex", 35, 40), ("vgg", 17, 18), ("squeeze", 18, 37)])
def test_lpips_two_routes_and_properties(net, height, width):
    weights, (a, b, c) = lpips_weights(net), pictures(3, 2, height, width, 3)
    distance = metrics.lpips(weights, a, b, net=net)
    assert distance.shape == (2,) and distance.dtype == jnp.float32
    np.testing.assert_allclose(distance, numpy_lpips(weights, a, b, net), rtol=1e-5)
    np.testing.assert_allclose(metrics.lpips(weights, a, a, net=net), 0, atol=1e-12)
    np.testing.assert_allclose(metrics.lpips(weights, b, a, net=net), distance, rtol=1e-6)
    # A picture's distance does not depend on its neighbours in the batch, and falls with the difference.
    mixed = metrics.lpips(weights, np.stack([a[1], a[0]]), np.stack([b[1], c[0]]), net=net)
    np.testing.assert_allclose(mixed[0], distance[1], rtol=1e-6)
    assert np.all(np.asarray(metrics.lpips(weights, a, 0.99 * a + 0.01 * b, net=net)) < np.asarray(distance) / 10)


def test_lpips_diversity_is_the_mean_over_pairs():
    weights, samples = lpips_weights("squeeze"), pictures(4, 18, 37, 3)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    a, b = (samples[list(side)] for side in zip(*pairs, strict=True))
    expected = np.mean(metrics.lpips(weights, a, b, net="squeeze"))
    np.testing.assert_allclose(metrics.lpips_diversity(weights, samples, "squeeze"), expected, rtol=1e-6)
    same = np.stack([samples[0]] * 2)
    np.testing.assert_allclose(metrics.lpips_diversity(weights, same, "squeeze"), 0, atol=1e-12)
    with pytest.raises(UserError, match="2 samples"):
        metrics.lpips_diversity(weights, samples[:1], "squeeze")


def test_lpips_takes_what_state_dicts_hold_and_names_what_is_wrong():
    weights, a = lpips_weights("squeeze"), pictures(1, 17, 17, 3)
    surplus = {"scaling_layer.shift": np.zeros((1, 3, 1, 1)), "lins.0.model.1.weight": np.ones(3), "n": np.int64(3)}
    jax.eval_shape(lambda a: metrics.lpips(weights | surplus, a, a, net="squeeze"), a)
    for name in ("net.slice1.0.weight", "net.slice5.10.expand3x3.bias", "lin6.model.1.weight"):
        without = {n: w for n, w in weights.items() if n != name}
        for bad in (without, {**weights, name: weights[name][:, None]}, {**weights, name: weights[name].astype(int)}):
            with pytest.raises(UserError, match=re.escape(name)):
                metrics.lpips(bad, a, a, net="squeeze")
    for bad, message in (
        (a[:, :16], "at least 17 x 17"),
        (a[..., :1], r"\[B, H, W, 3\]"),
        (a[0], r"\[B, H, W, 3\]"),
        ((127.5 * (a + 1)).astype(np.uint8), "to_float"),
    ):
        with pytest.raises(UserError, match=message):
            metrics.lpips(weights, bad, bad, net="squeeze")
    with pytest.raises(UserError, match="LPIPS compares"):
        metrics.lpips(weights, a, np.zeros((2, 17, 17, 3), np.float32), net="squeeze")
    with pytest.raises(UserError, match="alex, vgg, squeeze"):
        metrics.lpips(weights, a, a, net="resnet")


@pytest.mark.parametrize("net", perceptual.NETS)
def test_the_smallest_picture_leaves_a_pixel_everywhere(net):
    least = perceptual.NETS[net].smallest

    def sizes(n):
        zeros = {name: jnp.zeros(shape) for name, shape in perceptual.shapes(net).items()}
        picture = jax.ShapeDtypeStruct((1, n, n, 3), jnp.float32)
        found = jax.eval_shape(lambda x: perceptual.NETS[net].features(lambda name, shape: zeros[name], x), picture)
        return min(f.shape[1] for f in found)

    assert sizes(least) >= 1
    # A window larger than what it slides over raises.
    with contextlib.suppress(TypeError, ValueError):
        assert sizes(least - 1) == 0


# name of the last branch's pooling; "/" halves without padding, "+" is several convolutions of one input
A = "branch1x1|branch5x5_1 branch5x5_2|branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3|mean branch_pool"
B = "branch3x3/|branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3/|max/"
C = (
    "branch1x1|branch7x7_1 branch7x7_2 branch7x7_3|"
    "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5|mean branch_pool"
)
D = "branch3x3_1 branch3x3_2/|branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4/|max/"
E = (
    "branch1x1|branch3x3_1 branch3x3_2a+branch3x3_2b|"
    "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a+branch3x3dbl_3b|mean branch_pool"
)
BLOCKS = {"5b": A, "5c": A, "5d": A, "6a": B, "6b": C, "6c": C, "6d": C, "6e": C, "7a": D, "7b": E}
BLOCKS["7c"] = E.replace("mean", "max")


def numpy_inception(weights, levels):
    def conv(x, name, stride=1, pad=True):
        kernel = weights[f"{name}.conv.weight"]
        gain, bias, mean, variance = (
            weights[f"{name}.bn.{n}"][:, None, None] for n in ("weight", "bias", "running_mean", "running_var")
        )
        x = convolve(x, kernel, stride, [n // 2 if pad else 0 for n in kernel.shape[2:]])
        return np.maximum(gain * (x - mean) / np.sqrt(variance + 1e-3) + bias, 0)

    def step(x, prefix, text):
        if text == "max/":
            return pool(x, 3, 2)
        if text in ("max", "mean"):
            return pool(x, 3, 1, 1, reduce=np.nanmax if text == "max" else np.nanmean)
        if text.endswith("/"):
            return conv(x, prefix + text[:-1], 2, pad=False)
        return np.concatenate([conv(x, prefix + name) for name in text.split("+")], 1)

    def interpolate(row):
        n = len(row)
        return np.interp((np.arange(299) + 0.5) * n / 299 - 0.5, np.arange(n), row)

    x = np.moveaxis(levels / 255, -1, 1)
    x = np.apply_along_axis(interpolate, 3, np.apply_along_axis(interpolate, 2, x))
    x = (2 * x - 1).astype(np.float32)
    x = conv(conv(x, "Conv2d_1a_3x3", 2, pad=False), "Conv2d_2a_3x3", pad=False)
    x = conv(pool(conv(x, "Conv2d_2b_3x3"), 3, 2), "Conv2d_3b_1x1")
    x = pool(conv(x, "Conv2d_4a_3x3", pad=False), 3, 2)
    for name, block in BLOCKS.items():
        branches = block.split("|")
        ends = [functools.reduce(lambda y, t: step(y, f"Mixed_{name}.", t), b.split(), x) for b in branches]
        x = np.concatenate(ends, 1)
    pool3 = x.mean((2, 3))
    return pool3, pool3 @ weights["fc.weight"].T + weights["fc.bias"]


def close(actual, expected, rtol):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.abs(expected).max())


def test_inception_two_routes_and_batches(inception_weights):
    """Also where sizes differ, and where the last batch is not full."""
    rng = np.random.default_rng(2)
    small, large = rng.integers(0, 256, (2, 20, 33, 3), np.uint8), rng.integers(0, 256, (1, 310, 305, 3), np.uint8)
    pool3, logits = metrics.inception(inception_weights, small)
    assert pool3.shape == (2, 2048) and logits.shape == (2, 1008) and pool3.dtype == logits.dtype == jnp.float32
    for actual, expected in zip((pool3[:1], logits[:1]), numpy_inception(inception_weights, small[:1]), strict=True):
        close(actual, expected, 1e-4)

    mixed = (p for p in (*small, *large))
    for parts, whole in zip(metrics.inception_features(inception_weights, mixed, 2), (pool3, logits), strict=True):
        assert isinstance(parts, np.ndarray) and len(parts) == 3
        close(parts[:2], np.asarray(whole), 1e-5)
    assert features.run_network._cache_size() == 1


def test_inception_names_what_is_wrong(inception_weights):
    a = np.zeros((1, 8, 8, 3), np.uint8)
    for name in ("Mixed_6b.branch7x7_2.conv.weight", "Mixed_7c.branch_pool.bn.running_var", "fc.bias"):
        without = {n: w for n, w in inception_weights.items() if n != name}
        for bad in (without, {**inception_weights, name: inception_weights[name][:-1]}):
            with pytest.raises(UserError, match=re.escape(name)):
                metrics.inception(bad, a)
    for bad, message in ((a[0], "B, H, W, 3"), (a[..., :1], "B, H, W, 3"), (a / 255, "uint8"), (a[:0], "B, H, W, 3")):
        with pytest.raises(UserError, match=message):
            metrics.inception(inception_weights, bad)
    with pytest.raises(UserError, match="no pictures"):
        metrics.inception_features(inception_weights, a[:0])
    # Weights that pytorch-fid saves beside these are no hindrance.
    counted = inception_weights | {"Conv2d_1a_3x3.bn.num_batches_tracked": np.int64(0)}
    assert layers.select(counted, features.shapes(), "Inception").keys() == inception_weights.keys()


def test_average_pool_leaves_the_padding_out():
    x = pictures(1, 4, 5, 2)
    expected = pool(np.moveaxis(x, -1, 1), 3, 1, 1, reduce=np.nanmean)
    np.testing.assert_allclose(layers.avg_pool(x), np.moveaxis(expected, 1, -1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layers.avg_pool(jnp.ones((1, 4, 5, 2))), 1, rtol=1e-6)


def reference():
    with np.load(REFERENCE) as z:
        return dict(z)


def reference_weights(z, net):
    """The weights that the reference arrays were made with, by the rule beside them."""
    weights = {}
    for i, (name, shape) in enumerate(zip(z[f"{net}/names"], z[f"{net}/shapes"], strict=True)):
        name, shape = str(name), tuple(int(n) for n in str(shape).split(",") if n)
        rng = np.random.default_rng([int(z["seed"]), i])
        if name.endswith("running_var"):
            w = 0.5 + rng.random(shape)
        elif name.endswith(("running_mean", "bias")):
            w = 0.1 * rng.standard_normal(shape)
        elif len(shape) >= 2:
            w = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            w = 0.5 + rng.random(shape)
        weights[name] = np.float32(np.abs(w) if name.startswith("lin") else w)
    return weights


@needs_reference
@pytest.mark.parametrize("net", perceptual.NETS)
def test_lpips_is_pytorchs(net):
    z = reference()
    a, b = (value_range.to_float(z[name]) for name in ("a_u8_nhwc", "b_u8_nhwc"))
    distance = metrics.lpips(reference_weights(z, f"lpips_{net}"), a, b, net=net)
    np.testing.assert_allclose(distance, z[f"lpips_{net}/distance"], rtol=1e-5)


@needs_reference
def test_inception_is_pytorchs():
    z = reference()
    pool3, logits = metrics.inception(reference_weights(z, "inception"), z["a_u8_nhwc"])
    close(pool3, z["inception/pool3"], 1e-5)
    close(logits, z["inception/logits"], 1e-5)


@needs_reference
def test_distributions_are_the_references():
    z = reference()
    f, g = z["frechet/f"], z["frechet/g"]
    np.testing.assert_allclose(metrics.frechet_distance(f, g), z["frechet/distance"], rtol=1e-9)
    kid = metrics.kernel_distance(f[:260], g)
    np.testing.assert_allclose(kid, z["kid/mmd2_poly3_one_subset_of_all"], rtol=1e-9)
    score = metrics.inception_score(z["is/logits"])
    np.testing.assert_allclose(score, (z["is/mean_10_splits"], z["is/std_10_splits"]), rtol=1e-9)
