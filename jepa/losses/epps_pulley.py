"""The Epps-Pulley statistic of many slices: one all-reduce, and a backward pass in closed form.

Letters: V views, N samples of the global batch, n those on one device, D width, S slices, K knots
`t_k = start + k * spacing` of the quadrature, `p = x.a` the projection of a sample on a slice.

Sines and cosines at equispaced knots are the powers of one rotation, so a projection costs one
sine and one cosine, and then four multiplications a knot. The rotation `(c, s) <- (c c1 - s s1,
s c1 + c s1)` is stable: its error grows as `k`. Chebyshev's three-term recurrence is shorter, but
loses up to another factor of `1 / sin(spacing * p)`, and most projections are near 0.

What is summed over samples is `cos(t_k p) - exp(-t_k^2 / 2)`, which the statistic squares. Sums of
cosines alone grow as N, and lose the digits of a difference that grows as `sqrt(N)`.

The backward pass needs `sum_k a_k sin(t_k p) + b_k cos(t_k p)`, which is the real part of a
polynomial in that rotation: Horner's rule.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jepa.losses import epps_pulley_kernel
from jepa.losses.trigonometry import sine_cosine
from jepa.parallel.rows import rows

IMPLEMENTATIONS = ("xla", "pallas")
# On a CPU, blocks of this many projections are walked over, which fit its second-level cache.
CPU_BLOCK = 65_536


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the statistic does not take from its arrays.

    Attributes:
      start: first knot; positive, since at 0 there is never an error.
      spacing: between knots.
      weights: of the quadrature, one a knot.
      pooled: take all views as one sample, instead of one statistic a view.
      chunk: slices at a time; None for all at once.
      implementation: one of `IMPLEMENTATIONS`.
    """

    start: float
    spacing: float
    weights: tuple[float, ...]
    pooled: bool = False
    chunk: int | None = None
    implementation: str = "xla"

    @classmethod
    def of(cls, points: np.ndarray, weights: np.ndarray, **options: Any) -> Plan:
        """Makes the plan for equispaced points that are not negative, and their weights `[K]`."""
        if points[0] < 1e-9 * points[-1]:
            points, weights = points[1:], weights[1:]
        start = float(points[0])
        spacing = float(points[-1] - start) / (len(points) - 1) if len(points) > 1 else start
        if math.isclose(start, spacing):
            start = spacing  # One sine and cosine serve both.
        return cls(start, spacing, tuple(weights.tolist()), **options)

    @property
    def points(self) -> np.ndarray:
        """The knots as float64 `[K]`."""
        return knots_at(self.start, self.spacing, len(self.weights))

    @property
    def keeps_projections(self) -> bool:
        """Whether the forward pass hands its projections to the backward pass."""
        return self.chunk is None and self.implementation == "xla"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def epps_pulley(x: jax.Array, directions: jax.Array, plan: Plan) -> jax.Array:
    """Means over slices of `sum_k w_k |ecf(t_k) - exp(-t_k^2 / 2)|^2`, without the factor N.

    The gradient is that of `x`; directions are constants and get none.

    Works device by device on the rows of the mesh. What crosses devices is one all-reduce of
    `2 * V * K * S` numbers (`2 * K * S` if pooled), whatever the chunks, and nothing in the
    backward pass. Kept for it are the inputs, `V * K * S` complex numbers and, without chunks and
    in XLA, the projections `V * n * S`; otherwise they are computed again, and the memory is that
    of `n * chunk` numbers.

    Args:
      x: `[V, N, D]`, float32 or float64.
      directions: `[D, S]`, the same type; columns of length 1.
      plan: the rest.

    Returns:
      `[V]`, or `[1]` if pooled.
    """
    return _forward(x, directions, plan)[0]


def _forward(x: jax.Array, directions: jax.Array, plan: Plan):
    cut = rows(x.shape[1])
    spread, whole = PartitionSpec(None, *cut.spec), PartitionSpec()

    def local(x: jax.Array, directions: jax.Array):
        sums, projected = _each_view(lambda x: _sums(x, directions, plan), _samples(x, plan))
        return cut.sum(sums), projected

    sums, projected = cut.map(local, (spread, whole), (whole, spread))(x, directions)
    count = x.shape[1] * (x.shape[0] if plan.pooled else 1)
    # The sums are relative to rounded numbers, and half a last place of them would be seen.
    gaussian = np.exp(-(plan.points**2) / 2)
    rounded = np.stack([gaussian.astype(x.dtype) - gaussian, np.zeros_like(gaussian)])
    error = sums / count + jnp.asarray(rounded[..., None], x.dtype)
    weights = jnp.asarray(plan.weights, x.dtype)[:, None]
    statistic = jnp.mean(jnp.sum(weights * error**2, axis=(1, 2)), axis=-1)
    return statistic, (x, directions, projected, error)


