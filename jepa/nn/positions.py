"""Fixed sine-cosine tables of absolute positions, as I-JEPA and V-JEPA add to their tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_KEYS = -0.75  # torch's

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
    table = table.reshape(*made_for, width)
    weights = _cubic if form.startswith("sincos_2d") else _linear
    for axis, (to, size) in enumerate(zip(grid, made_for, strict=True)):
        if to != size:
            matrix = jnp.asarray(weights(to, size), table.dtype)
            table = jnp.moveaxis(jnp.tensordot(matrix, table, (1, axis)), 0, axis)
    return table.reshape(-1, width)


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
        near = (_KEYS + 2) * away**3 - (_KEYS + 3) * away**2 + 1
        far = _KEYS * (away**3 - 5 * away**2 + 8 * away - 4)
        columns = np.clip(first + step, 0, size - 1)
        np.add.at(matrix, (np.arange(to), columns), np.where(away <= 1, near, far))
    return matrix
