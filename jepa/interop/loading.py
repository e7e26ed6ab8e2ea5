"""A checkpoint's tensors as our parameters, straight into the devices that will hold them.

Parameters are made one after another. Beyond the shards that this process holds, the host has in
memory one tensor of theirs; where devices have memory of their own, also the shards of the one
parameter on its way to them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from jepa.errors import UserError
from jepa.interop.layout import Layout, Leaf, Piece
from jepa.interop.tensors import Tensors

Tree = dict[str, Any]
_ALIGNMENT = 64  # bytes; JAX on CPU takes arrays so aligned without a copy
Place = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Pending:
    """A parameter that is read when its place is known.

    Attributes:
      shape: of the parameter.
      dtype: in the checkpoint.
      get: reads it, into a sharding or as a NumPy array, in a type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    get: Callable[[Sharding | None, np.dtype], Any]

    def read(self, sharding: Sharding | None = None, dtype: Any = None) -> Any:
        """Returns a jax array, or a NumPy array where no sharding is given."""
        return self.get(sharding, self.dtype if dtype is None else np.dtype(dtype))

    def rows(self, first: int, last: int) -> Pending:
        """Returns rows `first` to `last - 1` of it, for which all of it is read."""

        def get(sharding: Sharding | None, dtype: np.dtype) -> Any:
            some = self.get(None, dtype)[first:last]
            if sharding is None:
                return some
            return jax.make_array_from_callback(some.shape, sharding, some.__getitem__)

        return Pending((last - first, *self.shape[1:]), self.dtype, get)


def pending(tensors: Tensors, layout: Layout) -> Tree:
    """Returns all parameters of a layout, to be read one by one.

    Raises:
      UserError: the checkpoint is not that of the layout (`Layout.check`), or mixes types within a
        parameter.
    """
    layout.check(tensors)

    def one(path: str, part: Leaf) -> Pending:
        def get(sharding: Sharding | None, dtype: np.dtype) -> Any:
            if sharding is not None:
                return _sharded(tensors, part, sharding, dtype)
            return _fill(tensors, part, [tuple(slice(0, n) for n in part.shape)], dtype)[0]

        return Pending(part.shape, leaf_dtype(tensors, path, part), get)

    return unflatten({path: one(path, part) for path, part in layout.leaves.items()})


def load(tensors: Tensors, layout: Layout, *, shardings: Any = None, dtype: Any = None) -> Tree:
    """Reads all parameters of a layout.

    Args:
      tensors: the opened checkpoint; each of its tensors must be accounted for.
      layout: which of them make up which parameter.
      shardings: nested dict of `jax.sharding.Sharding`, one for each parameter; each process
        then reads what its devices hold. NumPy arrays are made when absent.
      dtype: of the parameters; that of the checkpoint when absent.

    Returns:
      A nested dict of jax arrays, or of NumPy arrays.

    Raises:
      UserError: the checkpoint is not that of the layout (`Layout.check`), or mixes types within a
        parameter and `dtype` is absent.
    """
    layout.check(tensors)
    flat_shardings = None if shardings is None else flatten(shardings)
    found: dict[str, Any] = {}
    for path, part in layout.leaves.items():
        wanted = leaf_dtype(tensors, path, part, dtype)
        if flat_shardings is None:
            whole = tuple(slice(0, n) for n in part.shape)
            found[path] = _fill(tensors, part, [whole], wanted)[0]
        else:
            found[path] = _sharded(tensors, part, flat_shardings[path], wanted)
    return unflatten(found)


def shapes(tensors: Tensors, layout: Layout, dtype: Any = None) -> Tree:
    """Returns the nested dict of `jax.ShapeDtypeStruct` that `load` would fill."""
    return unflatten(
        {
            path: jax.ShapeDtypeStruct(part.shape, leaf_dtype(tensors, path, part, dtype))
            for path, part in layout.leaves.items()
        }
    )


def leaf_dtype(tensors: Tensors, path: str, part: Leaf, dtype: Any = None) -> np.dtype:
    """Returns the type of a parameter: the one asked for, or that of all its pieces."""
    if dtype is not None:
        return np.dtype(dtype)
    found = {tensors.dtype(piece.theirs) for piece in part.pieces if piece.theirs in tensors}
    if len(found) > 1:
        names = ", ".join(sorted(map(str, found)))
        raise UserError(
            f"{tensors.path} mixes {names} in what becomes {path}; choose one with --dtype"
        )
    return found.pop() if found else np.dtype(np.float32)


