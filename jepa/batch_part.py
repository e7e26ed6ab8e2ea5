"""Which rows of a global batch one process reads; `jepa.parallel.mesh.batch_part` knows of a mesh.

A leaf without JAX: worker processes that read data import it.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class BatchPart:
    """A process's part of every global batch: some of the equal pieces that it is cut into.

    On a TPU slice a host has a block of the torus, and the rows of its chips seldom lie side by
    side: of 128 pieces it may have 0, 8, 32 and 40.

    Attributes:
      pieces: those of the process, ascending.
      count: of all pieces.
    """

    pieces: tuple[int, ...] = (0,)
    count: int = 1

    @property
    def shares(self) -> int:
        """How many parts of this size make a batch."""
        return self.count // len(self.pieces)

    def size(self, batch: int) -> int:
        """The rows of the part in a global batch of `batch` rows, a multiple of `count`."""
        return batch // self.count * len(self.pieces)

    def rows(self, batch: int) -> np.ndarray:
        """Their numbers in a global batch of `batch` rows, ascending, int64 [size(batch)]."""
        inside = np.arange(batch // self.count)
        starts = np.array(self.pieces, np.int64) * len(inside)
        return (starts[:, None] + inside).reshape(-1)


WHOLE = BatchPart()
