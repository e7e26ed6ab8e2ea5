"""Signs of collapse in a batch of embeddings. Diagnostics to log, not losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.losses.precision import widen
from jepa.nn.pooling import l2_normalise


def embedding_health(x: jax.Array) -> dict[str, jax.Array]:
    """Measures how well `[N, D]` embeddings fill their space.

    Costs `N * D^2` for the covariance plus `D^3` for its eigenvalues, on every device: call it
    every few hundred steps. Computed in float32 or wider.

    Returns:
      Scalars. `std`: mean over dimensions of the standard deviation over samples; 0 at collapse.
      `mean_cosine`: mean cosine similarity of two different samples; 1 at collapse to a
      direction, about 0 for isotropic embeddings. `effective_rank`: exponential of the entropy of
      the covariance's eigenvalues divided by their sum (Roy and Vetterli, 2007, on variances);
      between 1 (a line, or a point) and min(N - 1, D).

    Raises:
      ValueError: `x` is not `[N, D]` with N at least 2.
    """
    if x.ndim != 2 or x.shape[0] < 2:
        raise ValueError(f"embedding_health needs [N, D] with N >= 2, not {x.shape}")
    x = widen(jax.lax.stop_gradient(x))
    count = x.shape[0]
    centred = x - jnp.mean(x, axis=0)
    covariance = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST) / count
    total = jnp.sum(l2_normalise(x), axis=0)
    return {
        "std": jnp.mean(jnp.sqrt(jnp.diagonal(covariance))),
        "mean_cosine": (jnp.sum(total**2) - count) / (count * (count - 1)),
        "effective_rank": _effective_rank(covariance),
    }


def _effective_rank(covariance: jax.Array) -> jax.Array:
    # Rounding leaves eigenvalues slightly below zero.
    values = jnp.maximum(jnp.linalg.eigvalsh(covariance), 0.0)
    total = jnp.sum(values)
    share = values / jnp.where(total > 0, total, 1.0)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))
