"""VICReg: views agree, dimensions vary, and no two dimensions say the same. A baseline.

Letters: V views, N samples of the global batch, D width. Source: Bardes, Ponce and LeCun (2022).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.losses.precision import check_floats, widen
from jepa.parallel.partition import constrain
from jepa.parallel.rows import constrain_rows

EPSILON = 1e-4  # under the root of the variance, as published


def vicreg(
    first: jax.Array,
    second: jax.Array,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """VICReg of two views, or of predictions and their targets.

    `vicreg_views` of the two, which see for the terms. Both sides get a gradient; stop it in the
    caller where one side is a fixed target.

    Args:
      first: `[N, D]`, any float type; computed in float32 or wider.
      second: the same shape; row i belongs to row i of `first`.
      invariance: lambda of equation 6.
      variance: mu.
      covariance: nu.

    Returns:
      Scalar loss, and the metrics of `vicreg_views`.

    Raises:
      ValueError: the shapes differ or are not `[N, D]` with N at least 2, or no float type.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"vicreg of {first.shape} and {second.shape}, not of two [N, D]")
    check_floats("vicreg", first, second)
    both = jnp.stack([widen(first), widen(second)])
    return vicreg_views(both, invariance=invariance, variance=variance, covariance=covariance)


def vicreg_views(
    x: jax.Array,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """VICReg of any number of views, over the global batch.

    The weighted sum of three terms. Invariance (equation 5) is the mean squared difference, over
    pairs of views. Variance (equations 1 and 2) is `mean_j max(0, 1 - sqrt(var_j + 1e-4))`, and
    covariance (equations 3 and 4) `1/D sum_(i != j) cov_ij^2`, both with N - 1 and summed over
    the two views as in equation 6; for V views they are twice the mean over views.

    Published forms differ. Here invariance is a mean over D too, as in the paper's Algorithm 1 and
    the authors' code, for which the weights 25, 25, 1 were chosen; equation 5 as printed is D times
    as large. The authors' code, unlike the paper, also halves the variance term: for its numbers
    pass `variance=12.5`.

    On a mesh a mean `[D]` and a covariance `[D, D]` of each view and a scalar cross devices, and in
    the backward pass `[D]` of each view, whatever N is. A constant dimension has a finite gradient.

    Args:
      x: `[V, N, D]`, any float type; computed in float32 or wider.
      invariance: lambda of equation 6.
      variance: mu.
      covariance: nu.

    Returns:
      Scalar loss, and the three terms without weights by the names of the arguments, and `std`,
      the mean standard deviation of a dimension.

    Raises:
      ValueError: `x` is not `[V, N, D]` with V and N at least 2, or of no float type.
    """
    if x.ndim != 3 or min(x.shape[:2]) < 2:
        raise ValueError(f"vicreg needs two views or more of two samples or more, not {x.shape}")
    check_floats("vicreg", x)
    views, _, width = x.shape
    x = constrain_rows(widen(x), 1)
    # The mean over all pairs of views, from distances to the views' centre.
    apart = (x - jnp.mean(x, axis=0)) ** 2
    moments = [_moments(view) for view in x]
    spread = jnp.stack([spread for spread, _ in moments])
    squares = jnp.stack([jnp.sum(others**2) for _, others in moments])
    terms = {
        "invariance": jnp.mean(apart) * (2 * views / (views - 1)),
        "variance": 2 * jnp.mean(jax.nn.relu(1 - spread)),
        "covariance": 2 * jnp.mean(squares) / width,
    }
    loss = (
        invariance * terms["invariance"]
        + variance * terms["variance"]
        + covariance * terms["covariance"]
    )
    return loss, {**terms, "std": jnp.mean(spread)}


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Standard deviations `[D]`, and covariances `[D, D]` with zeros for variances, of one view.

    View by view: for the diagonal of `[V, D, D]` a TPU's compiler puts V last and pads it to 128.
    """
    count, width = x.shape
    centred = x - jnp.mean(x, axis=0)
    products = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST)
    matrix = constrain(products / (count - 1), None, None)
    spread = jnp.sqrt(jnp.diagonal(matrix) + EPSILON)
    return spread, jnp.where(jnp.eye(width, dtype=bool), 0, matrix)
