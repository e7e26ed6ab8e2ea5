"""Rotary position embeddings: three axes for video, one for text.

The tables of cosines and sines are computed once a forward pass and shared by all layers. B
batch, N tokens, K head dimension.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jepa.errors import UserError


@struct.dataclass
class Rotary:
    """What `rotate` needs: `y = x * cos + partner(x) * sin`.

    Attributes:
      cos: `[1 or B, 1, N, K]`.
      sin: of the same shape, with the partner's sign already in it.
      halves: whether channel i's partner is i +- K/2 (Llama) or its neighbour in the pair
        (2i, 2i + 1) (V-JEPA 2).
    """

    cos: jax.Array
    sin: jax.Array
    halves: bool = struct.field(pytree_node=False, default=False)


def rotate(x: jax.Array, rotary: Rotary) -> jax.Array:
    """Turns queries or keys `[B, heads, N, K]` by their positions; the type of `x` is kept."""
    if rotary.halves:
        partner = jnp.roll(x, x.shape[-1] // 2, axis=-1)
    else:
        pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
        partner = jnp.flip(pairs, axis=-1).reshape(x.shape)
    wide = jnp.promote_types(x.dtype, rotary.cos.dtype)
    y = x.astype(wide) * rotary.cos + partner.astype(wide) * rotary.sin
    return y.astype(x.dtype)


def grid_positions(
    grid: tuple[int, int, int],
    *,
    pretrain_grid: int | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """The (frame, row, column) of every token of a grid, row-major.

    Args:
      grid: numbers of tubelets, rows and columns; odd ones and ones are fine.
      pretrain_grid: when given, rows and columns are stretched so that they span
        0..pretrain_grid - 1, as V-JEPA 2.1 does; positions are then fractions.
      dtype: of the result.

    Returns:
      `[3, N]` with N the product of the grid.
    """
    frames, rows, columns = grid

    def axis(count: int, stretch: bool) -> jax.Array:
        positions = jnp.arange(count, dtype=dtype)
        # One row has position 0 at any scale; the published formula divides by zero there.
        if stretch and pretrain_grid is not None and count > 1:
            positions = positions * ((pretrain_grid - 1) / (count - 1))
        return positions

    axes = jnp.meshgrid(axis(frames, False), axis(rows, True), axis(columns, True), indexing="ij")
    return jnp.stack([a.reshape(-1) for a in axes])


def rotary_3d(
    positions: jax.Array, head_dim: int, *, tiled: bool, theta: float = 10000.0
) -> Rotary:
    """Rotary tables for video tokens, in V-JEPA 2's layout.

    The head is cut in three equal even parts, for frame, row and column; what is left over at its
    end is not rotated. Channels turn in adjacent pairs (2i, 2i + 1).

    Args:
      positions: `[3, N]` or `[3, B, N]`, whole or fractional (see `grid_positions`).
      head_dim: K, even and at least 6.
      tiled: V-JEPA 2's released form, in which channel j of a part turns by frequency j mod k (so
        that the two channels of a pair turn by different angles and lengths change: not a
        rotation, but what those weights were trained with). Otherwise both channels of pair i
        turn by frequency i, a true rotation, as in V-JEPA 2.1.
      theta: the base of the frequencies `theta ** (-i / k)`, i = 0..k-1.

    Raises:
      UserError: when the head is too small or odd.
    """
    if head_dim % 2 or head_dim < 6:
        raise UserError(f"head dimension is {head_dim}; 3-D rotary needs an even one of at least 6")
    pairs = (head_dim // 3) // 2
    wide = jnp.promote_types(positions.dtype, jnp.float32)
    frequencies = theta ** (-jnp.arange(pairs, dtype=wide) / pairs)
    angles = positions.astype(wide)[..., None] * frequencies
    angles = jnp.tile(angles, 2) if tiled else jnp.repeat(angles, 2, axis=-1)
    angles = jnp.concatenate(list(angles), axis=-1)
    rest = head_dim - angles.shape[-1]
    angles = jnp.pad(angles, [(0, 0)] * (angles.ndim - 1) + [(0, rest)])
    # The even channel of a pair takes minus its partner, the odd one plus.
    signs = jnp.tile(jnp.asarray([-1.0, 1.0], wide), head_dim // 2)
    return _rotary(jnp.cos(angles), jnp.sin(angles) * signs, halves=False)


@dataclasses.dataclass(frozen=True)
class LongContext:
    """Llama 3's rescaling of the slow frequencies for long texts (Llama 3.1 and 3.2).

    Wavelengths longer than `original_length / low` are stretched by `factor`, those shorter than
    `original_length / high` are kept, and those between are blended.
    """

    factor: float = 32.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192


def rotary_1d(
    positions: jax.Array,
    head_dim: int,
    *,
    theta: float = 10000.0,
    scaling: LongContext | None = None,
) -> Rotary:
    """Rotary tables for text tokens, in Llama's layout (channel i with channel i + K/2).

    Args:
      positions: `[N]` or `[B, N]`.
      head_dim: K, even.
      theta: the base of the frequencies.
      scaling: Llama 3's rescaling, if any.

    Raises:
      UserError: when the head dimension is odd.
    """
    if head_dim % 2:
        raise UserError(f"head dimension is {head_dim}; rotary embeddings need an even one")
    wide = jnp.promote_types(positions.dtype, jnp.float32)
    half = head_dim // 2
    frequencies = theta ** (-jnp.arange(half, dtype=wide) / half)
    if scaling is not None:
        turns = scaling.original_length * frequencies / (2 * math.pi)
        keep = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
        frequencies = frequencies * (keep + (1 - keep) / scaling.factor)
    angles = jnp.tile(positions.astype(wide)[..., None] * frequencies, 2)
    signs = jnp.repeat(jnp.asarray([-1.0, 1.0], wide), half)
    return _rotary(jnp.cos(angles), jnp.sin(angles) * signs, halves=True)


def gather(positions: jax.Array, token_ids: jax.Array) -> jax.Array:
    """Picks the positions `[3, N]` of the tokens int `[B, K]`, giving `[3, B, K]`."""
    return jnp.take(positions, token_ids, axis=1)


def _rotary(cos: jax.Array, sin: jax.Array, *, halves: bool) -> Rotary:
    """Adds the heads' axis, and the batch's when the positions had none."""
    if cos.ndim == 2:
        cos, sin = cos[None], sin[None]
    return Rotary(cos[:, None], sin[:, None], halves)
