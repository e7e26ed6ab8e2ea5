"""Signs of collapse in a batch of embeddings. Diagnostics to log, not losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.losses.precision import widen
from jepa.losses.sigreg import sigreg
from jepa.nn.pooling import l2_normalise


def embedding_health(x: jax.Array) -> dict[str, jax.Array]:
    """Measures how well `[N, D]` embeddings fill their space.

    Costs `N * D * min(N, D)` for the covariance or the Gram matrix plus `min(N, D)^3` for its
    eigenvalues, on every device: call it every few hundred steps. Computed in float32 or wider.

    Returns:
      Scalars. `std`: mean over dimensions of the standard deviation over samples; 0 at collapse.
      `mean_cosine`: mean cosine similarity of two different samples; 1 at collapse to a
      direction, about 0 for isotropic embeddings. `effective_rank`: exponential of the entropy of
      the covariance's eigenvalues divided by their sum (Roy and Vetterli, 2007, on variances);
      between 1 (a line, or a point) and min(N - 1, D).

    Raises:
      ValueError: `x` is not `[N, D]` with N at least 2.
    """
    x = _checked(x, "embedding_health")
    count = x.shape[0]
    centred = x - jnp.mean(x, axis=0)
    total = jnp.sum(l2_normalise(x), axis=0)
    return {
        "std": jnp.mean(jnp.sqrt(jnp.mean(centred**2, axis=0))),
        "mean_cosine": (jnp.sum(total**2) - count) / (count * (count - 1)),
        "effective_rank": _effective_rank(centred),
    }


def rankme(x: jax.Array, epsilon: float = 1e-7) -> jax.Array:
    """RankMe of `[N, D]` embeddings (Garrido et al., 2023, eq. 1), in float32 or wider.

    The exponential of the entropy of the singular values divided by their sum, plus `epsilon`. It
    differs from the effective rank of `embedding_health` in two ways: embeddings are not centred,
    so that it falls to 1 when all are alike, wherever they lie; and singular values weigh small
    directions more than variances do. It needs many more samples than its value to be the rank of
    anything but the sample; the paper takes 25,600.

    Costs a singular value decomposition of `[N, D]`, on every device.

    Returns:
      Scalar between 1 and (but for `epsilon`) min(N, D); 1 for zeros.

    Raises:
      ValueError: `x` is not `[N, D]` with N at least 2.
    """
    x = _checked(x, "rankme")
    # Not from a Gram matrix: squared, the small singular values drown in rounding.
    values = jnp.linalg.svd(x, compute_uv=False)
    total = jnp.sum(values)
    share = values / jnp.where(total > 0, total, 1.0) + epsilon
    rank = jnp.exp(-jnp.sum(share * jnp.log(share)))
    return jnp.where(total > 0, rank, 1.0)


def gaussianity(x: jax.Array, key: jax.Array, *, slices: int = 64) -> jax.Array:
    """SIGReg of `[N, D]` embeddings after one shift and one scale for all dimensions.

    How far the shape of the cloud is from the round Gaussian that LeJEPA asks for, whatever its
    place and size, so that methods can be compared; LeJEPA's own loss has no such freedom.
    About 0.6 for N(0, I) and any N; it grows with N where directions are flat or have clusters, to
    about 0.4 * N at full collapse.

    Raises:
      ValueError: `x` is not `[N, D]` with N at least 2.
    """
    x = _checked(x, "gaussianity")
    centred = x - jnp.mean(x, axis=0)
    scale = jnp.sqrt(jnp.mean(centred**2))
    return sigreg(centred / jnp.where(scale > 0, scale, 1.0), key, slices=slices)


def _checked(x: jax.Array, name: str) -> jax.Array:
    if x.ndim != 2 or x.shape[0] < 2:
        raise ValueError(f"{name} needs [N, D] with N >= 2, not {x.shape}")
    return widen(jax.lax.stop_gradient(x))


def _effective_rank(centred: jax.Array) -> jax.Array:
    # Both products have the same eigenvalues, but for zeros.
    small = centred if centred.shape[0] < centred.shape[1] else centred.T
    product = jnp.matmul(small, small.T, precision=jax.lax.Precision.HIGHEST)
    # Rounding leaves eigenvalues slightly below zero.
    values = jnp.maximum(jnp.linalg.eigvalsh(product), 0.0)
    total = jnp.sum(values)
    share = values / jnp.where(total > 0, total, 1.0)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))
