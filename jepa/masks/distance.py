"""How far the visible tokens are from the masked ones: V-JEPA 2.1's weights on the context."""

from __future__ import annotations

import numpy as np

from jepa.masks.blocks import Grid


def distance_to_masked(context: np.ndarray, target: np.ndarray, grid: Grid) -> np.ndarray:
    """Euclidean distance, in tokens, from each token of the context to the nearest of the target.

    The d_min of V-JEPA 2.1 (arXiv 2603.14482), whose loss on the context has the weights
    1 / sqrt(d_min). Exact, by one pass of minima over each axis: the squared distance is a sum
    over axes. Time counts as space does, a tubelet for a patch; in tubes that last for the whole
    clip the nearest masked token is in the same frame, and only one frame is computed.

    Args:
      context: int [B, Kc] token ids.
      target: int [B, Kt] token ids, at least one.
      grid: tubelets, rows and columns of tokens.

    Returns:
      Float32 [B, Kc], at least 1 where a token is not masked itself.
    """
    frames, cells, batch = grid[0], grid[1] * grid[2], len(context)
    masked = np.zeros((batch, frames * cells), bool)
    np.put_along_axis(masked, target, True, axis=1)
    volume = masked.reshape(batch, *grid)
    where = context
    if (volume == volume[:, :1]).all():
        volume, where = volume[:, :1], context % cells
    squared = np.where(volume, np.int32(0), np.int32(sum(size * size for size in grid)))
    for axis in (1, 2, 3):
        squared = _nearest(squared, axis)
    distances = np.sqrt(squared.reshape(batch, -1).astype(np.float32))
    return np.take_along_axis(distances, where, axis=1)


def _nearest(squared: np.ndarray, axis: int) -> np.ndarray:
    """Min over j of squared[j] + (i - j)^2 along an axis."""
    size = squared.shape[axis]
    if size == 1:
        return squared
    lines = np.moveaxis(squared, axis, 0)
    best = lines.copy()
    for step in range(1, size):
        np.minimum(best[step:], lines[:-step] + np.int32(step * step), out=best[step:])
        np.minimum(best[:-step], lines[step:] + np.int32(step * step), out=best[:-step])
    return np.moveaxis(best, 0, axis)
