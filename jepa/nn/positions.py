"""Fixed sine-cosine tables of absolute positions, as I-JEPA and V-JEPA add to their tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sincos_3d(positions: jax.Array, width: int, *, theta: float = 10000.0) -> jax.Array:
    """Encodes (frame, row, column) in `width` numbers.

    Half the width is the frame's, a quarter each the row's and the column's; an axis with `k`
    numbers has k/2 sines, then k/2 cosines, of `position * theta ** (-i / (k / 2))`.

    Args:
      positions: `[3, N]`, see `nn.rotary.grid_positions`.
      width: D, a multiple of 8.
      theta: the base of the frequencies.

    Returns:
      `[N, D]`.
    """
    wide = jnp.promote_types(positions.dtype, jnp.float32)
    parts = []
    for axis, share in enumerate((width // 2, width // 4, width // 4)):
        frequencies = theta ** (-jnp.arange(share // 2, dtype=wide) / (share // 2))
        angles = positions[axis].astype(wide)[:, None] * frequencies
        parts += [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts, axis=-1)
