"""Device meshes: four named axes, and how a global batch lies on them.

The axes are `data` (replicas), `fsdp` (parameters and optimizer state cut, batch cut), `tensor`
(the width of a layer cut) and `context` (tokens cut). Every mesh has all four, most of size one,
so that no code asks which exist. They are `AxisType.Auto`: explicit axes break Linen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jepa.batch_part import BatchPart
from jepa.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")
BATCH_AXES = ("data", "fsdp")


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh of a config.

    Args:
      shape: size of each axis in `AXES`; an absent one is 1, and at most one may be -1, which
        means all remaining devices.
      devices: the devices to use, by default all devices of all processes. They must be used up.

    Raises:
      UserError: an unknown axis, a size that is no positive integer, or sizes whose product is
        not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(shape, len(devices))
    # Splitting a physical axis of a TPU torus is allowed: v6e refuses (64, 4) on 16x16 otherwise.
    array = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _sizes(shape: Mapping[str, int], count: int) -> tuple[int, ...]:
    for name, size in shape.items():
        if name not in AXES:
            raise UserError(f"mesh.{name} is not a mesh axis; use {', '.join(AXES)}.")
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
            raise UserError(f"mesh.{name} is {size!r}; set it to a positive integer or -1.")
        if size < 1 and size != -1:
            raise UserError(f"mesh.{name} is {size}; set it to a positive integer or -1.")
    rest = [name for name, size in shape.items() if size == -1]
    if len(rest) > 1:
        raise UserError(f"mesh has -1 for {' and '.join(rest)}; only one axis can take the rest.")
    fixed = math.prod(size for size in shape.values() if size != -1)
    named = " x ".join(f"{name}={shape[name]}" for name in AXES if shape.get(name, 1) != 1)
    if rest and count % fixed:
        raise UserError(
            f"mesh {named} needs a multiple of {fixed} devices and there are {count}; "
            f"choose sizes that divide {count}."
        )
    if not rest and fixed != count:
        raise UserError(
            f"mesh {named or 'of one device'} takes {fixed} devices and there are {count}; "
            f"set one axis to -1 to use them all."
        )
    filled = {**shape, **dict.fromkeys(rest, count // fixed)}
    return tuple(int(filled.get(name, 1)) for name in AXES)


def using(mesh: Mesh | AbstractMesh) -> AbstractContextManager[Any]:
    """The context in which programs are traced for a mesh, which may have names and sizes only."""
    return jax.set_mesh(mesh) if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh(mesh)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Cuts the leading (batch) dimension over data and fsdp; other dimensions are replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """The number of pieces that the batch is cut into; a global batch must be a multiple of it."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_part(mesh: Mesh, process_index: int | None = None) -> BatchPart:
    """Says which part of every global batch a process feeds.

    Usually the process_index-th of process_count; where the tensor or context axis spans processes,
    several feed the same rows, and on a torus rows of a host need not lie side by side.

    Args:
      process_index: the process to ask about; by default this one.

    Raises:
      UserError: the rows of two processes overlap in part, or are of unequal number.
    """
    if process_index is None:
        process_index = jax.process_index()
    shards = batch_shards(mesh)
    rows: dict[int, set[int]] = {}
    parts: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((shards,))
    for device, index in parts.items():
        rows.setdefault(device.process_index, set()).update(range(*index[0].indices(shards)))
    distinct = {tuple(sorted(held)) for held in rows.values()}
    if len({len(held) for held in distinct}) > 1 or sum(map(len, distinct)) != shards:
        raise UserError(
            f"mesh {describe(mesh)} gives processes parts of the batch that overlap or differ in "
            f"size, as {' and '.join(str(list(held)) for held in sorted(distinct)[:2])} of "
            f"{shards}; make data * fsdp a multiple of the number of processes, or tensor * "
            "context a multiple of a process's devices."
        )
    mine = tuple(sorted(rows[process_index]))
    length = _run(distinct)
    return BatchPart(tuple(row // length for row in mine[::length]), shards // length)


def _run(parts: Iterable[tuple[int, ...]]) -> int:
    """The largest length of runs, each beginning at a multiple of it, that all parts consist of."""
    parts = list(parts)
    sizes = (n for n in range(len(parts[0]), 0, -1) if len(parts[0]) % n == 0)
    return next(
        n
        for n in sizes
        if all(
            rows[i : i + n] == tuple(range(rows[i], rows[i] + n)) and rows[i] % n == 0
            for rows in parts
            for i in range(0, len(rows), n)
        )
    )


def describe(mesh: Mesh) -> str:
    """One line for logs, such as `data=4 fsdp=2 on 8 cpu devices of 1 process`."""
    axes = " ".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1)
    devices = mesh.devices.flat
    processes = len({device.process_index for device in devices})
    kind = mesh.devices.flat[0].device_kind
    plural = "s" if mesh.size > 1 else ""
    many = "es" if processes > 1 else ""
    on = f"{mesh.size} {kind} device{plural} of {processes} process{many}"
    return f"{axes} on {on}" if axes else on


def set_cpu_devices(count: int) -> None:
    """Makes the CPU backend show `count` devices; call it before anything else touches JAX.

    Raises:
      UserError: `count` is no positive integer, or JAX has started with another number.
    """
    if count < 1:
        raise UserError(f"the number of CPU devices is {count}; set it to 1 or more.")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        found = len(jax.devices("cpu"))
        if found != count:
            raise UserError(
                f"JAX has already started with {found} CPU devices and cannot show {count}; "
                f"ask for them before the first use of JAX."
            ) from error
