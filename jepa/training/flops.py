"""Peak arithmetic of devices, and model FLOPs utilisation (MFU) against it.

What is counted is `Method.flops`, the useful arithmetic of a step on its batch. Work that is done
again to save memory (rematerialisation, the second forward pass of a gradient cache) is not in it:
it takes time, and so lowers the utilisation.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

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
def _measure_cpu(size: int = 1024) -> float:
    """Returns FLOP/s of float32 matmuls on all cores.

    The CPU devices of a process share its cores, so this is the peak of them all together.
    """
    x = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(lambda a, b: a @ b)
    multiply(x, x).block_until_ready()
    return 2 * size**3 / _fastest(lambda: multiply(x, x).block_until_ready())


def _fastest(
    call: Callable[[], object], *, bursts: int = 6, seconds: float = 0.05, pause: float = 0.1
) -> float:
    """Returns the shortest time of a call, in seconds.

    It is repeated in short bursts with pauses between them, so that somebody else's work of a
    moment does not pass for a slow processor.
    """
    best = float("inf")
    for burst in range(bursts):
        if burst:
            time.sleep(pause)
        end = time.perf_counter() + seconds
        while True:
            start = time.perf_counter()
            call()
            now = time.perf_counter()
            best = min(best, now - start)
            if now >= end:
                break
    return best
