import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dream_jax.errors import UserError
from dream_jax.runtime import sharding
from dream_jax.training import integrity


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_a_changed_element_changes_both_checksums(dtype):
    values = np.asarray(jax.random.normal(jax.random.key(0), (3, 4)) * 3).astype(jnp.dtype(dtype))
    sums = jax.jit(checksums_of := integrity.checksums)
    before = np.asarray(sums(values))
    bits = 1 if dtype == "bool" else 8 * values.dtype.itemsize
    for element in range(0, values.size, 5):
        for bit in range(bits):
            flipped = values.copy()
            raw = flipped.reshape(-1)[element : element + 1].view(np.uint8)
            raw[bit // 8] ^= 1 << bit % 8
            assert np.all(np.asarray(sums(flipped)) != before)
    assert np.array_equal(before, checksums_of(jnp.asarray(values)))


def test_checksums_know_places():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    swapped = values.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    variants = values, swapped, values.T, np.zeros_like(values), np.zeros(11, np.float32)
    assert len({tuple(map(int, integrity.checksums(jnp.asarray(v)))) for v in variants}) == len(variants)


def test_checksums_do_not_depend_on_the_devices():
    values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    mesh = sharding.make_mesh()
    alone = integrity.describe({"x": jnp.asarray(values)})
    for spec in (P(), P(("data", "shard")), P(None, "data")):
        assert integrity.describe({"x": jax.device_put(values, NamedSharding(mesh, spec))}) == alone


def test_a_description_that_was_changed_is_found():
    about = {"config": {"rate": 0.1}, "data": "3 pictures"}
    sealed = integrity.seal(about, {"x": jnp.ones(3)})
    assert integrity.unseal(sealed) == about | {"leaves": integrity.describe({"x": jnp.ones(3)})}
    assert integrity.unseal(about) == about
    for name in sealed:
        for wrong in (
            sealed | {name: 1},
            {other: value for other, value in sealed.items() if other != name},
            {("x" if other == name else other): value for other, value in sealed.items()},
        ):
            with pytest.raises(ValueError, match="its description is not what was saved"):
                integrity.unseal(wrong)


def test_arrays_are_compared_with_their_description():
    tree = {"a": jnp.arange(3.0), "b": {"c": jnp.zeros((2, 2))}}
    leaves = integrity.describe(tree)
    assert list(leaves) == list(integrity.named_leaves(tree)) == ["['a']", "['b']['c']"]
    assert integrity.difference(leaves, tree) is None
    changed = integrity.difference(leaves, tree | {"b": {"c": jnp.ones((2, 2))}})
    assert changed == "1 of 2 arrays are not what was saved, ['b']['c'] the first"
    integrity.check_shapes("here", leaves, tree)
    for other, said in (
        (tree | {"a": jnp.arange(3)}, r"at \['a'\] it has float32 \[3\], and int32 \[3\] is wanted"),
        (tree | {"d": jnp.ones(1)}, r"at \['d'\] it has nothing, and float32 \[1\] is wanted"),
        ({"a": tree["a"]}, r"at \['b'\]\['c'\] it has float32 \[2, 2\], and nothing is wanted"),
    ):
        with pytest.raises(UserError, match=f"here: this checkpoint cannot be restored: {said}"):
            integrity.check_shapes("here", leaves, other)
