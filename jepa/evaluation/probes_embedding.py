"""Clips through a program on a mesh, and what it finds back on the host.

Letters: n clips, b clips of a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jepa.data import prefetch
from jepa.data.evalset import EvalSet
from jepa.nn.frames import Video
from jepa.parallel import mesh as meshes

# Batches in flight: the host decodes the next ones while the device computes, and no more than this
# many wait in device memory.
_IN_FLIGHT = 4


def embedded(
    program: Callable[[Video], dict[str, jax.Array]],
    view: EvalSet,
    numbers: np.ndarray,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields what a program finds in some records, on the host: a dict of `[b, ...]` a batch.

    Every process reads its part of the batches and gets all of the results.

    Args:
      program: of a batch on the mesh; a compiled one, under `jax.set_mesh`.
      view: whose records.
      numbers: int `[n]`, the records, n the sum of b.
      batch_size: a multiple of the batch parts of the mesh; b is less for the last batch.
      mesh: over which batches are cut.
    """
    flying: deque[tuple[int, dict[str, jax.Array]]] = deque()

    def land() -> dict[str, np.ndarray]:
        valid, arrays = flying.popleft()
        return {kind: np.asarray(rows)[:valid] for kind, rows in jax.device_get(arrays).items()}

    sharding, part = meshes.batch_sharding(mesh), meshes.batch_part(mesh)
    for valid, video in view.batches(batch_size, numbers, part):
        flying.append((valid, program(prefetch.put(video, sharding))))
        if len(flying) > _IN_FLIGHT:
            yield land()
    while flying:
        yield land()
