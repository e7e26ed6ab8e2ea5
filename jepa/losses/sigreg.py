"""SIGReg: embeddings are pulled towards an isotropic Gaussian, one random direction at a time.

Letters: V views, N samples of the global batch, n those on one device, D width, S slices (random
directions), K knots of the quadrature. Source: LeJEPA (Balestriero and LeCun, 2025), Epps-Pulley
statistic and Algorithm 1.

Three things that published implementations do, and this one does not:

- They reduce the characteristic functions over devices by a call that is a no-op, or that has no
  gradient, or whose gradient is divided by the number of devices. Here value and gradient are
  those of the global batch on any mesh.
- They mix two integrals: 17 knots over [-5, 5] in the paper, 17 knots over [0, 3] counted twice in
  its code. These are different numbers; see `form`.
- They take all views of a sample as one batch of V * N independent samples. Views are not
  independent, and the factor N becomes V * N: on the same data one such code yields 11.10 where
  the mean over views is 3.77. See `views`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jepa.losses.epps_pulley import IMPLEMENTATIONS, Plan, epps_pulley, project
from jepa.losses.normality import STATISTICS
from jepa.losses.precision import check_floats, widen
from jepa.parallel.partition import constrain

DEFAULT_T_MAX = {"folded": 3.0, "integral": 5.0}
VIEWS = ("each", "pooled")


def sigreg(
    x: jax.Array,
    key: jax.Array,
    *,
    slices: int = 1024,
    knots: int = 17,
    t_max: float | None = None,
    form: str = "folded",
    views: str = "each",
    scale_by_n: bool = True,
    chunk: int | None = None,
    statistic: str = "epps_pulley",
    implementation: str = "xla",
) -> jax.Array:
    """Mean over random slices of a statistic of `x` against N(0, 1), Epps-Pulley's by default.

    For a slice `a` that is N times the integral of `|ecf(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2)`,
    where `ecf(t)` is the mean of `exp(i t x.a)` over all N samples of the global batch.

    On a mesh, only the empirical characteristic functions cross devices: one all-reduce of at most
    `2 * K * S` numbers a view, whatever N, D and `chunk` are, and nothing in the backward pass
    (unless the mesh has a tensor or context axis: they share the work, and the gradient `[V, N,
    D]` is then gathered over them). Every device draws the same slices from the key.

    Memory of a device, both passes: `V * n * S` numbers for the projections and as many again as
    temporaries of one view, or `n * chunk` with chunks; beside it `D * S` for the slices and
    `2 * V * K * S`. Nothing has the size `n * S * K`. Chunks cost a second projection.

    Args:
      x: `[N, D]` or `[V, N, D]`, any float type; computed in float32 or wider.
      key: the slices are a function of it, and of D and `slices`, alone; see `slice_key`.
      slices: number of directions.
      knots: number of quadrature points, over `[0, t_max]` or over `[-t_max, t_max]`; see `form`.
      t_max: end of the integral; by default 3 for "folded" and 5 for "integral".
      form: "folded" is the published code (`knots` over `[0, t_max]`, counted twice by symmetry);
        "integral" is the paper's (`knots` over `[-t_max, t_max]`). They are different numbers.
      views: "each" is the mean over views of one view's value, all with the same slices (the
        published code); "pooled" takes the V * N samples as one batch.
      scale_by_n: multiply by N (pooled: V * N) as the statistic's definition does. Then the value
        for samples of N(0, I) does not depend on N, and the gradient of a sample does not shrink
        with it.
      chunk: slices at a time, where `[n, S]` is too large; it need not divide `slices`, and
        changes the result by rounding alone.
      statistic: "epps_pulley" or a name in `jepa.losses.normality.STATISTICS`. The latter are for
        ablations: projections `[N, S]` are gathered and sorted over the global batch, and `knots`,
        `t_max` and `form` mean nothing to them.
      implementation: "xla", or "pallas" for a fused kernel on TPU, float32 alone, that never
        writes the projections to memory.

    Returns:
      Scalar, at least 0.

    Raises:
      ValueError: a wrong shape, or an argument that is unknown or out of range.
    """
    if x.ndim not in (2, 3):
        raise ValueError(f"sigreg needs [N, D] or [V, N, D], not {x.shape}")
    check_floats("sigreg", x)
    if slices < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"sigreg needs at least one slice, not {slices} in chunks of {chunk}")
    if views not in VIEWS:
        raise ValueError(f"sigreg views {views!r} is none of {VIEWS}")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"sigreg implementation {implementation!r} is none of {IMPLEMENTATIONS}")
    points, weights = quadrature(form, knots, t_max)
    x = widen(x if x.ndim == 3 else x[None])
    directions = constrain(random_slices(key, x.shape[-1], slices, x.dtype), None, None)
    count = x.shape[1] * (x.shape[0] if views == "pooled" else 1)
    if statistic == "epps_pulley":
        plan = Plan.of(
            points,
            weights,
            pooled=views == "pooled",
            chunk=chunk,
            implementation=implementation,
        )
        value = jnp.mean(epps_pulley(x, directions, plan))
        return value * count if scale_by_n else value
    if statistic not in STATISTICS:
        raise ValueError(
            f"sigreg statistic {statistic!r} is none of {('epps_pulley', *STATISTICS)}"
        )
    if chunk is not None or implementation != "xla":
        raise ValueError(f"sigreg statistic {statistic!r} has neither chunks nor a kernel")
    if views == "pooled":
        x = x.reshape(1, count, -1)
    # A view's slices are as good as other slices.
    projected = jnp.swapaxes(project(x, directions), 0, 1).reshape(x.shape[1], -1)
    value = jnp.mean(STATISTICS[statistic](projected))
    return value if scale_by_n else value / count


def slice_key(seed: int, step: jax.Array | int, index: int = 0) -> jax.Array:
    """The key of a step's slices, from (seed, step) alone: no state, equal on all devices.

    Args:
      seed: of the run.
      step: of training.
      index: which use of SIGReg in this step, where several shall have slices of their own.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), index)


def random_slices(key: jax.Array, width: int, slices: int, dtype: DTypeLike) -> jax.Array:
    """Draws `[width, slices]` directions, uniform on the sphere: Gaussian columns of length 1."""
    directions = jax.random.normal(key, (width, slices), dtype)
    return directions / jnp.linalg.norm(directions, axis=0, keepdims=True)


def quadrature(form: str, knots: int, t_max: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Trapezoid points t >= 0 and weights, with the Gaussian window, as float64 `[K]`.

    The integrand is even, so "integral" keeps only its points t >= 0 and doubles those above 0:
    the same sum at half the cost.

    Raises:
      ValueError: an unknown form, fewer than two knots, or a `t_max` that is not positive
        and finite.
    """
    if form not in DEFAULT_T_MAX:
        raise ValueError(f"sigreg form {form!r} is none of {tuple(DEFAULT_T_MAX)}")
    if knots < 2:
        raise ValueError(f"sigreg needs at least two knots, not {knots}")
    end = DEFAULT_T_MAX[form] if t_max is None else float(t_max)
    if not 0 < end < math.inf:
        raise ValueError(f"sigreg needs a positive, finite t_max, not {end}")
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
