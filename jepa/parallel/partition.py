"""Partition tables: which dimension of which parameter is cut over which mesh axis.

A table is a sequence of `(pattern, logical names)` rows. The pattern is a regular expression that
must match the whole "/"-joined path of a parameter; the first row that matches decides. The names
say what each dimension *is* ("embed", "mlp", ...); `RULES` alone says which mesh axis that means.
A layer-scanned parameter has a leading dimension "layers", which is never cut.

Each module owns the table of its own parameters and a model composes them with `prefixed`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jepa.errors import UserError

Names = tuple[str | None, ...]
Table = Sequence[tuple[str, Names]]

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    # Dimensions of parameters.
    "layers": None,  # the leading dimension of a scanned stack: every device runs every layer
    "embed": "fsdp",  # the width of the residual stream
    "mlp": "tensor",  # the hidden width of an MLP
    "heads": "tensor",  # attention heads, or heads * head_dim where a kernel joins them
    "kv_heads": "tensor",  # heads of keys and values under grouped attention
    "head_dim": None,
    "vocab": "tensor",  # rows of a token table
    "shared": None,  # the space in which both sides are compared; small, and needed whole
    # Dimensions of activations.
    "batch": ("data", "fsdp"),
    "tokens": "context",
}

# A number of tokens follows from the size of a clip and from how much of it is seen: the compiler
# fills up the last piece where context does not divide it.
_UNEVEN = ("tokens",)


class PartitionError(UserError):
    """A partition table that does not fit its parameters."""


def prefixed(name: str, table: Table) -> list[tuple[str, Names]]:
    """Places a module's table under `name`, which is taken literally (it may hold "/")."""
    return [(f"{re.escape(name)}/(?:{pattern})", names) for pattern, names in table]


def specs(table: Table, tree: Any) -> Any:
    """Gives every parameter its `PartitionSpec`, in a tree of the same structure.

    Args:
      table: rows as in the module's docstring.
      tree: nested dict of arrays or `jax.ShapeDtypeStruct`.

    Raises:
      PartitionError: a parameter that no row matches, a row that decides for no parameter, a row
        with another number of dimensions than its parameter, an unknown logical name, or two
        dimensions on the same mesh axis.
    """
    rows = [(re.compile(pattern), pattern, names) for pattern, names in table]
    used: set[int] = set()

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        name = path_name(path)
        for i, (regex, pattern, names) in enumerate(rows):
            if regex.fullmatch(name):
                used.add(i)
                return _spec_of_row(pattern, names, name, leaf.shape)
        raise PartitionError(
            f"parameter {name} of shape {leaf.shape} matches no row of its partition table; "
            f"add a row that names its {len(leaf.shape)} dimensions."
        )

    result = jax.tree_util.tree_map_with_path(spec, tree)
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for i, (regex, pattern, _) in enumerate(rows):
        if i in used:
            continue
        shadowed = [name for name in paths if regex.fullmatch(name)]
        if shadowed:
            raise PartitionError(
                f"partition row {pattern!r} decides for no parameter, since earlier rows match "
                f"{shadowed[0]} first; remove it or move it up."
            )
        raise PartitionError(
            f"partition row {pattern!r} matches no parameter; remove it, or mend its pattern."
        )
    return result


