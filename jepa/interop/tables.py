"""The fixed tables of positions that older checkpoints carry, as they were made: in float64.

Source: V-JEPA (arXiv 2404.08471) and I-JEPA (2301.08243); see `jepa.nn.positions` for the forms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from jepa.nn.positions import SHARES

_THETA = 10000.0


def table(grid: tuple[int, int, int], width: int, form: str) -> np.ndarray:
    """Returns the table `[1, N, D]`, float32, of a grid of N cells ordered by frame, row, column.

    Args:
      grid: numbers of tubelets, rows and columns.
      width: D.
      form: a name in `SHARES`.
    """
    places = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in grid), indexing="ij"))
    places = places.reshape(3, -1)
    found = []
    for axis, share in SHARES[form](width):
        exponents = np.arange(share // 2, dtype=float) / (share / 2)
        angles = np.outer(places[axis], 1.0 / _THETA**exponents)
        found += [np.sin(angles), np.cos(angles)]
    return np.concatenate(found, axis=1)[None, :, :width].astype(np.float32)


def maker(grid: tuple[int, int, int], width: int, form: str) -> Callable[[], np.ndarray]:
    """Returns what makes a table, for `Layout.derived`."""
    return partial(table, grid, width, form)
