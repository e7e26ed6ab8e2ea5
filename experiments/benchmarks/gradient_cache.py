"""The gradient cache against the whole batch: whether it is equal, and what memory it saves.

Letters: B examples, M micro-batches.

The cache holds the activations of one micro-batch, and sums of gradients, which have the size of
the parameters whatever B and M are. What is promised is of activations, and a compiler reports all
temporaries together; so the two are told apart by how temporaries grow:

- of the cache, over `FIT` numbers of micro-batches, as `constant + slope / M` (least squares);
- of the whole batch, over B / 2 and B examples, as `constant + slope * B`.

What goes to the constant is what no smaller micro-batch would save, representations of the batch
included; the rest is activations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.measurement import Measurement, progress
from jepa.losses.infonce import info_nce
from jepa.losses.sigreg import sigreg
from jepa.methods.base import Outputs
from jepa.models.vit import VITS, VideoTransformer
from jepa.parallel.mesh import set_cpu_devices
from jepa.training.gradients import Gradient, cached, whole

DIFFERENCE = 1e-6
MEMORY_SHARE = 1 / 8
FIT = (4, 8, 16)


def measure(
    *, model: str, batch: int, size: int, parts: list[int], bar: bool
) -> list[dict[str, Any]]:
    """Two views of B images through one encoder; InfoNCE between them and SIGReg of one.

    Args:
        model: A size in `jepa.models.vit.VITS`.
        batch: B.
        size: Height and width of the images in pixels; patches have 8.
        parts: Numbers M of micro-batches.
        bar: Whether the sizes are those that the bar names.
    """
    set_cpu_devices(1)
    encoder = VideoTransformer(**VITS[model], patch=8, tubelet=1)
    rng = np.random.default_rng(0)
    first = rng.standard_normal((batch, 1, size, size, 3), np.float32)
    noise = rng.standard_normal(first.shape, np.float32)
    views = {"first": jnp.asarray(first), "second": jnp.asarray(first + 0.5 * noise)}
    params = jax.jit(encoder.init)(jax.random.key(0), views["first"][:1])

    def represent(params: Any, state: Any, batch: Any, rng: jax.Array) -> tuple[Outputs, Any]:
        del rng
        pooled = {
            name: jnp.mean(jnp.asarray(encoder.apply(params, view)), axis=1)
            for name, view in batch.items()
        }
        return Outputs(pooled=pooled), state

    def objective(outputs: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        x, y = outputs.pooled["first"], outputs.pooled["second"]
        value, _ = info_nce(x, y, inverse_temperature=10.0)
        return value + sigreg(x, jax.random.key(1), slices=64), {}

    about = f"ViT {model}/8, {size} px, B {batch}, InfoNCE and SIGReg, float32"
    progress(f"gradient cache: the whole batch of {batch}")
    wanted_program = _compiled(whole(represent, objective), params, views)
    temporary, wanted = _temporary(wanted_program), _gradients(wanted_program, params, views)
    half = jax.tree.map(lambda x: x[: batch // 2], views)
    activations = 2 * (temporary - _temporary(_compiled(whole(represent, objective), params, half)))
    programs = {}
    for count in sorted({*parts, *FIT}):
        progress(f"gradient cache: {count} micro-batches")
        programs[count] = _compiled(cached(represent, objective, count), params, views)
    constant = _constant({count: _temporary(programs[count]) for count in FIT})
    parameters = sum(x.nbytes for x in jax.tree.leaves(params))
    found = [
        Measurement("whole batch: temporary memory", temporary / 1e6, "MB", about),
        Measurement(
            "whole batch: activations",
            activations / 1e6,
            "MB",
            "the part of its temporary memory that grows with B: twice what B has over B / 2",
        ),
        Measurement(
            "gradient cache: temporary memory that is no activations",
            constant / 1e6,
            "MB",
            f"a of temporaries = a + b / M, least squares over M in {FIT}; above all sums of "
            f"gradients: the parameters have {parameters / 1e6:,.3g} MB",
        ),
    ]
    for count in parts:
        memory = _temporary(programs[count])
        difference = Measurement(
            f"gradient cache, {count} micro-batches: relative difference of the gradient",
            _difference(_gradients(programs[count], params, views), wanted),
            "",
            f"in norm over all parameters; {about}",
        )
        share = Measurement(
            f"gradient cache, {count} micro-batches / whole batch: activations",
            (memory - constant) / activations,
            "x",
            "as compiled: temporary memory less a, over the part that grows with B",
        )
        if bar:
            difference = difference.held_to(at_most=DIFFERENCE)
            share = share.held_to(at_most=MEMORY_SHARE)
        everything = Measurement(
            f"gradient cache, {count} micro-batches / whole batch: temporary memory",
            memory / temporary,
            "x",
            "as compiled: activations, and the sums of gradients",
        )
        found += [difference, share, everything]
    return [dataclasses.asdict(dataclasses.replace(item, device="CPU")) for item in found]


def _compiled(gradient: Gradient, params: Any, batch: Any) -> Any:
    return jax.jit(gradient).lower(params, {}, batch, jax.random.key(2)).compile()


def _temporary(program: Any) -> int:
    """Bytes."""
    return program.memory_analysis().temp_size_in_bytes


def _gradients(program: Any, params: Any, batch: Any) -> Any:
    return jax.device_get(program(params, {}, batch, jax.random.key(2)).gradients)


def _constant(temporaries: dict[int, int]) -> float:
    """The a of `a + b / M` in bytes, by least squares, from bytes by M."""
    inverse = [1 / count for count in temporaries]
    return float(np.polynomial.polynomial.polyfit(inverse, list(temporaries.values()), 1)[0])


def _difference(found: Any, wanted: Any) -> float:
    """The norm of the error relative to the norm of what should be, over a whole tree."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True))
    error = sum(float(np.sum((a.astype(np.float64) - b) ** 2)) for a, b in pairs)
    return float(np.sqrt(error / sum(float(np.sum(b.astype(np.float64) ** 2)) for _, b in pairs)))
