"""Masks to look at."""

from __future__ import annotations

import numpy as np

from jepa.masks.blocks import Grid

_UNSEEN = (38, 38, 44)
_SEEN = (190, 194, 204)
_TARGETS = ((226, 88, 62), (52, 138, 200), (64, 160, 92), (218, 165, 32), (140, 92, 180))


def picture(context: np.ndarray, targets: np.ndarray, grid: Grid, cell: int = 8) -> np.ndarray:
    """Draws the masks of one sample, frames side by side.

    Args:
      context: int [Kc] token ids; light grey.
      targets: int [M, Kt] or [Kt] token ids; a colour each, mixed where they overlap.
      grid: T, H, W: tubelets, rows and columns of tokens.
      cell: side of a token, in pixels, the last of which is a line between tokens.

    Returns:
      RGB uint8 [H cell, T W cell, 3]; what is neither seen nor predicted is dark.
    """
    tokens = int(np.prod(grid))
    colours = np.tile(np.array(_UNSEEN, np.float32), (tokens, 1))
    colours[context] = _SEEN
    targets = np.atleast_2d(targets)
    sums, hits = np.zeros((tokens, 3), np.float32), np.zeros(tokens, np.float32)
    for i, target in enumerate(targets):
        sums[target] += _TARGETS[i % len(_TARGETS)]
        hits[target] += 1
    colours[hits > 0] = sums[hits > 0] / hits[hits > 0, None]
    pixels = colours.reshape(*grid, 3).repeat(cell, axis=1).repeat(cell, axis=2)
    if cell > 2:
        pixels[:, cell - 1 :: cell] = pixels[:, :, cell - 1 :: cell] = 0
    return np.concatenate(list(pixels), axis=1).astype(np.uint8)
