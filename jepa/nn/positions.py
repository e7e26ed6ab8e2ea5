"""Fixed sine-cosine tables of absolute positions, as I-JEPA and V-JEPA add to their tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

# How much of a width D each axis gets: (frame, row, column). Where they sum to more than D, the
# last numbers are cut off.
SHARES: Mapping[str, Callable[[int], tuple[int, int, int]]] = {
    # Half for the frame.
    "sincos": lambda width: (width // 2, width // 4, width // 4),
    # Images (I-JEPA).
    "sincos_2d": lambda width: (0, width // 2, width // 2),
    # The same for all (V-JEPA's configs).
    "sincos_uniform": lambda width: (2 * math.ceil(width / 6),) * 3,
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
    for axis, share in enumerate(SHARES[form](width)):
        if not share:
            continue
        frequencies = theta ** (-jnp.arange(share // 2, dtype=wide) / (share // 2))
        angles = positions[axis].astype(wide)[..., None] * frequencies
        parts += [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts, axis=-1)[..., :width]