def _sharded(tensors: Tensors, part: Leaf, sharding: Sharding, dtype: np.dtype) -> jax.Array:
    """Makes one parameter on the devices of a sharding."""
    indices = sharding.addressable_devices_indices_map(part.shape)
    places = {
        device: tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, part.shape, strict=True))
        for device, index in indices.items()
        if index is not None
    }
    # Devices that hold the same numbers are given the same array.
    distinct = list({_key(place): place for place in places.values()}.values())
    filled = _fill(tensors, part, distinct, dtype)
    by_place = {_key(p): array for p, array in zip(distinct, filled, strict=True)}
    del filled
    shards = [jax.device_put(by_place[_key(place)], device) for device, place in places.items()]
    # The next parameter's numbers must not be in memory before these have left it.
    jax.block_until_ready(shards)
    return jax.make_array_from_single_device_arrays(part.shape, sharding, shards)


def _key(place: Place) -> tuple[tuple[int, int], ...]:
    return tuple((s.start, s.stop) for s in place)


def _fill(tensors: Tensors, part: Leaf, places: list[Place], dtype: np.dtype) -> list[np.ndarray]:
    """Makes the parts of one parameter at some places; reads each tensor at most once."""
    arrays = [_empty([s.stop - s.start for s in place], dtype) for place in places]
    for piece in part.pieces:
        overlaps = [_overlap(piece, place) for place in places]
        touched = [overlap for overlap in overlaps if overlap is not None]
        if not touched:
            continue
        rows, block_rows, axis = _rows(piece, touched)
        # The rows that were read, as a block of ours that is shorter in one dimension.
        view = list(piece.view)
        view[piece.order[axis]] = block_rows.stop - block_rows.start
        block = tensors.read(piece.theirs, rows).reshape(view).transpose(piece.order)
        for array, place, overlap in zip(arrays, places, overlaps, strict=True):
            if overlap is None:
                continue
            source = list(overlap)
            source[axis] = slice(
                overlap[axis].start - block_rows.start, overlap[axis].stop - block_rows.start
            )
            target = tuple(
                slice(o.start + a - s.start, o.stop + a - s.start)
                for o, a, s in zip(overlap, piece.start, place, strict=True)
            )
            array[target] = block[tuple(source)]
        del block  # before the next is read
    return arrays


def _overlap(piece: Piece, place: Place) -> Place | None:
    """Returns the part of a piece's block that lies in a place of our leaf, None for none."""
    found = []
    for start, size, wanted in zip(piece.start, piece.block, place, strict=True):
        low, high = max(wanted.start - start, 0), min(wanted.stop - start, size)
        if low >= high:
            return None
        found.append(slice(low, high))
    return tuple(found)


def _rows(piece: Piece, overlaps: list[Place]) -> tuple[slice, slice, int]:
    """Finds which rows of their tensor some parts of its block need.

    Returns:
      The rows of the tensor; the same as a range of one of the block's dimensions; which one.
    """
    # The view's first dimension that is longer than one; it cuts the tensor's first dimension.
    outer = next((i for i, size in enumerate(piece.view) if size > 1), 0)
    axis = piece.order.index(outer)
    whole = slice(0, piece.view[outer])
    if not piece.shape or piece.shape[0] % max(piece.view[outer], 1):
        return slice(None), whole, axis
    each = piece.shape[0] // max(piece.view[outer], 1)
    if each * math.prod(piece.shape[1:]) != math.prod(piece.view[outer + 1 :]):
        return slice(None), whole, axis
    low, high = min(o[axis].start for o in overlaps), max(o[axis].stop for o in overlaps)
    return slice(low * each, high * each), slice(low, high), axis


def _empty(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """Returns an array, not filled, whose numbers begin where JAX likes them to."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested dict's leaves by "/"-joined path."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found.update(flatten(value, f"{prefix}{name}/"))
        else:
            found[f"{prefix}{name}"] = value
    return found


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """Returns the nested dict of leaves by "/"-joined path."""
    tree: Tree = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = value
    return tree