def shardings(mesh: Mesh, table: Table, tree: Any) -> Any:
    """Gives every parameter its `NamedSharding`; see `specs`.

    Raises:
      PartitionError: as `specs`.
      UserError: a dimension is no multiple of the mesh axes that cut it.
    """

    def sharding(path: Any, leaf: Any, spec: PartitionSpec) -> NamedSharding:
        spec = _on_mesh(spec, mesh)
        _check_divides(f"parameter {path_name(path)}", leaf.shape, spec, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree, specs(table, tree))


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Asks the compiler to lay out an activation over the mesh of `jax.set_mesh`.

    Does nothing where no mesh is set, on a mesh of one device, and for axes that an enclosing
    `jax.shard_map` has made manual. Works inside `nn.scan` and `nn.remat`; the cotangent gets the
    same layout.

    Args:
      x: an array with one dimension for each name.
      logical: a name of `RULES` for each dimension; None replicates that dimension.

    Raises:
      PartitionError: an unknown name, or another number of names than dimensions.
      UserError: a dimension, other than one of tokens, is no multiple of the mesh axes that cut it.
    """
    spec = _spec_of_names(logical, f"an activation of shape {x.shape}")
    if len(logical) != x.ndim:
        raise PartitionError(
            f"an activation of shape {x.shape} is constrained by {len(logical)} names {logical}; "
            f"give one name for each dimension."
        )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = _on_mesh(spec, mesh)
    named = zip(logical, spec, strict=True)
    even = PartitionSpec(*(None if name in _UNEVEN else entry for name, entry in named))
    _check_divides(f"activation {logical}", x.shape, even, mesh)
    return jax.lax.with_sharding_constraint(x, spec)


def axes(logical: str) -> tuple[str, ...]:
    """The axes, of more than one device, of the mesh of `jax.set_mesh` that cut this name.

    None without a mesh; those that an enclosing `jax.shard_map` works by hand are left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    spec = _on_mesh(_spec_of_names((logical,), "a dimension"), mesh)
    return tuple(axis for axis in _as_tuple(spec[0]) if mesh.shape[axis] > 1)


def pieces(logical: str) -> int:
    """How many pieces a dimension of this name is cut into under the mesh of `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes(logical))


def path_name(path: Any) -> str:
    """The "/"-joined path that patterns match, from a JAX key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _spec_of_row(pattern: str, names: Names, path: str, shape: Sequence[int]) -> PartitionSpec:
    if len(names) != len(shape):
        raise PartitionError(
            f"parameter {path} of shape {tuple(shape)} has {len(shape)} dimensions and partition "
            f"row {pattern!r} names {len(names)} {names}; name each dimension once "
            f'(a scanned stack has a leading "layers").'
        )
    return _spec_of_names(names, f"parameter {path} of shape {tuple(shape)}")


def _spec_of_names(names: Names, what: str) -> PartitionSpec:
    unknown = [name for name in names if name is not None and name not in RULES]
    if unknown:
        raise PartitionError(
            f"{what} names the dimension {unknown[0]!r}, which is not a logical axis; "
            f"use None or one of {', '.join(RULES)}."
        )
    axes = [None if name is None else RULES[name] for name in names]
    flat = [axis for entry in axes for axis in _as_tuple(entry)]
    twice = [axis for axis in dict.fromkeys(flat) if flat.count(axis) > 1]
    if twice:
        raise PartitionError(
            f"{what} has two dimensions on mesh axis {twice[0]!r} by the names {names}; "
            f"replace one of the names by None."
        )
    return PartitionSpec(*axes)


def _as_tuple(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _on_mesh(spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Drops axes that the mesh lacks, or that an enclosing `shard_map` works by hand."""
    usable = set(mesh.axis_names) - set(mesh.manual_axes)
    entries: list[Any] = []
    for entry in spec:
        kept = tuple(axis for axis in _as_tuple(entry) if axis in usable)
        entries.append(kept if len(kept) > 1 else kept[0] if kept else None)
    return PartitionSpec(*entries)


def _check_divides(
    what: str, shape: Sequence[int], spec: PartitionSpec, mesh: Mesh | AbstractMesh
) -> None:
    for i, entry in enumerate(spec):
        count = math.prod(mesh.shape[axis] for axis in _as_tuple(entry))
        if shape[i] % count:
            axes = " * ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in _as_tuple(entry))
            raise UserError(
                f"{what} of shape {tuple(shape)} has {shape[i]} in dimension {i}, which {axes} "
                f"does not divide; change the mesh, or make it a multiple of {count}."
            )
