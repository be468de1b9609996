"""The device mesh, and how batches and training state are laid out on it."""

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dream_jax.errors import UserError

# Rows of a batch are split over both axes; state may be split over "shard".
BATCH = P(("data", "shard"))
AXES = ("data", "shard")

# For a leaf of fewer elements the memory that splitting saves is not worth its collective.
_SMALLEST_SPLIT = 2**14


def make_mesh(shard: int = 1, devices=None) -> jax.sharding.Mesh:
    """All devices as a mesh ('data', 'shard') with `shard` of them along the second axis."""
    devices = jax.devices() if devices is None else devices
    if len(devices) % shard:
        raise UserError(f"mesh.shard = {shard}: it must divide the number of devices, {len(devices)}")
    return jax.make_mesh((len(devices) // shard, shard), AXES, (AxisType.Auto,) * 2, devices=devices)


def check_batch(batch_size: int, accumulation: int, devices: int) -> None:
    """Raises UserError where a batch cannot be cut into `accumulation` microbatches alike on all devices."""
    parts = devices * accumulation
    if batch_size % parts:
        product = f"devices x accumulation = {devices} x {accumulation} = {parts}"
        raise UserError(f"batch_size = {batch_size}: it must divide by {product}")


def state_specs(state, mesh, smallest: int = _SMALLEST_SPLIT):
    """A PartitionSpec for every leaf: of the dimensions that divide by 'shard', the largest is split over it.

    Leaves of fewer than `smallest` elements, and those without such a dimension, stay whole.
    """
    size = mesh.shape["shard"]

    def spec(leaf):
        if size == 1 or leaf.size < smallest:
            return P()
        fitting = [d for d in range(leaf.ndim) if leaf.shape[d] % size == 0]
        if not fitting:
            return P()
        split = max(fitting, key=lambda d: leaf.shape[d])
        return P(*(None,) * split, "shard")

    return jax.tree.map(spec, state)


def named(specs, mesh):
    """The NamedShardings for a tree of PartitionSpecs."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def on_host(tree):
    """The whole arrays of a tree, on every process; all processes call it."""

    def whole(leaf):
        if not getattr(leaf, "is_fully_addressable", True):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def from_host(array, layout):
    """An array that all processes have, laid out on the devices."""
    return jax.make_array_from_callback(array.shape, layout, array.__getitem__)


def sum_to_specs(tree, specs):
    """Inside shard_map: the sums of all devices' leaves, of which each device keeps the part that the leaf's spec says.

    Leaves that stay whole share one all-reduce. A split leaf is first summed and cut over 'shard', and then its parts
    are summed over 'data'. With the later gathering of its parts that moves no more bytes than a whole leaf.
    """
    leaves, structure = jax.tree.flatten(tree)
    specs = structure.flatten_up_to(specs)
    whole = [leaf for leaf, spec in zip(leaves, specs, strict=True) if "shard" not in spec]
    parts = [
        lax.psum_scatter(leaf, "shard", scatter_dimension=spec.index("shard"), tiled=True)
        for leaf, spec in zip(leaves, specs, strict=True)
        if "shard" in spec
    ]
    whole, parts = iter(lax.psum(whole, AXES)), iter(lax.psum(parts, "data"))
    return structure.unflatten([next(parts if "shard" in spec else whole) for spec in specs])


def meet(mesh) -> None:
    """Sums a number over all devices and over each axis, so that their groups of processes exist from then on.

    On CPUs the processes of a group must come to their first sum within 30 s. Compiling may take minutes, and not the
    same time in all processes, so this is done before.
    """

    def sums():
        alone = lax.pcast(1.0, AXES, to="varying")
        return lax.psum(alone, AXES) + lax.psum(lax.psum(alone, "data"), "shard")

    jax.block_until_ready(jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=(), out_specs=P()))())
