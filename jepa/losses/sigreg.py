"""SIGReg: embeddings are pulled towards an isotropic Gaussian, one random direction at a time.

Letters: N samples of the global batch, D width, S slices (random directions), K knots of the
quadrature. Source: LeJEPA (Balestriero and LeCun, 2025), Epps-Pulley statistic and Algorithm 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jepa.losses.precision import widen
from jepa.parallel.partition import constrain, pieces

DEFAULT_T_MAX = {"folded": 3.0, "integral": 5.0}


def sigreg(
    x: jax.Array,
    key: jax.Array,
    *,
    slices: int = 1024,
    knots: int = 17,
    t_max: float | None = None,
    form: str = "folded",
    scale_by_n: bool = True,
) -> jax.Array:
    """Mean over random slices of the Epps-Pulley statistic of `x` against N(0, 1).

    For a slice `a` the statistic is the integral of `|ecf(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2)`,
    where `ecf(t)` is the mean of `exp(i t x.a)` over all N samples of the global batch.

    On a mesh, only the empirical characteristic functions cross devices: two arrays of at most
    `K * S` numbers, once, whatever N and D are, and nothing in the backward pass. Every device
    draws the same slices from the key. Memory is `N * S`, not `N * S * K`: cosines and sines are
    computed again in the backward pass.

    Args:
      x: `[N, D]`, any float type; computed in float32 or wider.
      key: the slices are a function of it, and of D and `slices`, alone; fold the step into it.
      slices: number of directions.
      knots: number of quadrature points, over `[0, t_max]` or over `[-t_max, t_max]`; see `form`.
      t_max: end of the integral; by default 3 for "folded" and 5 for "integral".
      form: "folded" is the published code (`knots` over `[0, t_max]`, counted twice by symmetry);
        "integral" is the paper's (`knots` over `[-t_max, t_max]`). They are different numbers.
      scale_by_n: multiply by N as the statistic's definition does. Then the value for samples of
        N(0, I) does not depend on N, and the gradient of a sample does not shrink with it.

    Returns:
      Scalar, at least 0.

    Raises:
      ValueError: `x` is not `[N, D]`, or an argument is out of range.
    """
    if x.ndim != 2:
        raise ValueError(f"sigreg needs [N, D], not {x.shape}")
    if slices < 1:
        raise ValueError(f"sigreg needs at least one slice, not {slices}")
    points, weights = quadrature(form, knots, t_max)
    x = widen(x)
    directions = constrain(random_slices(key, x.shape[1], slices, x.dtype), None, None)
    projected = jnp.matmul(x, directions, precision=jax.lax.Precision.HIGHEST)
    projected = constrain(projected, "batch", None)
    t = jnp.asarray(points, x.dtype)
    real, imaginary = _characteristic(projected, t)
    gaussian = jnp.exp(-(t**2) / 2)[:, None]
    error = (real - gaussian) ** 2 + imaginary**2
    statistic = jnp.mean(jnp.asarray(weights, x.dtype) @ error)
    return statistic * x.shape[0] if scale_by_n else statistic


def random_slices(key: jax.Array, width: int, slices: int, dtype: DTypeLike) -> jax.Array:
    """Draws `[width, slices]` directions, uniform on the sphere: Gaussian columns of length 1."""
    directions = jax.random.normal(key, (width, slices), dtype)
    return directions / jnp.linalg.norm(directions, axis=0, keepdims=True)


def quadrature(form: str, knots: int, t_max: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Trapezoid points t >= 0 and weights, with the Gaussian window, as float64 `[K]`.

    The integrand is even, so "integral" keeps only its points t >= 0 and doubles those above 0:
    the same sum at half the cost.

    Raises:
      ValueError: an unknown form, fewer than two knots, or a `t_max` that is not positive.
    """
    if form not in DEFAULT_T_MAX:
        raise ValueError(f"sigreg form {form!r} is none of {tuple(DEFAULT_T_MAX)}")
    if knots < 2:
        raise ValueError(f"sigreg needs at least two knots, not {knots}")
    end = DEFAULT_T_MAX[form] if t_max is None else float(t_max)
    if end <= 0:
        raise ValueError(f"sigreg needs a positive t_max, not {end}")
    points = np.linspace(0.0 if form == "folded" else -end, end, knots)
    weights = np.full(knots, points[1] - points[0])
    weights[[0, -1]] /= 2
    if form == "integral":
        keep = points > -1e-9 * end
        points, weights = np.abs(points[keep]), weights[keep]
        weights[points > 1e-9 * end] *= 2
    else:
        weights *= 2
    return points, weights * np.exp(-(points**2) / 2)


def _characteristic(projected: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means over N of cos and sin of `t * projected`: `[N, S]`, `[K]` -> two `[K, S]`.

    One knot after another, so that memory does not grow with K. Each device's part of the batch
    keeps a dimension of its own until the loop has ended: a mean over the whole batch inside the
    loop would be K reductions over devices, and this is one.
    """
    count, slices = projected.shape
    parts = projected.reshape(pieces("batch"), -1, slices)
    parts = constrain(parts, "batch", None, None)

    # Cosines and sines are computed again in the backward pass: only `parts` is kept.
    @jax.checkpoint
    def knot(parts: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        angles = t * parts
        return jnp.sum(jnp.cos(angles), axis=1), jnp.sum(jnp.sin(angles), axis=1)

    _, (real, imaginary) = jax.lax.scan(lambda _, t: (None, knot(parts, t)), None, t)
    return jnp.sum(real, axis=1) / count, jnp.sum(imaginary, axis=1) / count
