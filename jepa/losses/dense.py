"""V-JEPA 2.1's weights on what is visible (arXiv 2603.14482): more where something hidden is near.

B clips, Kc and Kt tokens of context and target, T, H, W tubelets, rows and columns of tokens.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def distance_to_masked(
    context: jax.Array, target: jax.Array, grid: tuple[int, int, int]
) -> jax.Array:
    """Euclidean distance, in tokens, from each visible token to the nearest masked one.

    `jepa.masks.distance` on the device: static shapes, and a thousandth of a step's work, so masks
    travel as they are. Exact: the squared distance is a sum over axes, hence one minimum over each.

    Args:
      context: int `[B, Kc]` token ids.
      target: int `[B, Kt]` token ids, at least one.
      grid: T, H, W.

    Returns:
      Float32 `[B, Kc]`, at least 1 where a token is not masked itself.
    """
    far = float(sum(size * size for size in grid))
    clear = jnp.full(math.prod(grid), far, jnp.float32)
    squared = jax.vmap(lambda ids: clear.at[ids].set(0.0))(target)
    squared = squared.reshape(-1, *grid)
    for axis, size in enumerate(grid, 1):
        places = jnp.arange(size, dtype=jnp.float32)
        steps = jnp.square(places[:, None] - places)
        lines = jnp.moveaxis(squared, axis, -1)
        squared = jnp.moveaxis(jnp.min(lines[..., None, :] + steps, axis=-1), -1, axis)
    squared = squared.reshape(squared.shape[0], -1)
    return jnp.sqrt(jnp.take_along_axis(squared, context, axis=1))


def ramp(step: jax.Array, start: int, end: int) -> jax.Array:
    """0 until `start`, 1 from `end` on, and a line between."""
    return jnp.clip((jnp.asarray(step, jnp.float32) - start) / max(end - start, 1), 0.0, 1.0)