def _backward(plan: Plan, saved, cotangent: jax.Array):
    x, directions, projected, error = saved
    cut = rows(x.shape[1])
    spread, whole = PartitionSpec(None, *cut.spec), PartitionSpec()
    count = x.shape[1] * (x.shape[0] if plan.pooled else 1)
    scale = 2 / (count * directions.shape[1]) * np.asarray(plan.weights) * plan.points
    # d cos(t p) / dp = -t sin(t p), d sin(t p) / dp = t cos(t p).
    signed = np.stack([-scale, scale])[..., None]
    weights = cotangent[:, None, None, None] * jnp.asarray(signed, x.dtype) * error

    def local(x: jax.Array, projected: jax.Array | None, directions: jax.Array, weights: jax.Array):
        gradient = _each_view(
            lambda view: _pull_back(view[0], view[1], view[2], directions, plan),
            (_samples(x, plan), projected, weights),
        )
        return gradient.reshape(x.shape)

    mapped = cut.map(local, (spread, spread, whole, whole), spread)
    return mapped(x, projected, directions, weights), None


epps_pulley.defvjp(_forward, _backward)


def _samples(x: jax.Array, plan: Plan) -> jax.Array:
    """Makes one view of all, if pooled; the order of samples does not matter."""
    return x.reshape(1, -1, x.shape[-1]) if plan.pooled else x


def _each_view(function: Callable[[Any], Any], views: Any) -> Any:
    """Applies `function` to one view after another, so that only one's temporaries exist."""
    first = jax.tree.map(lambda a: a[0], views)
    if jax.tree.leaves(views)[0].shape[0] == 1:
        return jax.tree.map(lambda a: a[None], function(first))
    return jax.lax.map(function, views)


def _sums(x: jax.Array, directions: jax.Array, plan: Plan) -> tuple[jax.Array, jax.Array | None]:
    """Sums over the rows of `[n, D]`, `[2, K, S]`, those of cosines first; projections, if kept."""
    knots = (plan.start, plan.spacing, len(plan.weights))
    if plan.keeps_projections:
        projected = project(x, directions)
        return jnp.stack(_sums_of_projections(projected, *knots)), projected
    sums, _ = _on_device(plan)

    def chunk(directions: jax.Array) -> jax.Array:
        return jnp.stack(sums(x, directions, *knots))

    width = directions.shape[1]
    size = min(plan.chunk or width, width)
    whole = width // size
    parts = jax.lax.map(lambda i: chunk(_columns(directions, i, size)), jnp.arange(whole))
    parts = jnp.moveaxis(parts, 0, 2).reshape(*parts.shape[1:3], whole * size)
    if width % size:
        parts = jnp.concatenate([parts, chunk(directions[:, whole * size :])], axis=-1)
    return parts, None


def _pull_back(
    x: jax.Array,
    projected: jax.Array | None,
    weights: jax.Array,
    directions: jax.Array,
    plan: Plan,
) -> jax.Array:
    """The gradient `[n, D]` from `[2, K, S]` weights, of sines first."""
    if projected is not None:
        inner = _slopes(projected, weights[0], weights[1], plan.start, plan.spacing)
        return project(inner, directions.T)
    _, pull = _on_device(plan)

    def chunk(directions: jax.Array, weights: jax.Array) -> jax.Array:
        return pull(x, directions, weights[0], weights[1], plan.start, plan.spacing)

    width = directions.shape[1]
    size = min(plan.chunk or width, width)
    whole = width // size

    def add(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        return total + chunk(_columns(directions, i, size), _columns(weights, i, size)), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(x), jnp.arange(whole))
    if width % size:
        total += chunk(directions[:, whole * size :], weights[..., whole * size :])
    return total


def _columns(x: jax.Array, index: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=-1)


def _on_device(plan: Plan) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two functions that work on one device's arrays."""
    if plan.implementation == "pallas":
        return epps_pulley_kernel.characteristic_sums, epps_pulley_kernel.pull_back
    return characteristic_sums, pull_back


def knots_at(start: float, spacing: float, knots: int) -> np.ndarray:
    """`start + k * spacing` as float64 `[K]`."""
    return start + spacing * np.arange(knots)


def project(x: jax.Array, directions: jax.Array) -> jax.Array:
    """`x @ directions` with all the bits of its type on every platform."""
    return jnp.matmul(x, directions, precision=jax.lax.Precision.HIGHEST)


