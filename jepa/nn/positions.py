"""Fixed sine-cosine tables of absolute positions, as I-JEPA and V-JEPA add to their tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_KEYS = -0.75  # torch's
_KEYS_ANTIALIASED = -0.5  # torch's, and Pillow's, of the kind that is stretched

# Which axes of (frame, row, column) come one after another, and how much of a width D each gets.
# Where they sum to more than D, the last numbers are cut off.
SHARES: Mapping[str, Callable[[int], tuple[tuple[int, int], ...]]] = {
    # Half for the frame.
    "sincos": lambda width: ((0, width // 2), (1, width // 4), (2, width // 4)),
    # Images.
    "sincos_2d": lambda width: ((1, width // 2), (2, width // 2)),
    # Images, columns before rows: what I-JEPA's published weights were trained with.
    "sincos_2d_columns": lambda width: ((2, width // 2), (1, width // 2)),
    # The same for all (V-JEPA's configs).
    "sincos_uniform": lambda width: tuple((axis, 2 * math.ceil(width / 6)) for axis in range(3)),
}
POSITIONS = ("none", *SHARES)


def sincos(
    positions: jax.Array, width: int, form: str = "sincos", *, theta: float = 10000.0
) -> jax.Array:
    """Encodes (frame, row, column) in `width` numbers.

    An axis with `k` numbers has k/2 sines, then k/2 cosines, of
    `position * theta ** (-i / (k / 2))`.

    Args:
      positions: `[3, N]` or `[3, B, N]`, see `nn.rotary.grid_positions`.
      width: D, a multiple of 8.
      form: a name in `SHARES`.
      theta: the base of the frequencies.

    Returns:
      `[N, D]` or `[B, N, D]`.
    """
    wide = jnp.promote_types(positions.dtype, jnp.float32)
    parts = []
    for axis, share in SHARES[form](width):
        frequencies = theta ** (-jnp.arange(share // 2, dtype=wide) / (share // 2))
        angles = positions[axis].astype(wide)[..., None] * frequencies
        parts += [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts, axis=-1)[..., :width]


def resized(
    grid: tuple[int, int, int],
    made_for: tuple[int, int, int],
    width: int,
    form: str,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Stretches the table of one grid over another, as the published encoders do.

    V-JEPA's tables are interpolated linearly in all axes, I-JEPA's by cubic convolution (Keys,
    with a = -0.75), cells being areas: the middle of cell i of n lies at (i + 1/2) / n.

    Args:
      grid: numbers of tubelets, rows and columns to give positions to.
      made_for: the same of the table.
      width: D, a multiple of 8.
      form: a name in `SHARES`.
      dtype: of the result.

    Returns:
      `[N, D]` with N the product of `grid`.
    """
    axes = jnp.meshgrid(*(jnp.arange(n, dtype=dtype) for n in made_for), indexing="ij")
    table = sincos(jnp.stack([a.reshape(-1) for a in axes]), width, form)
    method = "cubic" if form.startswith("sincos_2d") else "linear"
    return stretched(table, grid, made_for, method)


def stretched(
    table: jax.Array, grid: tuple[int, ...], made_for: tuple[int, ...], method: str
) -> jax.Array:
    """Stretches any table of positions over another grid, an axis after the other.

    Args:
      table: `[M, D]`, a vector a cell, cells ordered row-major.
      grid: numbers of cells of each axis to give positions to.
      made_for: the same of the table, with product M.
      method: a name in `METHODS`.

    Returns:
      `[N, D]` with N the product of `grid`; the table itself where the grids are equal.
    """
    width = table.shape[-1]
    table = table.reshape(*made_for, width)
    for axis, (to, size) in enumerate(zip(grid, made_for, strict=True)):
        if to != size:
            matrix = jnp.asarray(METHODS[method](to, size), table.dtype)
            table = jnp.moveaxis(jnp.tensordot(matrix, table, (1, axis)), 0, axis)
    return table.reshape(-1, width)


def sincos_1d(places: jax.Array, width: int, *, theta: float = 10000.0) -> jax.Array:
    """Encodes places `[N]` in `[N, width]`: half sines, then as many cosines (see `sincos`)."""
    wide = jnp.promote_types(places.dtype, jnp.float32)
    frequencies = theta ** (-jnp.arange(width // 2, dtype=wide) / (width // 2))
    angles = places.astype(wide)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _linear(to: int, size: int) -> np.ndarray:
    """`[to, size]`: each place's share of its two neighbours; beyond the ends, the end."""
    places = np.clip((np.arange(to) + 0.5) * size / to - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0)


def _cubic(to: int, size: int) -> np.ndarray:
    """`[to, size]`: each place's share of its four neighbours; beyond the ends, the end again."""
    places = (np.arange(to) + 0.5) * size / to - 0.5
    first = np.floor(places).astype(int)
    matrix = np.zeros((to, size))
    for step in range(-1, 3):
        away = np.abs(places - (first + step))
        columns = np.clip(first + step, 0, size - 1)
        np.add.at(matrix, (np.arange(to), columns), _keys(away, _KEYS))
    return matrix


def _keys(away: np.ndarray, a: float) -> np.ndarray:
    """Keys' convolution kernel at a distance; nothing beyond two cells."""
    near = (a + 2) * away**3 - (a + 3) * away**2 + 1
    far = a * (away**3 - 5 * away**2 + 8 * away - 4)
    return np.where(away <= 1, near, np.where(away < 2, far, 0.0))


def _tent(away: np.ndarray) -> np.ndarray:
    return np.maximum(1 - away, 0)


def _antialiased(kernel: Callable[[np.ndarray], np.ndarray], to: int, size: int) -> np.ndarray:
    """`[to, size]`: the kernel, as wide as a place of the coarser grid, cut off at the ends."""
    middles = (np.arange(to) + 0.5) * size / to
    away = np.abs(np.arange(size) + 0.5 - middles[:, None]) / max(size / to, 1.0)
    shares = kernel(away)
    return shares / shares.sum(axis=1, keepdims=True)


# How a table is stretched, by name. The kinds that spread the kernel where cells become fewer also
# end otherwise: what lies outside counts for nothing, where the others repeat the last cell.
METHODS: Mapping[str, Callable[[int, int], np.ndarray]] = {
    "linear": _linear,
    "cubic": _cubic,
    "linear_antialiased": partial(_antialiased, _tent),
    "cubic_antialiased": partial(_antialiased, partial(_keys, a=_KEYS_ANTIALIASED)),
}
