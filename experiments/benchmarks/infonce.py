"""InfoNCE on a mesh of CPU devices: memory, time, and both against the full matrix of logits.

Letters: B global batch, D width of the shared space.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import machine
from experiments.benchmarks.measurement import Measurement, alternate, median_ratio, progress
from jepa.losses.infonce import info_nce, inverse_temperature
from jepa.nn.pooling import l2_normalise
from jepa.parallel.mesh import batch_sharding, make_mesh, replicated, set_cpu_devices
from jepa.parallel.partition import constrain

TRANSPORTS = ("ring", "all_gather")
NAIVE = "full matrix"
BAR_MB = 128
NAIVE_SHARE = 0.6  # of the available memory; the rest is for what the compiler did not count


def measure(*, batch: int, dim: int, devices: int, rounds: int, bar: bool) -> list[dict[str, Any]]:
    """Memory of both transports, and their time beside that of the full matrix.

    Memory is that of the loss as VL-JEPA has it, with equal targets masked. Time is that of the
    loss without a mask, which the full matrix has neither.

    Args:
        batch: B of the memory figures and of the timed run.
        dim: D.
        devices: Number of CPU devices.
        rounds: Alternating rounds of the comparison.
        bar: Whether the sizes are those that the bar names.
    """
    set_cpu_devices(devices)
    mesh = make_mesh({"data": devices})
    with jax.set_mesh(mesh):
        found = _memory(mesh, batch, dim, bar)
        found += _time(mesh, batch, dim, rounds)
    device = f"{devices} CPU devices"
    return [dataclasses.asdict(dataclasses.replace(item, device=device)) for item in found]


def step(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Value and gradient with respect to predictions, targets and the logarithm of 1/temperature.

    Args:
        loss: `(predictions, targets, inverse_temperature)` to a scalar, and hashes if it masks.
    """

    def value(
        predictions: jax.Array, targets: jax.Array, log_value: jax.Array, *hashes: jax.Array
    ) -> jax.Array:
        return loss(predictions, targets, inverse_temperature(log_value), *hashes)

    return jax.value_and_grad(value, argnums=(0, 1, 2))


def blockwise(transport: str) -> Callable[..., jax.Array]:
    """The library's loss; where it is given hashes of the targets, pairs of equals are masked."""

    def loss(
        predictions: jax.Array,
        targets: jax.Array,
        scale: jax.Array,
        hashes: jax.Array | None = None,
    ) -> jax.Array:
        return info_nce(
            predictions,
            targets,
            inverse_temperature=scale,
            target_hash=hashes,
            transport=transport,
        )[0]

    return loss


def naive(predictions: jax.Array, targets: jax.Array, scale: jax.Array) -> jax.Array:
    """The same loss as one writes it: all logits at once, their rows cut over the mesh."""
    logits = scale * jnp.matmul(
        l2_normalise(predictions), l2_normalise(targets).T, precision=jax.lax.Precision.HIGHEST
    )
    logits = constrain(logits, "batch", None)
    own = jnp.diagonal(logits)
    rows = jax.nn.logsumexp(logits, axis=1) - own
    columns = jax.nn.logsumexp(logits, axis=0) - own
    return jnp.mean(rows + columns) / 2


def compiled(
    mesh: Any,
    loss: Callable[..., jax.Array],
    batch: int,
    dim: int,
    dtype: str,
    *,
    masked: bool = False,
) -> Any:
    """The compiled step for B rows over the devices of a mesh; if masked, it takes hashes too."""
    rows, whole = batch_sharding(mesh), replicated(mesh)
    embeddings = jax.ShapeDtypeStruct((batch, dim), dtype, sharding=rows)
    scalar = jax.ShapeDtypeStruct((), "float32", sharding=whole)
    jitted = jax.jit(step(loss), out_shardings=(whole, (rows, rows, whole)))
    hashes = (jax.ShapeDtypeStruct((batch,), "int32", sharding=rows),) if masked else ()
    return jitted.lower(embeddings, embeddings, scalar, *hashes).compile()


def _memory(mesh: Any, batch: int, dim: int, bar: bool) -> list[Measurement]:
    found = []
    share = 4 * batch * batch / mesh.size / 1e6
    note = (
        f"B {batch:,}, D {dim:,}, equal targets masked, loss and gradients, as compiled; "
        f"a device's share of the logits alone is {share:,.4g} MB"
    )
    for dtype in ("float32", "bfloat16"):
        for transport in TRANSPORTS:
            progress(f"InfoNCE: compiling {transport}, {dtype}")
            program = compiled(mesh, blockwise(transport), batch, dim, dtype, masked=True)
            value = program.memory_analysis().temp_size_in_bytes / 1e6
            name = f"InfoNCE, {transport}, {dtype}: temporary memory a device"
            item = Measurement(name, value, "MB", note)
            # The bar is the ring's; the other transport's figure is only stated.
            limited = bar and transport == "ring"
            found.append(item.held_to(at_most=BAR_MB) if limited else item)
    return found


