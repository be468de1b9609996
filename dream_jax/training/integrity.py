"""Whether a restored state is what was saved: checksums of every array, and of the description that holds them.

orbax restores most flipped bits without an error. So a checkpoint's description holds, for each leaf of the state, the
shape, the dtype and two checksums, which are computed from the arrays on their devices before the save and again after
the restore. They find damage, not forgery.
"""

import functools
import hashlib
import itertools
import json
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dream_jax.errors import UserError
from dream_jax.runtime import sharding
from dream_jax.training import flat

# Elements of a buffer that are summed at once.
_PART = 2**16


def seal(about: dict, tree) -> dict:
    """A checkpoint's description with the leaves of its state, and with a checksum of the description itself."""
    about = about | {"leaves": describe(tree)}
    return about | {"crc32": _crc32(about)}


def unseal(about: dict) -> dict:
    """The description without its checksum; raises ValueError where it is not what was sealed.

    A description that was never sealed, as checkpoints had at first, is returned as it is: without "leaves".
    """
    # Damage may hide one of the two names.
    if "leaves" not in about and "crc32" not in about:
        return about
    sealed = {name: value for name, value in about.items() if name != "crc32"}
    if about.get("crc32") != _crc32(sealed) or "leaves" not in sealed:
        raise ValueError("its description is not what was saved")
    return sealed


def _crc32(about):
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def named_leaves(tree) -> dict:
    """{name: leaf} of a tree, like {"params['conv_in']['bias']": array}."""
    return {jax.tree_util.keystr(path).lstrip("."): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def digest(params) -> str:
    """SHA-256 of the weights' names, shapes and values. All processes take part where leaves are spread over them."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(sharding.on_host(leaf))
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array)
    return total.hexdigest()


def describe(tree) -> dict:
    """{name: {"shape", "dtype", "sums"}} of a tree of arrays, on whatever devices they are.

    Those of a flat part are of the leaves of its tree, and the same as if it were one.
    """
    sums = []
    for node in flat.nodes(tree):
        sums.extend(_sums_of_flat(node) if isinstance(node, flat.Flat) else [_computed(_summing, node)])
    return {
        name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "sums": of_leaf.tolist()}
        for (name, leaf), of_leaf in zip(named_leaves(flat.shapes(tree)).items(), jax.device_get(sums), strict=True)
    }


def _computed(make, array, *others):
    # One program for each shape, not one for all leaves: a network has hundreds of leaves and a dozen shapes.
    result = make(array.sharding)(array, *others)
    if len(array.sharding.device_set) > 1:
        # On CPUs, programs that sum over several devices block each other when many run at once.
        result.block_until_ready()
    return result


def _sums_of_flat(part):
    """The sums of all leaves of its tree: of the runs in the buffers that are of one leaf, added up on the host."""
    layout, sums = part.layout, np.zeros((len(part.layout.leaves), 2), np.uint32)
    for dtype, buffer in part.buffers.items():
        if not buffer.size:
            continue
        shards = buffer.sharding.mesh.shape["shard"] if _is_split(buffer.sharding) else 1
        leaf, *runs = _runs(layout, dtype, shards)
        np.add.at(sums, leaf, jax.device_get(_computed(_summing_runs, buffer, *runs)))
    return list(sums)


@functools.cache
def _runs(layout, dtype, shards):
    """Of each run in a buffer: its leaf, start in its shard, start in its leaf, and length. [shards * runs] each."""
    size = layout.sizes[dtype] // shards
    rows = [[] for _ in range(shards)]
    for shard, number in itertools.product(range(shards), layout.order[dtype]):
        start = layout.starts[number]
        end = min(start + layout.leaves[number].size, (shard + 1) * size)
        rows[shard] += [
            (number, at - shard * size, at - start, min(_PART, end - at))
            for at in range(max(start, shard * size), end, _PART)
        ]
    # Runs of no length make the rows alike.
    longest = max(map(len, rows))
    return np.array([row + [(0, 0, 0, 0)] * (longest - len(row)) for row in rows], np.int32).reshape(-1, 4).T


def part(leaves: dict, target) -> dict:
    """The described leaves of those fields of a state that a tree has, like `ema`."""
    fields = {_field(name) for name in named_leaves(target)}
    return {name: leaf for name, leaf in leaves.items() if _field(name) in fields}


def _field(name):
    return re.match(r"\w*", name)[0]


def check_shapes(folder, leaves: dict, target) -> None:
    """Raises UserError where described leaves have other names, shapes or dtypes than those of a tree."""
    wanted = {name: (leaf.dtype.name, list(leaf.shape)) for name, leaf in named_leaves(target).items()}
    there = {name: (leaf["dtype"], leaf["shape"]) for name, leaf in leaves.items()}
    for name in sorted(wanted.keys() | there.keys()):
        if wanted.get(name) != there.get(name):
            has, wants = (" ".join(map(str, side.get(name, ("nothing",)))) for side in (there, wanted))
            raise UserError(
                f"{folder}: this checkpoint cannot be restored: at {name} it has {has}, and {wants} is wanted"
            )


def difference(leaves: dict, tree) -> str | None:
    """What says that a tree's arrays are not those described, or None."""
    now = describe(tree)
    changed = [name for name, leaf in leaves.items() if now[name]["sums"] != leaf["sums"]]
    return f"{len(changed)} of {len(now)} arrays are not what was saved, {changed[0]} the first" if changed else None


def checksums(array):
    """uint32 [2]: the sums over all elements, modulo 2^32, of two functions of an element's bits and place; traceable.

    Integers, so the sums depend neither on the order nor on the devices. A change of one element always changes both
    sums, because each function is one-to-one; any other change is missed once in 2^64.
    """
    bits = _bits(array)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for dimension in range(bits.ndim):
        stride = np.uint32(np.prod(bits.shape[dimension + 1 :], dtype=np.uint64) % 2**32)
        place += lax.broadcasted_iota(jnp.uint32, bits.shape, dimension) * stride
    return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32) for mixed in _mixed(bits, place)])


