"""Goodness of fit of whole vectors to N(0, I), without slices: what SIGReg is compared with.

Letters: N samples of the global batch, D width. Nothing is standardised: SIGReg's null has mean 0
and covariance I, so location and scale count. Classical tests of normality with unknown mean and
covariance first divide by those of the sample, and give other numbers.

For ablations. Memory is `N^2` numbers over the mesh's data devices, and all `N * D` samples are on
every device in turn: gathered in the forward pass, their gradient reduced in the backward pass.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.losses.precision import check_floats, widen
from jepa.parallel.rows import constrain_rows


def bhep(x: jax.Array, *, beta: float = 1.0) -> jax.Array:
    """Baringhaus-Henze-Epps-Pulley statistic of `x` against N(0, I).

    `N` times the integral over t of `|ecf(t) - exp(-|t|^2 / 2)|^2` with the density of
    N(0, beta^2 I) as its weight, where `ecf(t)` is the mean of `exp(i t.x)` over the global batch.
    With b for beta, in closed form:

        1/N sum_ij exp(-b^2 |x_i - x_j|^2 / 2)
        - 2 (1 + b^2)^(-D/2) sum_i exp(-b^2 |x_i|^2 / (2 (1 + b^2))) + N (1 + 2 b^2)^(-D/2)

    For samples of N(0, I) the mean is `1 - (1 + 2 b^2)^(-D/2)`, whatever N. In one dimension
    with b = 1 this is SIGReg's integral divided by sqrt(2 pi). In high dimensions choose b near
    1 / sqrt(D): with b = 1 the kernel of two samples is near exp(-D), and the gradient vanishes.

    Args:
      x: `[N, D]`, any float type; computed in float32 or wider.
      beta: positive; a large one looks at fine structure, a small one at the first moments.

    Returns:
      Scalar, at least 0 up to rounding.

    Raises:
      ValueError: `x` is not `[N, D]`, empty or of no float type, or `beta` is not positive.

    Source: Baringhaus and Henze (1988); Henze and Wagner (1997), equation 1.2, without their
    standardisation.
    """
    if x.ndim != 2:
        raise ValueError(f"bhep needs [N, D], not {x.shape}")
    if not beta > 0:
        raise ValueError(f"bhep needs a positive beta, not {beta}")
    check_floats("bhep", x)
    count, width = x.shape
    square = beta**2
    x = constrain_rows(widen(x))
    norms = jnp.sum(x**2, axis=1)
    near_zero = jnp.exp(-square / (2 * (1 + square)) * norms)
    pairs = jnp.sum(jnp.exp(-square / 2 * _squared_distances(x)), axis=1)
    each = pairs / count - 2 * (1 + square) ** (-width / 2) * near_zero
    return jnp.sum(each + (1 + 2 * square) ** (-width / 2))


def henze_zirkler(x: jax.Array) -> jax.Array:
    """`bhep` at the smoothing of Henze and Zirkler, `henze_zirkler_beta(N, D)`.

    Not standardised, unlike the published test: see the module's text. The smoothing tends to
    0.7 with growing D, where the gradient vanishes as `bhep` describes: for low dimensions.

    Args:
      x: `[N, D]`.

    Returns:
      Scalar, at least 0 up to rounding.

    Raises:
      ValueError: `x` is not `[N, D]`, empty or of no float type.
    """
    if x.ndim != 2:
        raise ValueError(f"henze_zirkler needs [N, D], not {x.shape}")
    check_floats("henze_zirkler", x)
    return bhep(x, beta=henze_zirkler_beta(*x.shape))


def henze_zirkler_beta(count: int, width: int) -> float:
    """`(N (2 D + 1) / 4)^(1 / (D + 4)) / sqrt(2)`. Source: Henze and Zirkler (1990)."""
    return (count * (2 * width + 1) / 4) ** (1 / (width + 4)) / 2**0.5


def _squared_distances(x: jax.Array) -> jax.Array:
    """`[N, N]`, rows cut over devices; 0 on the diagonal and never negative.

    Polynomial in `x`, so that the gradient is finite where samples are equal.
    """
    # Distances do not change with the origin, and are most exact from the middle of the samples.
    x = x - jax.lax.stop_gradient(jnp.mean(x, axis=0))
    norms = jnp.sum(x**2, axis=1)
    products = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
    distances = constrain_rows(norms[:, None] + norms - 2 * products)
    own = jnp.eye(len(x), dtype=bool)
    return jnp.where(own, 0, jnp.maximum(distances, 0))