def _time(mesh: Any, batch: int, dim: int, rounds: int) -> list[Measurement]:
    largest = _largest_naive(mesh, batch, dim)
    found = []
    if largest is None:
        found.append(Measurement(f"InfoNCE, {NAIVE}: time", None, "s", "fits at no batch"))
    if largest != batch:
        programs = {name: _program(mesh, name, batch, dim) for name in TRANSPORTS}
        seconds, _ = _run(mesh, programs, batch, dim, rounds=1)
        found += _seconds(seconds, f"B {batch:,}, D {dim:,}, float32, forward and backward, once")
    if largest is not None:
        found += _compare(mesh, largest, dim, rounds)
    return found


def _compare(mesh: Any, batch: int, dim: int, rounds: int) -> list[Measurement]:
    programs = {name: _program(mesh, name, batch, dim) for name in (*TRANSPORTS, NAIVE)}
    seconds, results = _run(mesh, programs, batch, dim, rounds)
    note = f"B {batch:,}, D {dim:,}, float32, forward and backward, median of {rounds}"
    found = _seconds(seconds, note)
    naive_mb = _total(programs[NAIVE], mesh) / 1e6
    found.append(
        Measurement(
            f"InfoNCE, {NAIVE}: memory of all devices",
            naive_mb,
            "MB",
            f"arguments, results and temporaries at B {batch:,}, the largest tried that fits in "
            f"{NAIVE_SHARE:.0%} of the available memory",
        )
    )
    for name in TRANSPORTS:
        ratio = median_ratio(seconds[name], seconds[NAIVE])
        found.append(Measurement(f"InfoNCE, {name} / full matrix: time", ratio, "x", note))
        difference = _difference(results[name], results[NAIVE])
        found.append(
            Measurement(
                f"InfoNCE, {name} and full matrix: relative difference",
                difference,
                "",
                f"B {batch:,}, float32, the largest of loss and gradients",
            )
        )
    return found


def _largest_naive(mesh: Any, batch: int, dim: int) -> int | None:
    """The largest of B, 2B/3, B/2, B/3, ... at which the full matrix fits, if any does."""
    limit = NAIVE_SHARE * machine.available_memory()
    halvings = [batch >> i for i in range(10)]
    sizes = sorted({*halvings, *(2 * size // 3 for size in halvings)}, reverse=True)
    for size in sizes:
        if size < mesh.size or size % mesh.size:
            continue
        progress(f"InfoNCE: compiling the full matrix at B {size:,}")
        if _total(_program(mesh, NAIVE, size, dim), mesh) <= limit:
            return size
    return None


def _total(program: Any, mesh: Any) -> int:
    memory = program.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return mesh.size * (memory.argument_size_in_bytes + results + memory.temp_size_in_bytes)


@functools.cache
def _program(mesh: Any, name: str, batch: int, dim: int) -> Any:
    """The compiled step that is timed, by the name of a transport or `NAIVE`; without a mask."""
    return compiled(mesh, naive if name == NAIVE else blockwise(name), batch, dim, "float32")


def _run(
    mesh: Any, programs: dict[str, Any], batch: int, dim: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each round and the last result of each program, on the host.

    Each program runs once before, untimed.
    """
    rng = np.random.default_rng(0)
    first = rng.standard_normal((batch, dim), np.float32)
    second = first + rng.standard_normal((batch, dim), np.float32)
    rows = batch_sharding(mesh)
    inputs = (
        jax.device_put(first, rows),
        jax.device_put(second, rows),
        jax.device_put(np.float32(np.log(1 / 0.07)), replicated(mesh)),
    )
    results: dict[str, Any] = {}

    def call(name: str) -> None:
        results[name] = jax.block_until_ready(programs[name](*inputs))

    progress(f"InfoNCE: B {batch:,}, a first call of {', '.join(programs)}")
    for name in programs:
        call(name)
    progress(f"InfoNCE: B {batch:,}, {rounds} round(s) of them")
    seconds = alternate({name: functools.partial(call, name) for name in programs}, rounds)
    return seconds, jax.device_get(results)


def _seconds(seconds: dict[str, list[float]], note: str) -> list[Measurement]:
    return [
        Measurement(f"InfoNCE, {name}: time", statistics.median(values), "s", note)
        for name, values in seconds.items()
    ]


def _difference(found: Any, wanted: Any) -> float:
    """The largest error of a result, each relative to the norm of what it should be."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)
