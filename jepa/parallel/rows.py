"""Rows of a global batch over a mesh: for the few functions that work device by device.

A function that communicates by its own plan (a ring, one all-reduce) runs under `jax.shard_map`.
The rows are cut over every axis of the mesh where their number allows it, so that a tensor or a
context axis shares the work instead of repeating it.

One rule for every loss: a batch that data and fsdp do not divide is not cut, and every device does
all the work (`rows`, `constrain_rows`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from jepa.parallel.mesh import AXES, BATCH_AXES
from jepa.parallel.partition import constrain, pieces


@dataclasses.dataclass(frozen=True)
class Rows:
    """How the leading dimension of some arrays is cut.

    Attributes:
      axes: mesh axes that cut it, the first one slowest; empty where nothing is cut.
      pieces: number of equal pieces.
    """

    axes: tuple[str, ...] = ()
    pieces: int = 1

    @property
    def spec(self) -> PartitionSpec:
        """The layout of an array whose leading dimension is cut."""
        return PartitionSpec(self.axes) if self.axes else PartitionSpec()

    def map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable:
        """Runs `function` on the pieces; specs are `self.spec` or `PartitionSpec()` (whole).

        A result with a whole spec must be equal on all devices, which nobody checks.
        """
        if not self.axes:
            return function
        return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def index(self) -> jax.Array | int:
        """Which piece this device holds; inside `map`."""
        return jax.lax.axis_index(self.axes) if self.axes else 0

    def sum(self, x: Any) -> Any:
        """Sums over the pieces, on every device; inside `map`."""
        return jax.lax.psum(x, self.axes) if self.axes else x

    def max(self, x: Any) -> Any:
        """Takes the maximum over the pieces, on every device; inside `map`."""
        return jax.lax.pmax(x, self.axes) if self.axes else x

    def gather(self, x: Any) -> Any:
        """Puts the pieces of all devices together, on every device; inside `map`."""
        if not self.axes:
            return x
        return jax.tree.map(lambda a: jax.lax.all_gather(a, self.axes, tiled=True), x)

    def scatter_sum(self, x: Any) -> Any:
        """Sums whole arrays over devices and leaves each its piece; inside `map`."""
        if not self.axes:
            return x
        return jax.tree.map(
            lambda a: jax.lax.psum_scatter(a, self.axes, scatter_dimension=0, tiled=True), x
        )

    def pass_on(self, x: Any) -> Any:
        """Hands each device's arrays to the device before it, around the ring; inside `map`.

        After `k` calls a device holds what piece `index() + k` (modulo `pieces`) began with.
        """
        if not self.axes:
            return x
        ring = [(i, (i - 1) % self.pieces) for i in range(self.pieces)]
        return jax.tree.map(lambda a: jax.lax.ppermute(a, self.axes, ring), x)


def rows(count: int) -> Rows:
    """Says how `count` rows are cut over the mesh of `jax.set_mesh`.

    Over all axes if they divide `count`, else over data and fsdp. Without a mesh, on one device
    and where data and fsdp do not divide `count`, nothing is cut: every device does all the work.

    Raises:
      ValueError: inside a `jax.shard_map` over data or fsdp, where the batch is not in sight.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return Rows()
    _check_global(mesh)
    usable = [axis for axis in AXES if axis in mesh.axis_names and axis not in mesh.manual_axes]
    for axes in (usable, [axis for axis in usable if axis in BATCH_AXES]):
        pieces = math.prod(mesh.shape[axis] for axis in axes)
        if pieces > 1 and count % pieces == 0:
            return Rows(tuple(axis for axis in axes if mesh.shape[axis] > 1), pieces)
    return Rows()


def constrain_rows(x: jax.Array, dimension: int = 0) -> jax.Array:
    """Lays a batch out over data and fsdp, along one dimension of `x`; the others are whole.

    Where data and fsdp do not divide the batch, all of `x` is whole on every device. Without a
    mesh nothing happens.

    Raises:
      ValueError: inside a `jax.shard_map` over data or fsdp, where the batch is not in sight.
    """
    _check_global(jax.sharding.get_abstract_mesh())
    names: list[str | None] = [None] * x.ndim
    if x.shape[dimension] % pieces("batch") == 0:
        names[dimension] = "batch"
    return constrain(x, *names)


def _check_global(mesh: AbstractMesh) -> None:
    manual = [axis for axis in BATCH_AXES if axis in mesh.manual_axes and mesh.shape[axis] > 1]
    if manual:
        raise ValueError(
            f"a loss is a function of global arrays and was called inside a jax.shard_map over "
            f"{' and '.join(manual)}, where it would see one device's examples alone; call it "
            "outside"
        )
