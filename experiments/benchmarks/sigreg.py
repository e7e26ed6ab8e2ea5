"""SIGReg on one CPU against autograd through the published formula in PyTorch.

Letters: N samples, D width, S slices, K knots.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import child, machine
from experiments.benchmarks.measurement import Measurement, alternate, median_ratio, progress
from jepa.errors import UserError
from jepa.losses.sigreg import random_slices, sigreg
from jepa.parallel.mesh import set_cpu_devices

FASTER = 4
MEMORY_SHARE = 1 / 8
# OpenMP's threads spin for some milliseconds after their work, in the way of XLA's.
PAUSE = 0.1


def measure(
    *, samples: int, dim: int, slices: int, knots: int, rounds: int, bar: bool
) -> list[dict[str, Any]]:
    """Time, peak memory and agreement; the arguments are N, D, S, K.

    Raises:
        UserError: PyTorch is not installed, or peak memory cannot be measured here.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "the part sigreg compares with PyTorch, which is not installed; install it with: "
            "pip install -r requirements-test.txt"
        )
    set_cpu_devices(1)
    sizes = {"samples": samples, "dim": dim, "slices": slices, "knots": knots}
    import torch

    note = f"N {samples:,}, D {dim:,}, {slices:,} slices, {knots} knots, float32, loss and gradient"
    found = [*_memory(sizes, note, bar), *_time(sizes, rounds, note, bar), *_agreement(sizes)]
    device = f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads of PyTorch"
    return [dataclasses.asdict(dataclasses.replace(item, device=device)) for item in found]


def peak_of_ours(samples: int, dim: int, slices: int, knots: int) -> int:
    """Bytes that the compiled loss and gradient take at their peak; in a process of its own."""
    set_cpu_devices(1)
    x, key = _samples(samples, dim), jax.random.key(0)
    program = _compiled(samples, dim, slices, knots)
    array = jax.device_put(x)
    jax.block_until_ready((array, key))
    return machine.peak_memory(lambda: jax.block_until_ready(program(array, key)))


def peak_of_torch(samples: int, dim: int, slices: int, knots: int) -> int:
    """Bytes that PyTorch takes at its peak; in a process of its own."""
    call = torch_step(_samples(samples, dim), slices, knots)
    return machine.peak_memory(call)


def torch_step(
    x: np.ndarray, slices: int, knots: int, directions: np.ndarray | None = None
) -> Callable[[], Any]:
    """Loss and gradient by autograd through the published formula (LeJEPA, Algorithm 1).

    Args:
        x: `[N, D]`.
        slices: S.
        knots: K, over [0, 3], the integral counted twice by symmetry.
        directions: `[D, S]`; without them each call draws its own, as the published code does.

    Returns:
        A function to a scalar and `[N, D]`.
    """
    import torch

    samples = torch.tensor(x, requires_grad=True)
    given = None if directions is None else torch.tensor(directions)
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(0, 3, knots)
    window = torch.exp(-(t**2) / 2)
    weights = torch.full((knots,), 2 * 3 / (knots - 1))
    weights[[0, -1]] /= 2

    def call() -> Any:
        samples.grad = None
        a = given
        if a is None:
            a = torch.randn(x.shape[1], slices, generator=generator)
            a = a / a.norm(dim=0)
        angles = (samples @ a).unsqueeze(-1) * t
        error = (angles.cos().mean(0) - window) ** 2 + angles.sin().mean(0) ** 2
        loss = ((error @ (weights * window)) * len(samples)).mean()
        loss.backward()
        return loss.detach(), samples.grad

    return call


def _samples(count: int, dim: int) -> np.ndarray:
    """Samples that are not Gaussian, so that there is something to pull."""
    return np.random.default_rng(0).gamma(2.0, size=(count, dim)).astype(np.float32) - 1


def _compiled(samples: int, dim: int, slices: int, knots: int) -> Any:
    step = jax.jit(jax.value_and_grad(lambda x, key: sigreg(x, key, slices=slices, knots=knots)))
    return step.lower(
        jax.ShapeDtypeStruct((samples, dim), "float32"), jax.eval_shape(jax.random.key, 0)
    ).compile()


def _memory(sizes: dict[str, int], note: str, bar: bool) -> list[Measurement]:
    peaks = {}
    for name, function in (("JAX", peak_of_ours), ("PyTorch", peak_of_torch)):
        progress(f"SIGReg: peak memory of {name}")
        peaks[name] = child.call(f"{__name__}:{function.__name__}", sizes)
    how = "; highest resident size in one call less that before it, in a process of its own"
    found = [
        Measurement(f"SIGReg, {name}: peak memory", peak / 1e6, "MB", note + how)
        for name, peak in peaks.items()
    ]
    share = Measurement(
        "SIGReg, JAX / PyTorch: peak memory", peaks["JAX"] / peaks["PyTorch"], "x", note
    )
    temporary = _compiled(**sizes).memory_analysis().temp_size_in_bytes
    return [
        *found,
        share.held_to(at_most=MEMORY_SHARE) if bar else share,
        Measurement("SIGReg, JAX: temporary memory", temporary / 1e6, "MB", "as compiled"),
    ]


def _time(sizes: dict[str, int], rounds: int, note: str, bar: bool) -> list[Measurement]:
    x, key = _samples(sizes["samples"], sizes["dim"]), jax.random.key(0)
    program, array = _compiled(**sizes), jax.device_put(x)
    calls = {
        "JAX": lambda: jax.block_until_ready(program(array, key)),
        "PyTorch": torch_step(x, sizes["slices"], sizes["knots"]),
    }
    for call in calls.values():
        call()
    progress(f"SIGReg: {rounds} round(s) of {', '.join(calls)}")
    seconds = alternate(calls, rounds, pause=PAUSE)
    how = f"{note}, drawing the slices included; median of {rounds} alternating rounds"
    ratio = median_ratio(seconds["PyTorch"], seconds["JAX"])
    faster = Measurement("SIGReg, PyTorch / JAX: time", ratio, "x", how)
    return [
        *(
            Measurement(f"SIGReg, {name}: time", statistics.median(values), "s", how)
            for name, values in seconds.items()
        ),
        faster.held_to(at_least=FASTER) if bar else faster,
    ]


def _agreement(sizes: dict[str, int]) -> list[Measurement]:
    x, key = _samples(sizes["samples"], sizes["dim"]), jax.random.key(0)
    directions = np.asarray(random_slices(key, sizes["dim"], sizes["slices"], "float32"))
    loss, gradient = _compiled(**sizes)(jax.device_put(x), key)
    wanted, wanted_gradient = torch_step(x, sizes["slices"], sizes["knots"], directions)()
    pairs = {
        "loss": (np.asarray(loss), wanted.numpy()),
        "gradient": (np.asarray(gradient), wanted_gradient.numpy()),
    }
    return [
        Measurement(
            f"SIGReg, JAX and PyTorch: relative difference of the {name}",
            float(np.linalg.norm(a - b) / np.linalg.norm(b)),
            "",
            "with the same slices, in norm",
        )
        for name, (a, b) in pairs.items()
    ]
