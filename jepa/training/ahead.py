"""The train step of a phase, compiled for chips that are not there: what it needs, and how long.

The program is the one that training runs: the same method, step, state, shardings and batch,
through `prepare` and `step.trace`. Only the devices are described instead of found.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from jepa.parallel import hlo, products, traffic
from jepa.parallel import mesh as meshes
from jepa.parallel.chips import Topology
from jepa.training import roofline as bounds
from jepa.training.metrics import count
from jepa.training.optimizer import split
from jepa.training.prepare import Prepared
from jepa.training.step import trace

_TOO_MUCH = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|\(([\d.]+)([KMGT])\) exceeds")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a device's HBM.

    Attributes:
      arguments: the train state and the batch.
      temporaries: the most that is alive at one moment besides.
      program: the program itself.
      total: all three; of a program that was refused, what the compiler says it needs.
      capacity: what a program can have.
    """

    arguments: float
    temporaries: float | None
    program: float | None
    total: float | None
    capacity: float

    @property
    def spare(self) -> float | None:
        """The share of the capacity that is left; negative where it does not fit."""
        return None if self.total is None else 1 - self.total / self.capacity


@dataclasses.dataclass(frozen=True)
class Ahead:
    """What is known of a phase's step before it runs.

    Attributes:
      parameters, trained: numbers of parameters: all, and those with a gradient.
      memory: of a device.
      fits: whether the compiler accepted the program.
      work: what the step does; `moved` and `sent` are None where it was refused.
      collectives: what crosses devices, by kind and axes: [number, bytes that a device sends].
      roofline: None where the program was refused.
      seconds: what tracing and lowering, and compiling took.
    """

    parameters: int
    trained: int
    memory: Memory
    fits: bool
    useful: float
    done: float
    moved: float | None
    collectives: dict[tuple[str, str], tuple[int, float]]
    roofline: bounds.Roofline | None
    seconds: tuple[float, float]


def compile_ahead(prepared: Prepared, mesh: Mesh, topology: Topology, batch_spec: Any) -> Ahead:
    """Compiles a phase's step for a mesh of TPUs that are only described.

    Args:
      prepared: the phase, on this mesh.
      mesh: as from `jepa.parallel.topology.tpu_mesh`.
      topology: what it was made of.
      batch_spec: tree of ShapeDtypeStruct of the global batch.
    """
    assert topology.chip.memory is not None
    begin = time.perf_counter()
    state = prepared.initializer.shapes
    traced = trace(prepared.step, mesh, state, batch_spec)
    done = products.flops(traced.jaxpr) / mesh.size
    useful = prepared.method.flops(batch_spec)
    with jax.set_mesh(mesh):
        lowered = traced.lower()
    middle = time.perf_counter()
    trainable, _ = split(state.params, prepared.method.requirements.frozen)
    known: dict[str, Any] = {
        "parameters": count(state.params),
        "trained": count(trainable),
        "useful": useful,
        "done": done,
    }
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory = Memory(
            per_device(state) + per_device(batch_spec, mesh),
            None,
            None,
            needed(str(error)),
            topology.chip.memory,
        )
        seconds = (middle - begin, time.perf_counter() - middle)
        return Ahead(
            **known,
            memory=memory,
            fits=False,
            moved=None,
            collectives={},
            roofline=None,
            seconds=seconds,
        )
    seconds = (middle - begin, time.perf_counter() - middle)
    text = hlo.parse(program.as_text())
    crossing = _by_kind(traffic.collectives(text, mesh))
    sent: dict[str, float] = {}
    for (_, axes), (_, size) in crossing.items():
        sent[axes] = sent.get(axes, 0.0) + size
    work = bounds.Work(useful, done, traffic.moved(text), sent)
    rates = {axes: bounds.rate(topology.chip, mesh, axes) for axes in sent}
    return Ahead(
        **known,
        memory=_memory(program.memory_analysis(), topology.chip.memory),
        fits=True,
        moved=work.moved,
        collectives=crossing,
        roofline=bounds.roofline(work, topology.chip, mesh.size, rates),
        seconds=seconds,
    )


def _memory(analysis: Any, capacity: float) -> Memory:
    arguments = analysis.argument_size_in_bytes
    program = analysis.generated_code_size_in_bytes
    peak = analysis.peak_memory_in_bytes
    return Memory(arguments, peak - arguments, program, peak + program, capacity)


def needed(message: str) -> float | None:
    """Returns the bytes that the compiler says a program needs that it refuses."""
    found = _TOO_MUCH.search(message)
    if found is None:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return float(number) * _UNITS[unit]


def _by_kind(found: list[traffic.Collective]) -> dict[tuple[str, str], tuple[int, float]]:
    total: dict[tuple[str, str], tuple[int, float]] = {}
    for one in found:
        number, size = total.get((one.kind, one.axes), (0, 0.0))
        total[one.kind, one.axes] = (number + one.times, size + one.sent * one.times)
    return total


def per_device(tree: Any, mesh: Mesh | None = None) -> float:
    """Returns the bytes that a device holds of a tree of shapes.

    Args:
      tree: of ShapeDtypeStruct with shardings.
      mesh: of a batch, whose shapes have none.
    """
    total = 0.0
    for x in jax.tree.leaves(tree):
        if mesh is not None:
            total += x.size * x.dtype.itemsize / meshes.batch_shards(mesh)
        else:
            total += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return total
