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

from jepa.parallel import chips


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
    chip = chips.of_kind(kind)
    if chip is None:
        return Peak(None, f"{kind}: peak unknown")
    return Peak(chip.flops * len(devices), f"{kind} dense bfloat16")


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
