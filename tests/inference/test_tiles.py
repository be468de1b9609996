import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dream_jax.inference import tiles
from dream_jax.networks import layers

SIZES = [(side, tile, overlap, align) for align in (1, 4) for side, tile, overlap in ((20, 64, 16), (64, 64, 8))]
SIZES += [(68, 64, 16, 4), (1000, 64, 0, 4), (1000, 64, 20, 4), (101, 17, 16, 1), (99, 10, 3, 1), (7, 2, 1, 1)]


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("side", "tile", "overlap", "align"), SIZES)
def test_tiles_cover_and_overlap(side, tile, overlap, align):
    starts = tiles.offsets(side, tile, overlap, align)
    assert starts[0] == 0 and starts[-1] == max(side - tile, 0)
    assert np.all(starts % align == 0)
    assert np.all(np.diff(starts) > 0) and np.all(np.diff(starts) <= tile - overlap)
    # One tile fewer would not do.
    assert len(starts) == 1 or tile + (len(starts) - 2) * (tile - overlap) < side


@pytest.mark.parametrize(("side", "tile", "overlap", "align"), SIZES)
def test_windows_sum_to_one(side, tile, overlap, align):
    starts, weights = (make(side, tile, overlap, align) for make in (tiles.offsets, tiles.windows))
    total = np.zeros(side)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + tile] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    assert np.all(weights >= 0)
    margin = overlap // 4
    assert np.all(weights[1:, :margin] == 0) and np.all(weights[:-1, tile - margin :] == 0)


@pytest.mark.parametrize(("side", "tile", "overlap", "align"), [(30, 10, 10, 1), (30, 8, 4, 4), (32, 10, 4, 4)])
def test_sizes_that_do_not_fit(side, tile, overlap, align):
    with pytest.raises(ValueError, match="multiples"):
        tiles.offsets(side, tile, overlap, align)


def blur(x, cond, alpha):
    """A convolution that reaches two pixels, and knows no more than its tile."""
    kernel = jnp.asarray(noise(5, 5, 6, 3) / 10)
    both = jnp.concatenate([x, cond], -1)
    out = jax.lax.conv_general_dilated(both, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return out * alpha[:, None, None, None]


@pytest.mark.parametrize("size", [(8, 12), (40, 16), (52, 76)])
def test_a_network_that_sees_less_than_the_margin_is_the_same_in_tiles(size):
    x, cond, alpha = noise(2, *size, 3), noise(2, *size, 3)[:, ::-1], np.float32([0.3, 0.9])
    for group in 1, 3:
        tiled = jax.jit(tiles.tiled(blur, 24, 12, 4, group))
        np.testing.assert_allclose(tiled(x, cond, alpha), blur(x, cond, alpha), atol=1e-5)


def test_identity_stays_identity():
    x = noise(1, 44, 60, 3)
    tiled = tiles.tiled(lambda x, cond, alpha: x, 16, 8, 4)
    np.testing.assert_allclose(tiled(x, x, np.ones(1)), x, rtol=1e-6)
    zero = tiles.tiled(lambda x, cond, alpha: 0 * x, 16, 8, 4)
    assert not np.any(zero(x, x, np.ones(1)))


def whole_tile(x, cond, alpha):
    """Depends on its whole tile, as networks with norms do."""
    return x * (1 + jnp.mean(cond, (1, 2, 3), keepdims=True)) * alpha[:, None, None, None]


@pytest.mark.parametrize(
    ("side", "tile", "crop", "align"),
    [(64, 64, 8, 8), (71, 64, 8, 1), (1200, 512, 64, 8), (1604, 100, 12, 4), (9, 7, 5, 1)],
)
def test_a_sample_is_spread_over_the_picture(side, tile, crop, align):
    chosen = tiles.sampled(side, tile, crop, align)
    assert chosen[0] >= 0 and chosen[-1] < side and np.all(np.diff(chosen) > 0) and len(chosen) <= tile
    if tile >= side:
        assert len(chosen) == side
        return
    starts = chosen[::crop]
    assert len(starts) == tile // crop and np.all(starts % align == 0)
    np.testing.assert_array_equal(chosen.reshape(-1, crop), starts[:, None] + np.arange(crop))
    np.testing.assert_allclose(starts + crop / 2, (np.arange(len(starts)) + 0.5) * side / len(starts), atol=align + 1)


class Normed(nn.Module):
    """Each output pixel depends on its input pixel and on norms alone."""

    @nn.compact
    def __call__(self, x):
        types = {"dtype": jnp.float32, "param_dtype": jnp.float32}
        for i in range(2):
            x = jnp.tanh(nn.Dense(8, name=f"dense_{i}")(x))
            x = layers.group_norm(x, 2, name=f"norm_{i}", silu=True, **types)
        return nn.Dense(3, name="out")(x)


class Judging:
    """It with weights, as `tiles.tiled` takes it."""

    def __init__(self):
        self.network = Normed()
        self.params = jax.jit(self.network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 6)))["params"]

    def __call__(self, x, cond, alpha, statistics=None):
        given = {} if statistics is None else {"statistics": statistics}
        return self.network.apply({"params": self.params, **given}, jnp.concatenate([x, cond], -1))

    def measure(self, x, cond, alpha):
        inputs = jnp.concatenate([x, cond], -1)
        return self.network.apply({"params": self.params}, inputs, mutable="statistics")[1]["statistics"]


