"""From a vector a token to a vector an example."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def masked_mean(tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Averages tokens, in float32 at least.

    Args:
      tokens: `[B, N, D]`.
      mask: bool `[B, N]`, true where a token counts; all count when absent. An example without
        any gives zeros.

    Returns:
      `[B, D]` in `promote_types(tokens.dtype, float32)`.
    """
    wide = jnp.promote_types(tokens.dtype, jnp.float32)
    if mask is None:
        return jnp.mean(tokens.astype(wide), axis=1)
    weights = mask.astype(wide)[..., None]
    total = jnp.sum(tokens.astype(wide) * weights, axis=1)
    return total / jnp.maximum(jnp.sum(weights, axis=1), 1.0)


def last_token(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Takes the last token that counts, in float32 at least.

    Args:
      tokens: `[B, N, D]`.
      mask: bool `[B, N]`, true where a token counts; those that do not come last.

    Returns:
      `[B, D]` in `promote_types(tokens.dtype, float32)`; zeros for an example without any.
    """
    last = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
    x = jnp.take_along_axis(tokens, last[:, None, None], axis=1)[:, 0]
    return jnp.where(mask[:, :1], x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0)


def l2_normalise(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Scales `[..., D]` to unit length, in float32 at least; zeros stay zeros, with gradient 0."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(jnp.square(x), -1, keepdims=True)
    # A zero passes no cotangent on, which the bounded root would multiply by 1 / eps. The bound is
    # inside the root so that the gradient is finite there and the selection can drop it.
    x = jnp.where(squares > 0, x, 0)
    return x * jax.lax.rsqrt(jnp.maximum(squares, eps**2))
