"""The float rule of the losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def widen(x: jax.Array) -> jax.Array:
    """Casts to float32 or wider; float64 stays float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