def characteristic_sums(
    x: jax.Array, directions: jax.Array, start: float, spacing: float, knots: int
) -> tuple[jax.Array, jax.Array]:
    """Sums over rows of `cos(t_k p) - exp(-t_k^2 / 2)` and `sin(t_k p)`, `p = x @ directions`.

    Args:
      x: `[n, D]`, on one device.
      directions: `[D, S]`.
      start: first knot.
      spacing: between knots.
      knots: their number K.

    Returns:
      Two `[K, S]`: of cosines, of sines.
    """
    return _sums_of_projections(project(x, directions), start, spacing, knots)


def pull_back(
    x: jax.Array,
    directions: jax.Array,
    sine_weights: jax.Array,
    cosine_weights: jax.Array,
    start: float,
    spacing: float,
) -> jax.Array:
    """The sum over k of `sine_weights sin(t_k p) + cosine_weights cos(t_k p)`, into x's space.

    Args:
      x: `[n, D]`, on one device.
      directions: `[D, S]`.
      sine_weights: `[K, S]`.
      cosine_weights: `[K, S]`.
      start: first knot.
      spacing: between knots.

    Returns:
      `[n, D]`: that sum times `directions.T`.
    """
    slopes = _slopes(project(x, directions), sine_weights, cosine_weights, start, spacing)
    return project(slopes, directions.T)


def rotations(
    projected: jax.Array, start: float, spacing: float
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """(cos, sin) at the first knot, and of the step from knot to knot."""

    def pair(t: float) -> tuple[jax.Array, jax.Array]:
        angles = t * projected
        if angles.dtype == jnp.float32:
            sine, cosine = sine_cosine(angles)
            return cosine, sine
        return jnp.cos(angles), jnp.sin(angles)

    first = pair(start)
    return first, first if spacing == start else pair(spacing)


def rotate(z: tuple[jax.Array, jax.Array], step: tuple[jax.Array, jax.Array]):
    """The product of two complex numbers, each (real, imaginary)."""
    return z[0] * step[0] - z[1] * step[1], z[1] * step[0] + z[0] * step[1]


def _sums_of_projections(
    projected: jax.Array, start: float, spacing: float, knots: int
) -> tuple[jax.Array, jax.Array]:
    """`[n, S]` -> two `[K, S]`.

    Compiled for TPU, K unrolled sums become one pass over the projections. XLA for CPU would
    compute the recurrence again for each sum: there, a loop over knots runs on blocks that stay in
    the cache (2,048 x 1,024 projections and 17 knots: 3 to 4 times faster, forward and backward).
    """

    def all_at_once(projected: jax.Array):
        return _sums_of_block(projected, start, spacing, knots, unroll=knots)

    def by_blocks(projected: jax.Array):
        count, width = projected.shape
        size = min(max(CPU_BLOCK // width, 1), count)
        whole = count // size

        def add(total, i: jax.Array):
            block = jax.lax.dynamic_slice_in_dim(projected, i * size, size)
            return jax.tree.map(jnp.add, total, sums(block)), None

        def sums(block: jax.Array):
            return _sums_of_block(block, start, spacing, knots, unroll=2)

        zeros = jnp.zeros((knots, width), projected.dtype)
        total, _ = jax.lax.scan(add, (zeros, zeros), jnp.arange(whole))
        if count % size:
            total = jax.tree.map(jnp.add, total, sums(projected[whole * size :]))
        return total

    return jax.lax.platform_dependent(projected, cpu=by_blocks, default=all_at_once)


def _sums_of_block(projected: jax.Array, start: float, spacing: float, knots: int, unroll: int):
    first, step = rotations(projected, start, spacing)
    expected = jnp.asarray(np.exp(-(knots_at(start, spacing, knots) ** 2) / 2), projected.dtype)

    def knot(z, expected: jax.Array):
        return rotate(z, step), (jnp.sum(z[0] - expected, axis=0), jnp.sum(z[1], axis=0))

    return jax.lax.scan(knot, first, expected, unroll=unroll)[1]


def _slopes(
    projected: jax.Array,
    sine_weights: jax.Array,
    cosine_weights: jax.Array,
    start: float,
    spacing: float,
) -> jax.Array:
    """`[n, S]`, two `[K, S]` -> `[n, S]`: the real part of sum_k (b_k - i a_k) z^k times z_0."""
    first, step = rotations(projected, start, spacing)
    total = cosine_weights[-1], -sine_weights[-1]
    for k in range(len(sine_weights) - 2, -1, -1):
        real, imaginary = rotate(total, step)
        total = real + cosine_weights[k], imaginary - sine_weights[k]
    return rotate(total, first)[0]
