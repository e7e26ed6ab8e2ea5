"""What a compiled program sends over each mesh axis, and moves through a device's memory.

The conventions, by which rooflines of different programs can be compared:

Sent, bytes that each device has to send, for an operand of b bytes and n devices of a group, along
a ring or in any other way that sends no byte twice:

  all-gather b (n - 1); reduce-scatter and all-to-all b (n - 1) / n; all-reduce 2 b (n - 1) / n;
  collective-permute b.

Moved, bytes that every instruction reads and writes in main memory (HBM), with the padding of
tiles: operands and results of fusions, products, copies, kernels and collectives. What lies in a
TensorCore's own memory by the compiler's decision costs nothing, a slice or an update in place
costs its own size, and what a fusion makes inside costs nothing.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jepa.parallel import hlo
from jepa.parallel.hlo import Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move nothing by themselves.
_FREE = frozenset(
    ("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "partition-id")
    + ("replica-id", "while", "call", "conditional", "after-all", "opt-barrier", "domain")
    + ("add-dependency", "async-start", "async-update")
)
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Collective:
    """What crosses devices in one place of a program.

    Attributes:
      kind: of `KINDS`.
      axes: of the mesh, along which devices exchange; several joined by "+".
      group: number of devices that exchange with each other.
      sent: bytes that each device sends, each time.
      times: how often that happens.
    """

    kind: str
    axes: str
    group: int
    sent: float
    times: int


def collectives(program: Program, mesh: Mesh) -> list[Collective]:
    """Returns everything that crosses devices, in the order of the program.

    TPUs' compiler spreads a collective over the fusions that run meanwhile, and says it in each; it
    counts once.
    """
    found: list[Collective] = []
    seen: set[Any] = set()
    for holder, where, instruction, times in _with_fused(program):
        kind = _kind(where, instruction)
        if kind is None:
            continue
        part = re.search(r'chain_id="?(\d+)', instruction.rest)
        if part and "async_collective_fusion_config" in instruction.rest:
            key = (holder, kind, part[1])
            if key in seen:
                continue
            seen.add(key)
        group, axes = _along(instruction.rest, mesh)
        if group > 1:
            size = sum(
                array.bytes for types in program.types(where, instruction) for array in types
            )
            found.append(Collective(kind, axes, group, _sent(kind, size, group), times))
    return found


def _with_fused(program: Program) -> Iterator[tuple[str, str, Instruction, int]]:
    """As `Program.runs`, going into fusions: (what is run, where it stands, instruction, times)."""
    for holder, instruction, times in program.runs():
        yield holder, holder, instruction, times
        if instruction.opcode == "fusion":
            for name in instruction.called:
                for inside in program.computations[name].values():
                    yield holder, name, inside, times


def _kind(where: str, instruction: Instruction) -> str | None:
    name = instruction.opcode.removesuffix("-start")
    if name not in KINDS:
        return None
    # On TPU a reduce-scatter is a fusion of this name, of an all-reduce and a slice.
    return "reduce-scatter" if "all-reduce-scatter" in where else name


def _sent(kind: str, size: float, group: int) -> float:
    if kind == "all-gather":
        return size * (group - 1)
    if kind == "collective-permute":
        return size
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def _along(attributes: str, mesh: Mesh) -> tuple[int, str]:
    """The number of devices that exchange with each other, and the axes they lie along.

    A program numbers devices by their place in the mesh.
    """
    groups = device_groups(attributes, mesh.size)
    places = np.array(np.unravel_index(np.arange(mesh.size), mesh.devices.shape))
    moving = np.zeros(len(mesh.axis_names), bool)
    for group in groups:
        inside = places[:, np.asarray(group)]
        moving |= (inside != inside[:, :1]).any(axis=1)
    axes = "+".join(axis for axis, moves in zip(mesh.axis_names, moving, strict=True) if moves)
    return max(map(len, groups)), axes


def device_groups(attributes: str, devices: int) -> list[list[int]]:
    """Returns the groups of devices in the attributes of a collective, in any of XLA's forms.

    `{{0,1},{2,3}}`, a list; `[2,4]<=[4,2]T(1,0)`, the rows of whole numbers that are reshaped and
    transposed; `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`, lines along an axis; and pairs
    of source and target.
    """
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes)
    if pairs:
        return _lists(pairs[1])
    named = re.search(
        r"replica_groups=(?:@?\w+)?\[('.*?)\](?:, ?device_ids=\((.*?\)?)\))? ?\{(.*?)\}", attributes
    )
    if named:
        return _lines(named[1], named[2], named[3], devices)
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if iota:
        shape = [int(size) for size in iota[1].split(",")]
        rows: list[list[int]] = _iota(iota[2], devices).reshape(shape).tolist()
        return rows
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", attributes)
    return _lists(listed[1]) if listed else [list(range(devices))]


def _lists(text: str) -> list[list[int]]:
    return [[int(i) for i in part.split(",")] for part in re.findall(r"\{([\d,]+)\}", text)]


def _iota(text: str, devices: int) -> np.ndarray:
    """Whole numbers from 0, reshaped by `[4,2]` and transposed by `T(1,0)`."""
    sizes, _, order = text.partition("]")
    numbers = np.arange(devices).reshape([int(size) for size in sizes.strip("[").split(",")])
    if order:
        numbers = numbers.transpose([int(i) for i in order.strip("T()").split(",")])
    return numbers


def _lines(sizes: str, order: str | None, along: str, devices: int) -> list[list[int]]:
    axes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", sizes)}
    numbers = (_iota(order, devices) if order else np.arange(devices)).reshape(list(axes.values()))
    chosen = [list(axes).index(name) for name in re.findall(r"'([\w.]+)'", along)]
    others = [i for i in range(len(axes)) if i not in chosen]
    size = math.prod(numbers.shape[i] for i in chosen)
    rows: list[list[int]] = numbers.transpose(*others, *chosen).reshape(-1, size).tolist()
    return rows


def moved(program: Program) -> float:
    """Returns the bytes that a device reads and writes in main memory."""
    return sum(times * _moved(program, where, it) for where, it, times in program.runs())


def _moved(program: Program, where: str, instruction: Instruction) -> float:
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return 0.0
    results = hlo.arrays(instruction.type)
    operands = program.types(where, instruction)
    if instruction.opcode in ("copy-start", "collective-permute-start"):
        results = results[:2]  # a copy and its source, which is read once
        return sum(array.padded for array in results if array.in_memory)
    if instruction.opcode.removesuffix("-start") in _SLICES:
        return _sliced(instruction, results, operands)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _size(operands[1])
    if instruction.opcode == "fusion":
        return _fusion(program, instruction, results, operands)
    return _size(results) + sum(map(_size, operands))


def _sliced(
    instruction: Instruction,
    results: Sequence[hlo.Array],
    operands: Sequence[Sequence[hlo.Array]],
) -> float:
    """A slice is read and written. Where it is only begun, the operands stand before the result."""
    if instruction.opcode.endswith("-start"):
        results = results[len(operands) : len(operands) + 1]
    size = sum(array.padded for array in results)
    return size * any(array.in_memory for array in operands[0]) + _size(results)


def _size(arrays: Sequence[hlo.Array]) -> float:
    return sum(array.padded for array in arrays if array.in_memory)


def _fusion(
    program: Program,
    instruction: Instruction,
    results: Sequence[hlo.Array],
    operands: Sequence[Sequence[hlo.Array]],
) -> float:
    """What a fusion reads and writes: of a slice, the slice; of an update in place, the update."""
    (name,) = instruction.called
    inside = program.computations[name]
    same = _aliases(instruction.rest)
    total = sum(_size([array]) for i, array in enumerate(results) if i not in same)
    for place, types in enumerate(operands):
        if place in same.values():
            continue
        total += _read(inside, place, types)
    if len(results) == 1 and not same:
        total += _in_place(inside, results[0])
    return total


def _aliases(attributes: str) -> dict[int, int]:
    """{number of a result: number of the operand that it is}."""
    start = attributes.find("output_to_operand_aliasing={")
    if start < 0:
        return {}
    found = re.findall(r"\{(\d*)\}: \((\d+), \{\d*\}\)", attributes[start:])
    return {int(result or 0): int(operand) for result, operand in found}


def _read(inside: Any, place: int, types: Sequence[hlo.Array]) -> float:
    """What a fusion reads of an operand."""
    whole = _size(types)
    if not whole:
        return 0.0
    parameter = next(
        i.name for i in inside.values() if i.opcode == "parameter" and i.arguments == str(place)
    )
    users = [i for i in inside.values() if parameter in i.operands]
    if users and all(user.opcode in _SLICES for user in users):
        return min(whole, sum(array.padded for u in users for array in hlo.arrays(u.type)))
    updates = [
        u for u in users if u.opcode == "dynamic-update-slice" and u.operands[0] == parameter
    ]
    return 0.0 if users and len(updates) == len(users) else whole


def _in_place(inside: Any, result: hlo.Array) -> float:
    """What has to be taken back where a fusion's result is an update in place of an operand."""
    root = next(i for i in inside.values() if i.root)
    if root.opcode != "dynamic-update-slice" or not result.in_memory:
        return 0.0
    update = inside.get(root.operands[1])
    size = sum(array.padded for array in hlo.arrays(update.type)) if update else 0.0
    return min(size, result.padded) - result.padded
