"""Goodness of fit of one-dimensional samples to N(0, 1): what SIGReg can use for Epps-Pulley.

Letters: N samples of the global batch, S slices, `x_(i)` the i-th smallest sample of a slice, `Phi`
the distribution function of N(0, 1), `u_i = Phi(x_(i))`, `p_i = (2 i - 1) / (2 N)`.

Each function maps `[N, S]` to `[S]`, is differentiable in the samples, and computes in float32 or
wider. Each carries its factor N: it tends to a fixed distribution for samples of N(0, 1)
(Shapiro-Wilk: grows as log log N) and grows as N for samples of anything that it tells from
N(0, 1). Divide by N for a number that does not grow.

| name | sees | mean for N(0, 1) | at collapse to 0 |
|---|---|---|---|
| cramer_von_mises | everything, tails hardly | 1/6 | N / 12 |
| anderson_darling | everything | 1 | (2 log 2 - 1) N |
| watson | everything but turns of the circle u | 1/12 | N / 12 |
| shapiro_wilk | shape only: neither location nor scale | about 1.7 for N = 1,000 | N |
| moments | moments 1 to 4 | 4 | 7 N / 8 |
| jarque_bera | moments 1 to 4 | about 4 for large N | about 7 N / 8 |
| mean_variance | moments 1 and 2 | about 2 for large N | (N - 1) / 2 |

The first four sort the global batch and are for ablations, not for pods: all `N * S` numbers cross
devices, there and back. Where the mesh divides S each device sorts whole slices of its own, which
is one all-to-all each way; else every device gathers and sorts everything. The last three cross
devices as a few numbers a slice. The means under N(0, 1) without an "about" hold for every N.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, ndtr

from jepa.losses.precision import check_floats, widen
from jepa.parallel.partition import constrain, pieces

VARIANCE_FLOOR = 1e-6


def cramer_von_mises(projected: jax.Array) -> jax.Array:
    """Cramer-von Mises `W^2 = 1 / (12 N) + sum_i (u_i - p_i)^2`: `[N, S]` -> `[S]`.

    It is `N` times the integral of `(F_N - Phi)^2 dPhi`. The gradient of a sample has a factor
    `exp(-x^2 / 2)`: a far outlier is hardly pulled back. Source: Anderson and Darling (1952);
    D'Agostino and Stephens (1986), section 4.2.

    Raises:
      ValueError: `projected` is not `[N, S]` with N at least 2.
    """
    distance = _distance(projected)
    return 1 / (12 * projected.shape[0]) + jnp.sum(distance**2, axis=0)


def watson(projected: jax.Array) -> jax.Array:
    """Watson `U^2 = W^2 - N (mean(u) - 1/2)^2`: `[N, S]` -> `[S]`.

    Invariant under turns of the circle on which u lies, hence nearly blind to small shifts of
    location. Source: Watson (1961); D'Agostino and Stephens (1986), section 4.2.

    Raises:
      ValueError: `projected` is not `[N, S]` with N at least 2.
    """
    # The mean of p is 1/2, so removing the mean of u - p is the correction, without cancellation.
    distance = _distance(projected)
    distance = distance - jnp.mean(distance, axis=0)
    return 1 / (12 * projected.shape[0]) + jnp.sum(distance**2, axis=0)


def anderson_darling(projected: jax.Array) -> jax.Array:
    """Anderson-Darling `A^2 = -N - sum_i 2 [p_i log u_i + (1 - p_i) log(1 - u_i)]`.

    It is `N` times the integral of `(F_N - Phi)^2 / (Phi (1 - Phi)) dPhi`: unlike Cramer-von
    Mises, it pulls an outlier back in proportion to its distance. Both logarithms are those of the
    normal distribution function, finite with their gradients at 30 standard deviations and beyond.
    Source: Anderson and Darling (1954); D'Agostino and Stephens (1986), section 4.2.

    Args:
      projected: `[N, S]`.

    Returns:
      `[S]`.

    Raises:
      ValueError: `projected` is not `[N, S]` with N at least 2.
    """
    x = _sorted(projected)
    points = _midpoints(x.shape[0])
    logs, logs_above = np.log(points), np.log1p(-points)
    # A sum of N numbers near 1 less N would lose digits. The sum over i of 2 KL(p_i || u_i) is the
    # same up to a constant of N, and each of its terms is small.
    entropy = -np.sum(points * logs + (1 - points) * logs_above)
    p = _column(points, x)
    below = p * (_column(logs, x) - log_ndtr(x))
    above = (1 - p) * (_column(logs_above, x) - log_ndtr(-x))
    return 2 * jnp.sum(below + above, axis=0) + float(2 * entropy - len(x))


def shapiro_wilk(projected: jax.Array) -> jax.Array:
    """Shapiro-Wilk style `N (1 - W')`: `[N, S]` -> `[S]`, between 0 and N.

    `W'` is the squared correlation of the ordered samples with normal scores (Shapiro and Francia,
    1972), here Blom's `Phi^-1((i - 3/8) / (N + 1/4))`. The classical statistic is `W'` itself.

    It sees shape only. Neither the location nor the scale of the samples changes it, so alone it
    prevents no collapse by shrinking. Where all samples of a slice are equal to rounding, `W'` has
    no value; it is taken as 0 there, without a gradient.

    Raises:
      ValueError: `projected` is not `[N, S]` with N at least 2.
    """
    x = _sorted(projected)
    scores = _column(_normal_scores(len(x)), x)
    centred = x - jnp.mean(x, axis=0)
    spread = jnp.sum(centred**2, axis=0)
    # 1 - W' as the squared residual of a projection: a difference from 1 would lose digits.
    residual = centred - scores * jnp.sum(scores * centred, axis=0)
    varied = spread > (8 * jnp.finfo(x.dtype).eps) ** 2 * jnp.sum(x**2, axis=0)
    rest = jnp.sum(residual**2, axis=0) / jnp.where(varied, spread, 1)
    return len(x) * jnp.where(varied, rest, 1)


def moments(projected: jax.Array) -> jax.Array:
    """First four moments against those of N(0, 1), as Hermite polynomials: `[N, S]` -> `[S]`.

    `N sum_k mean(He_k(x))^2 / k!` over k from 1 to 4, with `He` = x, x^2 - 1, x^3 - 3 x and
    x^4 - 6 x^2 + 3. Under the null the terms are uncorrelated with mean 1. Nothing is divided by a
    spread, so it is smooth everywhere. Source: Neyman's smooth test (1937) for N(0, 1) without
    estimated parameters; Rayner and Best (1989).

    Raises:
      ValueError: `projected` is not `[N, S]` with N at least 2.
    """
    x = _checked(projected)
    square = x**2
    hermite = (x, square - 1, x * (square - 3), square * (square - 6) + 3)
    terms = [jnp.mean(h, axis=0) ** 2 / math.factorial(k) for k, h in enumerate(hermite, 1)]
    return len(x) * sum(terms[1:], terms[0])


def mean_variance(projected: jax.Array) -> jax.Array:
    """First two moments: `N m^2 / s^2 + (N - 1) (s^2 - 1)^2 / 2`: `[N, S]` -> `[S]`.

    `m` is the mean, `s^2` the unbiased variance, bounded below by 1e-6 in the quotient. With random
    slices this compares mean and covariance with those of N(0, I). Source: LeJEPA, its "VCReg".

    Raises:
      ValueError: `projected` is not `[N, S]` with N at least 2.
    """
    mean, variance, _ = _mean_variance_centred(projected)
    return _mean_variance(mean, variance, projected.shape[0])


def jarque_bera(projected: jax.Array) -> jax.Array:
    """LeJEPA's extended Jarque-Bera statistic: `[N, S]` -> `[S]`.

    `mean_variance` plus `N / 6 (skewness^2 + (kurtosis - 3)^2 / 4)`. Skewness and kurtosis are
    the classical ones, of moments about the mean divided by N; the variance under them is bounded
    below by 1e-6. Source: LeJEPA, section on moments; Jarque and Bera (1980).

    Raises:
      ValueError: `projected` is not `[N, S]` with N at least 2.
    """
    mean, variance, centred = _mean_variance_centred(projected)
    bounded = jnp.maximum(variance, VARIANCE_FLOOR)
    skewness = jnp.mean(centred**3, axis=0) / bounded**1.5
    kurtosis = jnp.mean(centred**4, axis=0) / bounded**2
    count = projected.shape[0]
    shape = count / 6 * (skewness**2 + (kurtosis - 3) ** 2 / 4)
    return _mean_variance(mean, variance, count) + shape


STATISTICS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "cramer_von_mises": cramer_von_mises,
        "anderson_darling": anderson_darling,
        "watson": watson,
        "shapiro_wilk": shapiro_wilk,
        "moments": moments,
        "jarque_bera": jarque_bera,
        "mean_variance": mean_variance,
    }
)


def _checked(projected: jax.Array) -> jax.Array:
    if projected.ndim != 2 or projected.shape[0] < 2:
        raise ValueError(
            f"a statistic of normality needs [N, S] with N >= 2, not {projected.shape}"
        )
    check_floats("a statistic of normality", projected)
    return widen(projected)


def _sorted(projected: jax.Array) -> jax.Array:
    """Sorts each slice, on one device where the mesh divides the slices."""
    x = _checked(projected)
    slices = None if x.shape[1] % pieces("batch") else "batch"
    return jnp.sort(constrain(x, None, slices), axis=0)


def _distance(projected: jax.Array) -> jax.Array:
    x = _sorted(projected)
    return ndtr(x) - _column(_midpoints(len(x)), x)


def _midpoints(count: int) -> np.ndarray:
    return (2 * np.arange(1, count + 1) - 1) / (2 * count)


@functools.lru_cache(maxsize=8)
def _normal_scores(count: int) -> np.ndarray:
    """Blom's scores, of length 1; float64, since 1 - W' is small beside W'."""
    inverse = statistics.NormalDist().inv_cdf
    scores = np.array([inverse((i - 0.375) / (count + 0.25)) for i in range(1, count + 1)])
    return scores / np.linalg.norm(scores)


def _column(values: np.ndarray, like: jax.Array) -> jax.Array:
    return jnp.asarray(values, like.dtype)[:, None]


def _mean_variance_centred(projected: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and biased variance `[S]`, and samples less their mean `[N, S]`."""
    x = _checked(projected)
    mean = jnp.mean(x, axis=0)
    centred = x - mean
    return mean, jnp.mean(centred**2, axis=0), centred


def _mean_variance(mean: jax.Array, variance: jax.Array, count: int) -> jax.Array:
    variance = variance * (count / (count - 1))
    location = count * mean**2 / jnp.maximum(variance, VARIANCE_FLOOR)
    return location + (count - 1) / 2 * (variance - 1) ** 2
