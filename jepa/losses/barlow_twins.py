"""Barlow Twins: the cross-correlation of two views is pulled towards the identity. A baseline.

Letters: N samples of the global batch, D width. Source: Zbontar, Jing, Misra, LeCun, Deny (2021).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.losses.precision import check_floats, widen
from jepa.parallel.partition import constrain
from jepa.parallel.rows import constrain_rows

EPSILON = 1e-5  # added to the variance, as the batch normalisation of the published code does


def barlow_twins(
    first: jax.Array, second: jax.Array, *, redundancy: float = 5e-3
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Barlow Twins of two views, or of predictions and their targets.

    `sum_i (1 - C_ii)^2 + redundancy * sum_(i != j) C_ij^2` (equation 1), where `C` is the
    correlation over the global batch of dimension i of `first` with dimension j of `second`
    (equation 2). 1e-5 is added to the variances, so that a constant dimension has correlation 0 and
    a finite gradient. The authors' code multiplies all by 0.024 (`--scale-loss`); this does not.

    On a mesh two means `[D]`, two variances `[D]` and one matrix `[D, D]` cross devices, and two
    `[D]` in the backward pass, whatever N is.

    Args:
      first: `[N, D]`, any float type; computed in float32 or wider.
      second: the same shape; row i belongs to row i of `first`.
      redundancy: weight of the terms off the diagonal.

    Returns:
      Scalar loss, and as metrics its two sums without weight, `diagonal` and `off_diagonal`, and
      `correlation`, the mean of the diagonal.

    Raises:
      ValueError: the shapes differ or are not `[N, D]` with N at least 2, or no float type.
    """
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        raise ValueError(
            f"barlow_twins of {first.shape} and {second.shape}, not of two [N, D] with N >= 2"
        )
    check_floats("barlow_twins", first, second)
    count, width = first.shape
    first, first_scale = _centred(first)
    second, second_scale = _centred(second)
    products = jnp.matmul(first.T, second, precision=jax.lax.Precision.HIGHEST) / count
    # Scaled after the product: the variances travel beside the matrix, not before it.
    correlations = constrain(products, None, None) * first_scale[:, None] * second_scale
    own = jnp.diagonal(correlations)
    others = jnp.where(jnp.eye(width, dtype=bool), 0, correlations)
    terms = {"diagonal": jnp.sum((1 - own) ** 2), "off_diagonal": jnp.sum(others**2)}
    loss = terms["diagonal"] + redundancy * terms["off_diagonal"]
    return loss, {**terms, "correlation": jnp.mean(own)}


def _centred(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Samples less their mean `[N, D]`, and one over their standard deviation `[D]`."""
    x = constrain_rows(widen(x))
    centred = x - jnp.mean(x, axis=0)
    return centred, jax.lax.rsqrt(jnp.mean(centred**2, axis=0) + EPSILON)
