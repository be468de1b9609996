"""A tree of arrays as one buffer for each dtype: hundreds of small operations on its leaves become one.

A state is flat on the devices, where the optimizer, the average, norms, sums over devices and checksums work on whole
buffers. The network sees the tree, and so does the disk.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from dream_jax.runtime import sharding

# Elements. Leaves of a multiple of so many begin at one, which is 128 bytes in float32: kernels read them in one piece.
_ALIGNED = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Where each leaf of a tree lies in the buffers. `layout_of` makes one for like trees: it is compared by identity.

    Attributes:
      structure: of the tree.
      leaves: the shapes and dtypes, in the tree's order.
      order: {dtype: the numbers of its leaves, as they follow each other in its buffer}.
      starts: of each leaf, its first element's place in its buffer.
      used: {dtype: elements of its leaves}.
      sizes: {dtype: elements of its buffer}.
    """

    structure: jax.tree_util.PyTreeDef
    leaves: tuple[jax.ShapeDtypeStruct, ...]
    order: dict[str, list[int]]
    starts: tuple[int, ...]
    used: dict[str, int]
    sizes: dict[str, int]

    def flatten(self, tree) -> "Flat":
        """A tree of this layout as buffers, of jax where its leaves are, else of numpy; filled up with zeros."""
        leaves = self.structure.flatten_up_to(tree)
        xp = jnp if any(isinstance(leaf, jax.Array) for leaf in leaves) else np
        buffers = {}
        for dtype, order in self.order.items():
            filling = self.sizes[dtype] - self.used[dtype]
            zeros = [xp.zeros(filling, dtype)] if filling else []
            buffers[dtype] = xp.concatenate([leaves[number].reshape(-1) for number in order] + zeros)
        return Flat(buffers, self)


@functools.cache
def _layout(structure, shapes, dtypes, multiple):
    leaves = tuple(map(jax.ShapeDtypeStruct, shapes, map(jnp.dtype, dtypes)))
    order, used, starts = {}, dict.fromkeys(sorted(set(dtypes)), 0), [0] * len(leaves)
    # Odd sizes come last, so that they displace no others.
    for number in sorted(range(len(leaves)), key=lambda n: leaves[n].size % _ALIGNED > 0):
        dtype = dtypes[number]
        order.setdefault(dtype, []).append(number)
        starts[number], used[dtype] = used[dtype], used[dtype] + leaves[number].size
    sizes = {dtype: math.ceil(size / multiple) * multiple for dtype, size in used.items()}
    return Layout(structure, leaves, order, tuple(starts), used, sizes)


def layout_of(tree, multiple: int = 1) -> Layout:
    """The layout of a tree of arrays, with buffers of a multiple of so many elements."""
    leaves, structure = jax.tree.flatten(tree)
    return _layout(structure, tuple(leaf.shape for leaf in leaves), tuple(leaf.dtype.name for leaf in leaves), multiple)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["buffers"], meta_fields=["layout"])
@dataclasses.dataclass(frozen=True)
class Flat:
    """A tree in buffers {dtype: [N]}: itself a tree of these, so that `jax.tree.map`, jit and optax take it as any."""

    buffers: dict[str, jax.Array]
    layout: Layout

    def tree(self):
        """The tree: of slices inside a jitted function, of views where the buffers are numpy's."""
        layout = self.layout
        slices = (
            self.buffers[leaf.dtype.name][start : start + leaf.size].reshape(leaf.shape)
            for leaf, start in zip(layout.leaves, layout.starts, strict=True)
        )
        return layout.structure.unflatten(slices)


def flatten(tree, multiple: int = 1) -> Flat:
    """A tree of arrays as buffers of a multiple of so many elements."""
    return layout_of(tree, multiple).flatten(tree)


def without_filling(updates: Flat) -> Flat:
    """With zeros in what fills the buffers up; traceable."""
    used = updates.layout.used

    def cut(dtype, buffer):
        return buffer if used[dtype] == buffer.size else jnp.where(jnp.arange(buffer.size) < used[dtype], buffer, 0)

    return Flat({dtype: cut(dtype, buffer) for dtype, buffer in updates.buffers.items()}, updates.layout)


def nodes(state) -> list:
    """The flat parts of a state, and its other leaves."""
    return jax.tree.leaves(state, is_leaf=_is_flat)


def _is_flat(node):
    return isinstance(node, Flat)


def map_flat(function, state):
    """A state with `function(part)` for its flat parts; its other leaves as they are."""
    return jax.tree.map(lambda node: function(node) if _is_flat(node) else node, state, is_leaf=_is_flat)


def shapes(state):
    """A state with the trees of its flat parts, of ShapeDtypeStructs."""
    return map_flat(lambda part: part.layout.structure.unflatten(part.layout.leaves), state)


def trees(state):
    """A state with the trees of its flat parts, on the host. All processes call it.

    The devices compute nothing for it: they may have no room for a second state.
    """
    return map_flat(lambda part: sharding.on_host(part).tree(), state)


def placed(state, target):
    """A state with the parts flat that are so in `target`, laid out as there; in `state` they are trees on the host."""

    def place(part, tree):
        buffers = part.layout.flatten(tree)
        return jax.tree.map(lambda leaf, buffer: sharding.from_host(buffer, leaf.sharding), part, buffers)

    return jax.tree.map(
        lambda node, given: place(node, given) if _is_flat(node) else given, target, state, is_leaf=_is_flat
    )
