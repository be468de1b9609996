import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from benchmarks import scaling
from dream_jax.errors import UserError
from dream_jax.runtime import sharding


def mesh_of(data, shard):
    return AbstractMesh((data, shard), sharding.AXES, (AxisType.Auto,) * 2)


def test_the_mesh_has_both_axes_on_one_device():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assert mesh.axis_names == ("data", "shard") and mesh.shape == {"data": 1, "shard": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_shards_must_divide_the_devices():
    with pytest.raises(UserError, match=r"mesh\.shard = 3"):
        sharding.make_mesh(3, devices=jax.devices()[:1])


def test_a_batch_must_divide_over_devices_and_microbatches():
    sharding.check_batch(8, 2, 4)
    with pytest.raises(UserError, match=r"batch_size = 8: it must divide by devices x accumulation = 4 x 4 = 16"):
        sharding.check_batch(8, 4, 4)


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


# The compiled step of a network with leaves large enough to be split, on meshes of 4 x 1 and 2 x 2 devices.
COMPILED = """
import json
import tiny
from benchmarks import scaling
from dream_jax.runtime import sharding

changes = "network.channels=64", "objective.p=None", "optimizer.clip=1.0"
config = tiny.tiny_config(*changes)
for shard in (1, 2):
    prepared = scaling.prepare(config, sharding.make_mesh(shard))
    layout = scaling.Layout(4, shard)
    print(json.dumps(layout._asdict() | scaling.facts_of(prepared, layout)))
"""


def test_a_step_moves_at_most_twice_its_parameters_and_reduces_once():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": "tests:."}
    output = subprocess.run(
        [sys.executable, "-c", COMPILED], check=True, cwd=tiny.ROOT, env=environment, stdout=subprocess.PIPE
    ).stdout
    whole, split = map(json.loads, output.splitlines())
    assert scaling.mistakes(whole) == scaling.mistakes(split) == []
    assert whole["split_leaves"] == 0 and split["split_leaves"] > 0
    # Kernels are nearly all of the parameters, so two shards hold little more than half.
    assert split["state"] < 0.6 * whole["state"]
    # Every split parameter is cut once and gathered once.
    kinds = [each["kind"] for each in split["collectives"]]
    assert kinds.count("reduce-scatter") == kinds.count("all-gather") == split["split_leaves"] / 4


@pytest.mark.parametrize(
    ("line", "kind", "group", "size", "sent"),
    [
        ("%a = f32[4,2]{1,0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add", "all-reduce", 4, 32, 48),
        ("%a = (f32[], bf16[8]{0}) all-reduce-start(%x, %y), replica_groups=[2,2]<=[4]", "all-reduce", 2, 20, 20),
        ("%a = f32[2]{0} reduce-scatter(%x), replica_groups={{0,1},{2,3}}, dimensions={0}", "reduce-scatter", 2, 16, 8),
        ("%a = (f32[2], f32[4]) all-gather-start(%x), replica_groups=[1,2]<=[2]", "all-gather", 2, 16, 8),
        (
            "%a = f32[4]{0} all-gather(%x), replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}, d={0}",
            *("all-gather", 4, 16, 12),
        ),
    ],
)
def test_collectives_are_read_from_a_compiled_program(line, kind, group, size, sent):
    program = f"ENTRY %main {{\n  {line}\n  %b = f32[4]{{0}} add(%all-reduce.1, %a)\n}}"
    assert scaling.collectives(program) == [{"kind": kind, "group": group, "bytes": size, "sent": sent}]
