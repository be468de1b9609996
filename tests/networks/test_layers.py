import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from dream_jax.networks import dropout, layers, normalization


def test_group_norm_of_a_large_mean():
    x = 1e3 + np.random.default_rng(0).standard_normal((2, 4, 4, 6)).astype(np.float32)

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.group_norm(x, 3, name="norm", dtype=jnp.float32, param_dtype=jnp.float32)

    y = Norm().apply({"params": {"norm": {"scale": np.ones(6), "bias": np.zeros(6)}}}, x)
    groups = x.astype(np.float64).reshape(2, 4, 4, 3, 2)
    mean = groups.mean((1, 2, 4), keepdims=True)
    expected = (groups - mean) / np.sqrt(groups.var((1, 2, 4), keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-3)


def test_encodings():
    x = jnp.asarray([0.0, 0.7, 40.0])
    for encode, last in [(layers.noise_level_encoding, 1e4 ** (-3 / 4)), (layers.time_encoding, 1e-4)]:
        e = encode(x, 8)
        assert e.shape == (3, 8)
        np.testing.assert_allclose(e[:, :4] ** 2 + e[:, 4:] ** 2, np.ones((3, 4)), atol=1e-6)
        np.testing.assert_allclose(e[:, 0], np.sin(x), atol=1e-6)
        np.testing.assert_allclose(e[:, 3], np.sin(x * last), atol=1e-6)


def test_space_to_depth_and_back():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    y = layers.space_to_depth(x, 2)
    assert y.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(y[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
    np.testing.assert_array_equal(layers.depth_to_space(y, 2), x)
    np.testing.assert_array_equal(layers.space_to_depth(x, 1), x)


def test_dropout_is_a_function_of_key_and_layer():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, keys=None):
            return layers.Dropout(0.25, name="a")(x, keys), layers.Dropout(0.25, name="b")(x, keys)

    run = jax.jit(Two().apply)
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), 8)
    x = jnp.ones((8, 16, 16, 4))
    a, b = run({}, x, keys)
    assert set(np.unique(a)) == {0, np.float32(1 / 0.75)}
    np.testing.assert_allclose(np.mean(a), 1, atol=0.03)
    assert 0.3 < np.mean(np.asarray(a) != np.asarray(b)) < 0.45  # independent masks: 2 * 0.25 * 0.75
    assert not np.array_equal(a[0], a[1])
    some = np.asarray([5, 2])
    np.testing.assert_array_equal(run({}, x[:2], keys[some])[0], a[some])
    np.testing.assert_array_equal(Two().apply({}, x)[0], x)
    np.testing.assert_array_equal(run({}, x.astype(jnp.bfloat16), keys)[0] > 0, a > 0)
    with jax.enable_x64(True):
        wide = run({}, jnp.ones(x.shape, jnp.float64), keys)[0]
        assert wide.dtype == jnp.float64
        np.testing.assert_array_equal(wide > 0, a > 0)


class Masks(nn.Module):
    """What layers of several names keep of the pictures of keys: bool [layer, B, H, W, C]."""

    rate: float
    names: tuple[str, ...] = ("a", "b")

    @nn.compact
    def __call__(self, keys, shape):
        words = [layers.Dropout(self.rate, name=name).words(keys) for name in self.names]
        return jnp.stack([dropout.kept(each, (len(keys), *shape), self.rate) for each in words])


def keys_of_rows(number):
    """Keys as a step draws them, of rows that follow each other."""
    key = jax.random.key(0, impl="threefry2x32")
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(number))


