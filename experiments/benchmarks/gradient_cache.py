"""The gradient cache against the whole batch: whether it is equal, and what memory it saves.

Letters: B examples, M micro-batches.
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

    progress(f"gradient cache: the whole batch of {batch}")
    temporary, wanted = _run(whole(represent, objective), params, views)
    about = f"ViT {model}/8, {size} px, B {batch}, InfoNCE and SIGReg, float32"
    found = [Measurement("whole batch: temporary memory", temporary / 1e6, "MB", about)]
    for count in parts:
        progress(f"gradient cache: {count} micro-batches")
        memory, gradients = _run(cached(represent, objective, count), params, views)
        name = f"gradient cache, {count} micro-batches"
        difference = Measurement(
            f"{name}: relative difference of the gradient",
            _difference(gradients, wanted),
            "",
            f"in norm over all parameters; {about}",
        )
        share = Measurement(
            f"{name} / whole batch: temporary memory",
            memory / temporary,
            "x",
            "as compiled; activations, and the sums of gradients",
        )
        if bar:
            difference = difference.held_to(at_most=DIFFERENCE)
            share = share.held_to(at_most=MEMORY_SHARE)
        found += [difference, share]
    return [dataclasses.asdict(dataclasses.replace(item, device="CPU")) for item in found]


def _run(gradient: Gradient, params: Any, batch: Any) -> tuple[int, Any]:
    """Temporary bytes of the compiled gradient, and the gradient."""
    program: Any = jax.jit(gradient).lower(params, {}, batch, jax.random.key(2)).compile()
    found = program(params, {}, batch, jax.random.key(2))
    return program.memory_analysis().temp_size_in_bytes, jax.device_get(found.gradients)


def _difference(found: Any, wanted: Any) -> float:
    """The norm of the error relative to the norm of what should be, over a whole tree."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True))
    error = sum(float(np.sum((a.astype(np.float64) - b) ** 2)) for a, b in pairs)
    return float(np.sqrt(error / sum(float(np.sum(b.astype(np.float64) ** 2)) for _, b in pairs)))
