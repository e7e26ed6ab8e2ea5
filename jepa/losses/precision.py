"""The float rule of the losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def check_floats(name: str, *arrays: jax.Array) -> None:
    """Checks that the loss `name` is given float numbers, and some.

    Raises:
      ValueError: an array of another type, or an empty one.
    """
    for x in arrays:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} needs float embeddings, not {x.dtype}")
        if not x.size:
            raise ValueError(f"{name} of no numbers at all: an array is {x.shape}")


def widen(x: jax.Array) -> jax.Array:
    """Casts to float32 or wider; float64 stays float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
