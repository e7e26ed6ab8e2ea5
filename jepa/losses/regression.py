"""Regression of latent vectors onto latent vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.losses.precision import widen
from jepa.nn.pooling import l2_normalise

KINDS = ("l1", "smooth_l1", "l2", "cosine")


def regression(
    predictions: jax.Array,
    targets: jax.Array,
    kind: str = "l1",
    *,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Mean distance between predictions and targets over the global batch.

    "l1" is the mean absolute difference (V-JEPA), "smooth_l1" half its square where it is below 1
    and itself less a half beyond (I-JEPA), "l2" the mean squared difference (V-JEPA's exponent 2
    also halves it; this does not), each over all numbers; "cosine" is one minus the
    cosine similarity of each vector. Computed in float32 or wider. The caller stops gradients.

    On a mesh only two scalars cross devices.

    Args:
      predictions: `[B, D]` or `[B, N, D]`.
      targets: the same shape.
      kind: one of `KINDS`.
      weights: float or bool, of a leading part of the shape without D: `[B]` or `[B, N]`. The
        result is the weighted mean over vectors, and 0 where all weights are 0.

    Raises:
      ValueError: an unknown kind, or shapes that do not fit.
    """
    if predictions.shape != targets.shape or predictions.ndim < 2:
        raise ValueError(f"regression of {predictions.shape} onto {targets.shape}")
    if kind == "cosine":
        product = l2_normalise(predictions) * l2_normalise(targets)
        errors = 1.0 - jnp.sum(product, axis=-1)
    elif kind == "l1":
        errors = jnp.mean(jnp.abs(widen(predictions) - widen(targets)), axis=-1)
    elif kind == "smooth_l1":
        difference = jnp.abs(widen(predictions) - widen(targets))
        inner = jnp.minimum(difference, 1.0)
        errors = jnp.mean(inner * (difference - inner / 2), axis=-1)
    elif kind == "l2":
        errors = jnp.mean((widen(predictions) - widen(targets)) ** 2, axis=-1)
    else:
        raise ValueError(f"regression kind {kind!r} is none of {KINDS}")
    if weights is None:
        return jnp.mean(errors)
    if weights.shape != errors.shape[: weights.ndim]:
        raise ValueError(f"weights {weights.shape} do not fit vectors {errors.shape}")
    weights = weights.reshape(weights.shape + (1,) * (errors.ndim - weights.ndim))
    weights = jnp.broadcast_to(weights.astype(errors.dtype), errors.shape)
    total = jnp.sum(weights)
    return jnp.sum(weights * errors) / jnp.where(total > 0, total, 1.0)
