"""The linear probe: multinomial logistic regression, a grid of penalties solved at once.

For each penalty l2 it minimises

    mean over clips of cross-entropy(W x + b, class) + l2 / 2 * |W|^2

over standardised features x. The problem is convex and the solver deterministic: there is no
learning rate, and nothing to be lucky with. In the basis of the features' principal components the
curvature is nowhere above 1/2 * variance + l2 (Boehning 1992, theorem 1), so dividing the gradient
by that never overshoots; Nesterov's momentum with restarts (O'Donoghue and Candes 2015) makes it
quick. All penalties share the features and differ in one number, which `jax.vmap` runs over.

Letters: N clips, F features, R components kept (at most F and N), C classes, G penalties.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Deviations below these, of a feature's own mean and of the largest one, are float32's rounding.
_OF_MEAN, _OF_LARGEST = 1e-6, 1e-9
_NULL = 1e-7


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear classifiers for standardised features.

    Attributes:
      mean: `[F]`, subtracted.
      scale: `[F]`, multiplied by; 0 for a feature that never changed in training.
      weights: `[G, F, C]`.
      bias: `[G, C]`.
      gap: `[G]`, what was left of the gradient: its product with the next step, had there been one.
      steps: that the solver took.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    gap: np.ndarray
    steps: int

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns `[G, M, C]` of features `[M, F]`."""
        x = (np.asarray(features, np.float32) - self.mean) * self.scale
        return np.matmul(x, self.weights) + self.bias[:, None]


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    l2: Sequence[float],
    iterations: int = 300,
    tolerance: float = 1e-7,
) -> Linear:
    """Fits one classifier for each penalty.

    Args:
      features: `[N, F]`.
      labels: int `[N]`, below `classes`.
      classes: C.
      l2: G positive penalties.
      iterations: most steps of the solver.
      tolerance: it stops when `Linear.gap` is below this for every penalty.
    """
    x = np.asarray(features, np.float32)
    mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    moves = deviation > np.maximum(_OF_MEAN * np.abs(mean), _OF_LARGEST * deviation.max(initial=0))
    scale = np.where(moves, 1 / np.where(moves, deviation, 1), 0)
    mean, scale = mean.astype(np.float32), scale.astype(np.float32)
    x = (x - mean) * scale
    basis = _components(x)
    weights, bias, gap, steps = _solve(
        x @ basis,
        np.eye(classes, dtype=np.float32)[np.asarray(labels)],
        np.asarray(l2, np.float32),
        iterations,
        tolerance,
    )
    full = np.matmul(basis, np.asarray(weights))
    return Linear(mean, scale, full, np.asarray(bias), np.asarray(gap), int(steps))


def select(logits: np.ndarray, labels: np.ndarray) -> int:
    """Returns which of G classifiers is best on held-out clips.

    The most accurate one; of equally accurate ones that with the least cross-entropy, and of those
    the first.

    Args:
      logits: `[G, M, C]`.
      labels: int `[M]`.
    """
    rows = np.arange(len(labels))
    hits = (logits.argmax(axis=-1) == labels).mean(axis=1)
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    losses = (np.log(np.exp(wide).sum(axis=-1)) - wide[:, rows, labels]).mean(axis=1)
    return int(np.lexsort((losses, -hits))[0])


def _components(x: np.ndarray) -> np.ndarray:
    """Orthonormal columns `[F, R]` that span the rows of `x` `[N, F]`: its principal directions."""
    wide = x.shape[1] > x.shape[0]
    gram = x @ x.T if wide else x.T @ x
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    kept = values > _NULL * max(values[-1], 1e-30)
    if not kept.any():
        kept[-1] = True
    if not wide:
        return vectors[:, kept].astype(np.float32)
    return (x.T.astype(np.float64) @ (vectors[:, kept] / np.sqrt(values[kept]))).astype(np.float32)


@jax.jit
def _solve(
    z: jax.Array, targets: jax.Array, l2: jax.Array, iterations: int, tolerance: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Weights `[G, R, C]`, biases `[G, C]`, gaps `[G]` and the number of steps."""
    count, classes = targets.shape
    variance = jnp.mean(z * z, axis=0)

    def gradient(
        weights: jax.Array, bias: jax.Array, penalty: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        error = (jax.nn.softmax(z @ weights + bias, axis=-1) - targets) / count
        return z.T @ error + penalty * weights, jnp.sum(error, axis=0)

    def step(state: tuple[jax.Array, ...], penalty: jax.Array) -> tuple[jax.Array, ...]:
        weights, bias, ahead_w, ahead_b, momentum, _ = state
        grad_w, grad_b = gradient(ahead_w, ahead_b, penalty)
        # One over the bound on the curvature, of each component and of the bias.
        damped_w, damped_b = grad_w / (variance[:, None] / 2 + penalty), grad_b * 2
        new_w, new_b = ahead_w - damped_w, ahead_b - damped_b
        gap = jnp.sum(grad_w * damped_w) + jnp.sum(grad_b * damped_b)
        uphill = jnp.sum(grad_w * (new_w - weights)) + jnp.sum(grad_b * (new_b - bias)) > 0
        momentum = jnp.where(uphill, 1.0, momentum)
        grown = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        push = (momentum - 1) / grown
        return (
            new_w,
            new_b,
            new_w + push * (new_w - weights),
            new_b + push * (new_b - bias),
            grown,
            gap,
        )

    def unfinished(carry: Any) -> jax.Array:
        number, state = carry
        return (number < iterations) & jnp.any(state[-1] > tolerance)

    def advance(carry: Any) -> Any:
        number, state = carry
        return number + 1, jax.vmap(step)(state, l2)

    grid = len(l2)
    zeros = jnp.zeros((grid, z.shape[1], classes), z.dtype), jnp.zeros((grid, classes), z.dtype)
    start = (*zeros, *zeros, jnp.ones(grid, z.dtype), jnp.full(grid, jnp.inf, z.dtype))
    steps, state = jax.lax.while_loop(unfinished, advance, (jnp.zeros((), jnp.int32), start))
    return state[0], state[1], state[5], steps