@pytest.mark.parametrize("rate", [2.0**-7, 0.1, 0.2, 0.5, 0.9])
def test_dropout_drops_its_share(rate):
    found = np.asarray(Masks(rate).apply({}, keys_of_rows(128), (8, 8, 24)))
    dropped = ~found.reshape(2 * 128, -1)
    deviation = np.sqrt(rate * (1 - rate) / dropped[0].size)
    # Of all values; of each example; and the examples' spread, the binomial's own.
    assert abs(dropped.mean() - rate) < 5 * deviation / np.sqrt(len(dropped))
    scores = (dropped.mean(1) - rate) / deviation
    assert np.abs(scores).max() < 5
    assert abs(np.mean(scores**2) - 1) < 5 * np.sqrt(2 / len(scores))


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_of_one_value_says_nothing_of_another(rate):
    found = np.asarray(Masks(rate).apply({}, keys_of_rows(32), (16, 16, 32)))
    scores = (~found - rate) / np.sqrt(rate * (1 - rate))
    for axis, name in enumerate(("layer", "row", "height", "width", "channel")):
        for step in {1, 2, 3, 4, 8, 16} if axis else {1}:
            if step < scores.shape[axis]:
                near, far = (np.moveaxis(scores, axis, 0)[part] for part in (slice(None, -step), slice(step, None)))
                assert abs(np.mean(near * far)) < 5 / np.sqrt(near.size), (name, step)
    # Nor do two say anything of the third that stands between them, nor places that differ in one bit of their number.
    assert abs(np.mean(scores[..., :-2] * scores[..., 1:-1] * scores[..., 2:])) < 5 / np.sqrt(scores.size)
    flat = scores.reshape(2 * 32, -1)
    for bit in range(13):
        other = flat[:, np.arange(flat.shape[1]) ^ 1 << bit]
        assert abs(np.mean(flat * other)) < 5 * np.sqrt(2 / flat.size), bit


def test_masks_are_of_words_and_place_alone():
    words = np.asarray(jax.random.bits(jax.random.key(0), (2, 6), jnp.uint32))
    whole = np.asarray(dropout.kept(words, (6, 3, 5, 7), 0.3))
    for rows in (slice(0, 1), slice(2, 6), slice(None, None, -1)):
        part = jax.jit(dropout.kept, static_argnums=(1, 2))(tuple(words[:, rows]), (len(whole[rows]), 3, 5, 7), 0.3)
        np.testing.assert_array_equal(part, whole[rows])

    # Python's own whole numbers.
    for row, h, w, c in [(0, 0, 0, 0), (3, 1, 4, 2), (5, 2, 4, 6)]:
        first, second = map(int, words[:, row])
        x = (h * 5 + w) * 7 + c ^ first
        x = (x ^ x >> 17) * 0xED5AD4BB % 2**32
        x = (x ^ x >> 11 ^ second) * 0xAC4C1B51 % 2**32
        x = (x ^ x >> 15) * 0x31848BAB % 2**32
        assert whole[row, h, w, c] == (x >= 0.3 * 2**32)


def test_no_rate_is_no_dropout():
    keys = keys_of_rows(2)
    assert layers.Dropout(0.0).words(keys) is None and layers.Dropout(0.5).words(None) is None
    words = tuple(jax.random.key_data(keys).T)
    assert np.all(dropout.kept(words, (2, 64, 64, 8), 0.0))
    assert np.mean(dropout.kept(words, (2, 64, 64, 8), np.nextafter(1.0, 0))) < 1e-3


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_group_norm_is_flax_own(mean):
    draw = np.random.default_rng(0).normal
    x = jnp.asarray(mean + draw(size=(2, 8, 6, 12)), jnp.float32)
    weight = jnp.asarray(draw(size=x.shape), jnp.float32)
    params = {"scale": jnp.asarray(draw(size=12), jnp.float32), "bias": jnp.asarray(draw(size=12), jnp.float32)}
    ours = layers.GroupNorm(4, dtype=jnp.float32, param_dtype=jnp.float32)
    flax_own = nn.GroupNorm(4, epsilon=1e-5, use_fast_variance=False)

    def value_and_gradients(norm):
        def loss(params, x):
            return jnp.sum(weight * norm.apply({"params": params}, x))

        return norm.apply({"params": params}, x), jax.grad(loss, argnums=(0, 1))(params, x)

    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == {"params": {"bias": (12,), "scale": (12,)}}
    for found, wanted in zip(*(jax.tree.leaves(value_and_gradients(norm)) for norm in (ours, flax_own)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6 * (2 + mean) * float(jnp.abs(wanted).max()))


def inputs_of_normalize(dtype, batch=2):
    """(what is differentiated, words of dropout) for two pictures of 8 and 4 channels."""
    draw = np.random.default_rng(0).normal
    pictures = tuple(jnp.asarray(3 + draw(size=(batch, 6, 5, n)), dtype) for n in (8, 4))
    rows = [jnp.asarray(1 + draw(size=shape), dtype) for shape in [(12,), (12,), (batch, 12), (batch, 12)]]
    return (pictures, *rows), tuple(jax.random.bits(jax.random.key(1), (2, batch), jnp.uint32))


def plain_normalize(pictures, scale, bias, factor, shift, kept, silu, groups=3, rate=0.25):
    """The parts one after the other, of a mask that is an array."""
    x = jnp.concatenate(pictures, -1) * factor[:, None, None, :] + shift[:, None, None, :]
    grouped = x.reshape(*x.shape[:3], groups, -1)
    mean, variance = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (jnp.mean, jnp.var))
    y = ((grouped - mean) / jnp.sqrt(variance + 1e-5)).reshape(x.shape) * scale[None, None, None] + bias[
        None, None, None
    ]
    y = nn.silu(y) if silu else y
    return y if kept is None else jnp.where(kept, y / (1 - rate), 0)


