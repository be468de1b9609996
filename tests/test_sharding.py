import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from dream_jax import sharding
from dream_jax.errors import UserError


def mesh_of(data, shard):
    return AbstractMesh((data, shard), sharding.AXES, (AxisType.Auto,) * 2)


def test_the_mesh_has_both_axes_on_one_device():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assert mesh.axis_names == ("data", "shard") and mesh.shape == {"data": 1, "shard": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_shards_must_divide_the_devices():
    with pytest.raises(UserError, match=r"mesh\.shard = 3"):
        sharding.make_mesh(3, devices=jax.devices()[:1])


STATE = {
    "kernel": jax.ShapeDtypeStruct((3, 3, 64, 256), jnp.float32),
    "first of two equal": jax.ShapeDtypeStruct((256, 256), jnp.float32),
    "largest does not divide": jax.ShapeDtypeStruct((257, 128), jnp.float32),
    "nothing divides": jax.ShapeDtypeStruct((127, 257), jnp.float32),
    "small": jax.ShapeDtypeStruct((8, 8), jnp.float32),
    "scalar": jax.ShapeDtypeStruct((), jnp.int32),
}


def test_each_leaf_is_split_along_its_largest_dimension_that_divides():
    assert sharding.state_specs(STATE, mesh_of(2, 4)) == {
        "kernel": P(None, None, None, "shard"),
        "first of two equal": P("shard"),
        "largest does not divide": P(None, "shard"),
        "nothing divides": P(),
        "small": P(),
        "scalar": P(),
    }


def test_one_shard_splits_nothing():
    assert set(sharding.state_specs(STATE, mesh_of(8, 1)).values()) == {P()}


def test_specs_become_shardings_leaf_by_leaf():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    named = sharding.named({"a": P(), "b": [P("shard")]}, mesh)
    assert named["a"].spec == P() and named["b"][0].spec == P("shard") and named["a"].mesh == mesh


def test_gradients_are_summed_over_all_devices_and_cut_to_their_specs():
    # Two axes of vmap stand in for 2 x 2 devices.
    specs = {"whole": P(), "split first": P("shard"), "split second": P(None, "shard"), "also whole": P()}
    shape = len(specs), 2, 2, 4, 6
    local = dict(zip(specs, np.random.default_rng(0).standard_normal(shape).astype(np.float32), strict=True))
    summed = functools.partial(sharding.sum_to_specs, specs=specs)
    over_shard = jax.vmap(summed, axis_name="shard")
    results = jax.vmap(over_shard, axis_name="data")(local)
    for name, spec in specs.items():
        total = local[name].sum((0, 1))
        parts = np.split(total, 2, axis=spec.index("shard")) if "shard" in spec else [total, total]
        for data in range(2):
            for shard in range(2):
                np.testing.assert_allclose(results[name][data, shard], parts[shard], rtol=1e-5, atol=1e-6)