def ramp(batch, height, width):
    """x and cond of pictures that are dark at the left and bright at the right, with noise."""
    bright = (
        np.linspace(-2, 2, width, dtype=np.float32)[:, None] + np.arange(batch, dtype=np.float32)[:, None, None, None]
    )
    return noise(batch, height, width, 3), (bright + 0.3 * noise(batch, height, width, 3)[:, ::-1]).astype(np.float32)


def test_tiles_judged_by_the_whole_are_it():
    x, cond = ramp(1, 40, 64)
    judging, alpha = Judging(), np.ones(1, np.float32)
    whole, statistics = judging(x, cond, alpha), judging.measure(x, cond, alpha)
    dark, bright = (slice(start, start + 32) for start in (0, 24))
    for given, most in ((statistics, 1e-5), (None, np.inf)):
        parts = [judging(x[:, :, cut], cond[:, :, cut], alpha, given) for cut in (dark, bright)]
        apart = np.abs(parts[0][:, :, 24:] - parts[1][:, :, :8]).max()
        away = max(np.abs(part - whole[:, :, cut]).max() for part, cut in zip(parts, (dark, bright), strict=True))
        assert apart <= most and away <= most
    assert apart > 0.3 and away > 0.3


def test_tiles_judged_by_a_sample_are_nearly_the_whole():
    x, cond = ramp(2, 40, 256)
    judging, alpha = Judging(), np.ones(2, np.float32)
    whole = judging(x, cond, alpha)
    alone, judged, grouped = (
        np.abs(tiles.tiled(judging, 64, 16, 2, group, crop=crop)(x, cond, alpha) - whole).mean()
        for group, crop in ((1, None), (1, 8), (3, 8))
    )
    assert judged < alone / 10 and grouped == pytest.approx(judged, rel=1e-3)


def test_the_result_does_not_depend_on_the_group():
    x, cond, alpha = noise(1, 44, 60, 3), noise(1, 44, 60, 3), np.ones(1, np.float32)
    one, *others = (jax.jit(tiles.tiled(whole_tile, 16, 4, 4, group))(x, cond, alpha) for group in (1, 2, 5))
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-6)


def test_no_seam_shows():
    # Every tile gets another brightness, from 1 to 2 over the picture.
    ramp = np.broadcast_to(np.linspace(0, 1, 256, dtype=np.float32)[None, None, :, None], (1, 32, 256, 3))
    ones = np.ones((1, 32, 256, 3), np.float32)
    joined, blended = (tiles.tiled(whole_tile, 64, overlap)(ones, ramp, np.ones(1))[0] for overlap in (0, 16))
    steps = [np.abs(np.diff(out, axis=1)).max() for out in (joined, blended)]
    assert steps[0] > 0.2 and steps[1] < 0.04


@pytest.mark.parametrize(
    ("side", "tile", "overlap", "align"), [(1280, 512, 64, 8), (1664, 512, 64, 8), (240, 160, 16, 1)]
)
def test_tiles_are_blended_over_all_that_they_share(side, tile, overlap, align):
    starts, weights = (make(side, tile, overlap, align) for make in (tiles.offsets, tiles.windows))
    shared = tile - np.diff(starts)
    assert np.all(shared > overlap)
    # A squared sine over so many pixels is nowhere steeper.
    assert np.abs(np.diff(weights)).max() <= np.pi / 2 / (shared.min() - 2 * (overlap // 4))


def test_devices_share_a_group():
    program = """
import jax, numpy as np
from jax.sharding import NamedSharding
from dream_jax.runtime import sharding
from dream_jax.inference import tiles
from test_tiles import Judging, noise, whole_tile
mesh = sharding.make_mesh()
spread = lambda z: jax.lax.with_sharding_constraint(z, NamedSharding(mesh, sharding.BATCH))
args = noise(1, 44, 60, 3), noise(1, 44, 60, 3), np.ones(1, np.float32)
out = jax.jit(tiles.tiled(whole_tile, 16, 4, 4, mesh.size, spread))(*args)
np.testing.assert_allclose(out, tiles.tiled(whole_tile, 16, 4, 4)(*args), rtol=1e-6, atol=1e-6)
judging = Judging()
judged, alone = (tiles.tiled(judging, 16, 4, 4, *more, crop=4) for more in ((mesh.size, spread), ()))
np.testing.assert_allclose(jax.jit(judged)(*args), jax.jit(alone)(*args), rtol=1e-5, atol=1e-5)
assert mesh.size == 4
"""
    flags = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{os.getcwd()}:{Path(__file__).parent}"}
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, **flags})