def our_normalize(pictures, scale, bias, factor, shift, words, silu):
    options = {"factor": factor, "shift": shift, "silu": silu, "words": words, "rate": 0.25}
    return normalization.normalize(pictures, scale, bias, 3, jnp.dtype(pictures[0].dtype), **options)


def value_and_gradients(normalize, inputs, dropped, silu):
    def loss(inputs):
        y = normalize(*inputs, dropped, silu)
        return jnp.sum(jnp.sin(jnp.arange(y.size).reshape(y.shape)) * y.astype(jnp.float32)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
    return jax.tree.leaves((y, gradients))


@pytest.mark.parametrize("whole", [True, False])
def test_normalize_is_what_its_parts_are(whole):
    with jax.enable_x64(True):
        inputs, words = inputs_of_normalize(jnp.float64)
        kept = dropout.kept(words, (2, 6, 5, 12), 0.25)
        assert 0.6 < np.mean(kept) < 0.9
        words, kept = (words, kept) if whole else (None, None)
        ours, plain = (our_normalize, inputs, words, whole), (plain_normalize, inputs, kept, whole)
        for found, wanted in zip(*(value_and_gradients(*case) for case in (ours, plain)), strict=True):
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * float(jnp.abs(wanted).max()))
    exact = value_and_gradients(plain_normalize, inputs_of_normalize(jnp.float32)[0], kept, whole)
    for dtype, bound in [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)]:
        narrow = inputs_of_normalize(dtype)[0]
        for found, wanted in zip(value_and_gradients(our_normalize, narrow, words, whole), exact, strict=True):
            assert found.dtype == dtype
            assert float(jnp.abs(found.astype(jnp.float32) - wanted).max()) <= bound * float(jnp.abs(wanted).max())