def _bits(array):
    """The bits of an array's elements, uint32; of elements of 8 bytes [..., 2]."""
    size = array.dtype.itemsize
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    if size <= 4:
        return lax.bitcast_convert_type(array, f"uint{8 * size}").astype(jnp.uint32)
    return lax.bitcast_convert_type(array, jnp.uint32)


def _mixed(bits, place):
    return _mix(bits ^ _mix(place)), _mix(bits + _mix(place ^ np.uint32(0x9E3779B9)))


def _mix(x):
    """A one-to-one function of uint32 that looks random (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _checksums_of_runs(buffer, starts, places, lengths):
    """The `checksums` of runs in a buffer, uint32 [runs, 2], each with the places of its elements in its leaf."""
    size = min(_PART, buffer.size)

    def of_run(run):
        start, place, length = run
        # What is read ends where the buffer does; of it the run's elements are number 0 to length - 1.
        begin = jnp.minimum(start, buffer.size - size)
        number = begin - start + lax.iota(jnp.int32, size)
        bits = _bits(lax.dynamic_slice(buffer, [begin], [size])).reshape(size, -1)
        words = bits.shape[1]
        place = (place + number).astype(jnp.uint32)[:, None] * np.uint32(words) + lax.iota(jnp.uint32, words)[None]
        within = ((number >= 0) & (number < length))[:, None]
        return jnp.stack([jnp.sum(jnp.where(within, m, 0), dtype=jnp.uint32) for m in _mixed(bits, place)])

    return lax.map(of_run, (starts, places, lengths))


@functools.cache
def _summing(sharding):
    return jax.jit(checksums, out_shardings=_everywhere(sharding))


@functools.cache
def _summing_runs(sharding):
    summing = _checksums_of_runs
    if _is_split(sharding):
        summing = jax.shard_map(summing, mesh=sharding.mesh, in_specs=P("shard"), out_specs=P("shard"))
    return jax.jit(summing, out_shardings=_everywhere(sharding))


def _is_split(sharding):
    return isinstance(sharding, NamedSharding) and "shard" in sharding.spec


def _everywhere(sharding):
    return NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else sharding
