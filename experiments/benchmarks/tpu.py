"""The losses compiled for TPUs that are not there: what crosses chips, and memory a chip.

Letters: B global batch, N samples, D width, S slices, K knots.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax

from experiments.benchmarks import infonce
from experiments.benchmarks.measurement import Measurement, progress
from jepa.losses.sigreg import sigreg
from jepa.parallel.mesh import batch_sharding, replicated
from jepa.parallel.topology import compile_for_tpu, has_libtpu, tpu_mesh

_ALL_REDUCE = re.compile(r"^\s*(?:ROOT )?\S+ = (.*?) all-reduce(?:-start)?\(", re.MULTILINE)
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")


def measure(
    *,
    samples: int,
    sigreg_dim: int,
    slices: int,
    knots: int,
    sigreg_chips: str,
    batches: list[int],
    naive_batches: list[int],
    infonce_dim: int,
    infonce_chips: str,
    bar: bool,
) -> list[dict[str, Any]]:
    """SIGReg's all-reduce in both implementations, InfoNCE's memory at several global batches.

    Args:
        samples: N.
        sigreg_dim: D of SIGReg.
        slices: S.
        knots: K.
        sigreg_chips: A topology, such as "v5e:4x4".
        batches: B of each figure of InfoNCE.
        naive_batches: Those of them at which the full matrix stands beside it.
        infonce_dim: D of InfoNCE.
        infonce_chips: A topology, such as "v5e:16x16".
        bar: Whether the sizes are those that the bar names.
    """
    if not has_libtpu():
        note = (
            "needs libtpu, which is not installed: make test installs it, or "
            "pip install -r requirements-tpu-compile.txt"
        )
        progress(f"TPU: not measured; it {note}")
        names = ("SIGReg, TPU: all-reduces", "InfoNCE, TPU: memory a chip")
        found = [Measurement(name, None, "", note) for name in names]
    else:
        found = _all_reduces(sigreg_chips, samples, sigreg_dim, slices, knots, bar)
        found += _memory(infonce_chips, batches, naive_batches, infonce_dim)
    return [dataclasses.asdict(item) for item in found]


def all_reduces(text: str) -> list[int]:
    """How many numbers each all-reduce of a compiled program sums, an entry an operation."""
    return [
        sum(
            math.prod(int(size) for size in shape.split(",") if size)
            for shape in _SHAPE.findall(shapes)
        )
        for shapes in _ALL_REDUCE.findall(text)
    ]


def sigreg_program(
    mesh: Any, implementation: str, samples: int, dim: int, slices: int, knots: int
) -> Any:
    """SIGReg's loss and gradient, compiled for a mesh of TPUs."""
    rows, whole = batch_sharding(mesh), replicated(mesh)

    def loss(x: jax.Array, key: jax.Array) -> jax.Array:
        return sigreg(x, key, slices=slices, knots=knots, implementation=implementation)

    key = jax.eval_shape(jax.random.key, 0)
    with jax.set_mesh(mesh):
        return compile_for_tpu(
            jax.jit(jax.value_and_grad(loss), out_shardings=(whole, rows)),
            jax.ShapeDtypeStruct((samples, dim), "float32", sharding=rows),
            jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole),
        )


def infonce_program(mesh: Any, loss: Callable[..., jax.Array], batch: int, dim: int) -> Any:
    """InfoNCE's loss and gradients from bfloat16 embeddings, compiled for a mesh of TPUs."""
    rows, whole = batch_sharding(mesh), replicated(mesh)
    embeddings = jax.ShapeDtypeStruct((batch, dim), "bfloat16", sharding=rows)
    scalar = jax.ShapeDtypeStruct((), "float32", sharding=whole)
    step = jax.jit(infonce.step(loss), out_shardings=(whole, (rows, rows, whole)))
    with jax.set_mesh(mesh):
        return compile_for_tpu(step, embeddings, embeddings, scalar)


def _all_reduces(
    chips: str, samples: int, dim: int, slices: int, knots: int, bar: bool
) -> list[Measurement]:
    mesh = tpu_mesh(chips, {"data": -1})
    stated = 2 * slices * knots
    note = f"N {samples:,}, D {dim:,}, {slices:,} slices, {knots} knots, loss and gradient"
    found = []
    for implementation in ("xla", "pallas"):
        progress(f"TPU: compiling SIGReg ({implementation}) for {chips}")
        program = sigreg_program(mesh, implementation, samples, dim, slices, knots)
        sizes = all_reduces(program.as_text())
        name = f"SIGReg, {implementation}, TPU"
        count = Measurement(f"{name}: all-reduces", len(sizes), "", note, f"compiled, {chips}")
        each = Measurement(
            f"{name}: numbers in all all-reduces",
            sum(sizes),
            "",
            f"{' + '.join(f'{size:,}' for size in sizes)}; 2 x slices x knots is {stated:,}",
            f"compiled, {chips}",
        )
        if bar:
            count, each = count.held_to(at_most=1), each.held_to(at_most=stated)
        found += [count, each]
    return found


def _memory(
    chips: str, batches: list[int], naive_batches: list[int], dim: int
) -> list[Measurement]:
    mesh = tpu_mesh(chips, {"data": -1})
    found = []
    for batch in batches:
        losses = {name: infonce.blockwise(name) for name in infonce.TRANSPORTS}
        if batch in naive_batches:
            losses[infonce.NAIVE] = infonce.naive
        for name, loss in losses.items():
            progress(f"TPU: compiling InfoNCE ({name}) at B {batch:,} for {chips}")
            value, note = _beside_arguments(mesh, loss, batch, dim)
            label = f"InfoNCE, {name}, TPU, B {batch:,}: memory a chip"
            found.append(Measurement(label, value, "MB", note, f"compiled, {chips}"))
    return found


def _beside_arguments(
    mesh: Any, loss: Callable[..., jax.Array], batch: int, dim: int
) -> tuple[float | None, str]:
    """MB a chip, or None where the compiler says that it is too much; and a note.

    It is the most that is alive at one moment of the program, less the arguments, which are alive
    at all of them: temporaries, and results as far as they are there. It is what the compiler holds
    against the memory of a chip: where it refuses a program, it names this number. Buffers that it
    places in a chip's vector memory count too; of a small program that may be all.

    It is not `temp_size_in_bytes`, which leaves vector memory out and, in the rest, adds up buffers
    of which one is freed before the next is made: at B 1,638,400 on 16 chips the compiler accepts
    17.2 GB of it for a chip that has 16.9 GB.
    """
    try:
        program = infonce_program(mesh, loss, batch, dim)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, f"D {dim:,}, bfloat16: does not fit in the memory of a chip"
    memory = program.memory_analysis()
    note = (
        f"beside the arguments, at the peak; D {dim:,}, bfloat16, loss and gradients, that of the "
        "temperature included"
    )
    if not memory.temp_size_in_bytes:
        note += "; all temporaries are in the chip's vector memory"
    return (memory.peak_memory_in_bytes - memory.argument_size_in_bytes) / 1e6, note