def test_normalize_under_remat_in_a_scan_in_shard_map():
    (pictures, scale, bias, factor, shift), words = inputs_of_normalize(jnp.float32, batch=4)
    weight = jnp.sin(jnp.arange(4 * 6 * 5 * 12, dtype=jnp.float32)).reshape(4, 6, 5, 12)

    def loss(shared, own, words, weight):
        pictures, shift = own
        y = jax.checkpoint(our_normalize, static_argnums=6)(pictures, *shared, shift, words, True)
        return jnp.sum(weight * y)

    shared, own = (scale, bias, factor[:1]), (pictures, shift)
    wanted = jax.jit(jax.grad(loss, argnums=(0, 1)))(shared, own, words, weight)

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,)),
        in_specs=(P(), P("data"), P("data"), P("data")), out_specs=(P(), P("data")),
    )  # fmt: skip
    def sharded(shared, own, words, weight):
        def body(total, row):
            to_shared, to_own = jax.grad(loss, argnums=(0, 1))(shared, *row)
            return jax.tree.map(jnp.add, total, to_shared), to_own

        rows = jax.tree.map(lambda a: a[:, None], (own, words, weight))
        total, to_own = lax.scan(body, jax.tree.map(jnp.zeros_like, shared), rows)
        return total, jax.tree.map(lambda a: a[:, 0], to_own)

    for found, expected in zip(*map(jax.tree.leaves, (sharded(shared, own, words, weight), wanted)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_pictures_of_one_colour_have_no_variance(dtype):
    for value in (0.0, 77.5, 201.0, 3072.0):
        pictures = (jnp.full((1, 12, 10, 12), value, dtype),)

        def value_of(pictures):
            y = normalization.normalize(pictures, jnp.ones(12), jnp.full(12, 3.0), 3, jnp.dtype(jnp.float32))
            return jnp.sum(y * jnp.arange(12.0)[None, None, None]), y

        (_, y), gradient = jax.value_and_grad(value_of, has_aux=True)(pictures)
        np.testing.assert_allclose(y, 3, atol=5e-4 * value)
        assert np.all(np.isfinite(np.float32(gradient[0])))


def test_dense_of_pictures_side_by_side_is_flax_own():
    draw = np.random.default_rng(0).normal
    pictures = [jnp.asarray(draw(size=(2, 3, 3, n)), jnp.float32) for n in (4, 2)]
    types = {"dtype": jnp.float32, "param_dtype": jnp.float32, "kernel_init": nn.initializers.orthogonal()}
    ours, flax_own = layers.Dense(5, **types), nn.Dense(5, **types)
    params = flax_own.init(jax.random.key(0), jnp.concatenate(pictures, -1))
    params["params"]["bias"] = jnp.arange(5.0)
    started = ours.init(jax.random.key(0), *pictures)
    np.testing.assert_array_equal(started["params"]["kernel"], params["params"]["kernel"])
    wanted = flax_own.apply(params, jnp.concatenate(pictures, -1))
    np.testing.assert_allclose(ours.apply(params, *pictures), wanted, atol=1e-5)


def test_fused_attention_is_asked_for_what_is_computed_without_it(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 16), jnp.bfloat16)
    attention = layers.Attention(
        norm_groups=4, num_heads=2, qkv_bias=True, dtype=jnp.bfloat16, param_dtype=jnp.float32,
        kernel_init=nn.initializers.lecun_normal(),
    )  # fmt: skip
    params = attention.init(jax.random.key(1), x)
    plain = attention.apply(params, x)
    fused = jax.nn.dot_product_attention
    asked = []

    def stand_in(*inputs, implementation):
        asked.append(implementation)
        return fused(*inputs)

    monkeypatch.setattr(layers, "_has_cudnn_attention", lambda q: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    np.testing.assert_allclose(
        np.float32(attention.apply(params, x)), np.float32(plain), atol=2e-2 * float(jnp.abs(plain).max())
    )
    assert asked == ["cudnn"]


def test_a_part_that_is_judged_as_the_whole_is_a_part_of_its_result():
    attention = layers.Attention(4, 2, True, jnp.float32, jnp.float32, nn.initializers.lecun_normal())
    whole = jax.random.normal(jax.random.key(0), (1, 6, 8, 16))
    params = attention.init(jax.random.key(1), whole)
    result, statistics = attention.apply(params, whole, mutable="statistics")
    parts = jnp.concatenate([whole[:, 2:5, :4], whole[:, 3:, 4:]])
    expected = jnp.concatenate([result[:, 2:5, :4], result[:, 3:, 4:]])
    np.testing.assert_allclose(attention.apply(params | statistics, parts), expected, atol=1e-5)
    assert jnp.abs(attention.apply(params, parts) - expected).max() > 0.05


def test_narrow_attention_has_narrow_products():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 16))

    def attention(dtype):
        return layers.Attention(4, 1, True, dtype, jnp.float32, nn.initializers.lecun_normal())

    def gradient(dtype):
        return jax.grad(
            lambda params, x: jnp.sum(jnp.sin(attention(dtype).apply(params, x).astype(jnp.float32))), (0, 1)
        )

    params = attention(jnp.float32).init(jax.random.key(1), x)
    program = jax.jit(gradient(jnp.bfloat16)).lower(params, x.astype(jnp.bfloat16)).as_text()
    operands = re.findall(r"dot_general.*: \(tensor<[^>]*x(\w+)>, tensor<[^>]*x(\w+)>\)", program)
    assert len(operands) >= 12 and set(operands) == {("bf16", "bf16")}
    found, wanted = (gradient(dtype)(params, x.astype(dtype)) for dtype in (jnp.bfloat16, jnp.float32))
    for ours, exact in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        assert float(jnp.abs(ours.astype(jnp.float32) - exact).max()) <= 0.05 * float(jnp.abs(exact).max())
