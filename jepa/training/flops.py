"""Peak arithmetic of devices, and model FLOPs utilisation (MFU) against it."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOP/s of a chip, from the vendors' data sheets; matched as a substring of
# `device_kind`, the longest first, so that "TPU v5 lite" is not taken for "TPU v5".
PEAKS = {
    "TPU v3": 61.5e12,  # of one of the two cores, which JAX shows as a device
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "V100": 125e12,
    "T4": 65e12,
    "L4": 121e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
}


@dataclasses.dataclass(frozen=True)
class Peak:
    """What utilisation is relative to.

    Attributes:
      flops: FLOP/s of all devices of the mesh together; None when unknown.
      label: where the number comes from.
    """

    flops: float | None
    label: str

    def utilisation(self, flops: float, seconds: float) -> float | None:
        """Returns the share of the peak that `flops` in `seconds` amounts to."""
        return flops / seconds / self.flops if self.flops and seconds > 0 else None


def peak(devices: Sequence[jax.Device]) -> Peak:
    """Returns the peak of devices of one kind: from the table, on a CPU by measuring."""
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        return Peak(
            _measure_cpu() * len({device.process_index for device in devices}),
            "CPU float32 matmul, measured",
        )
    for name in sorted(PEAKS, key=len, reverse=True):
        if name.lower() in kind.lower():
            return Peak(PEAKS[name] * len(devices), f"{kind} dense bfloat16")
    return Peak(None, f"{kind}: peak unknown")


@functools.cache
def _measure_cpu(size: int = 1024, budget: float = 0.3) -> float:
    """Returns FLOP/s of float32 matmuls on all cores: the best of as many as fit `budget` s.

    The CPU devices of a process share its cores, so this is the peak of them all together.
    """
    x = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(lambda a, b: a @ b)
    multiply(x, x).block_until_ready()
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
