"""Maps of an embedding space: vectors `[N, S]` to points `[N, 2]`, N up to some hundreds."""

from __future__ import annotations

import numpy as np


def principal(vectors: np.ndarray, dimensions: int = 2) -> np.ndarray:
    """Returns the first principal components `[N, dimensions]`.

    The sign of each axis is fixed (its largest entry is positive), so that equal data draw equally.
    """
    centred = np.asarray(vectors, np.float64)
    centred = centred - centred.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    points = left[:, :dimensions] * scale[:dimensions]
    signs = np.sign(points[np.abs(points).argmax(axis=0), np.arange(points.shape[1])])
    return points * np.where(signs == 0, 1, signs)


def t_sne(vectors: np.ndarray, *, perplexity: float = 20.0, steps: int = 500) -> np.ndarray:
    """Returns an exact t-SNE `[N, 2]` (van der Maaten and Hinton 2008) of unit vectors.

    Starts from the principal components, so it needs no seed. Distances between far groups mean
    little in such a map; neighbourhoods do.

    Args:
      vectors: `[N, S]`.
      perplexity: the effective number of neighbours; lowered for few points.
      steps: of gradient descent with momentum, the first quarter with early exaggeration.
    """
    vectors = np.asarray(vectors, np.float64)
    count = len(vectors)
    if count < 5:
        return principal(vectors)
    affinities = _affinities(_square_distances(vectors), min(perplexity, (count - 1) / 3))
    points = principal(vectors)
    points = points / max(points[:, 0].std(), 1e-12) * 1e-2
    speed, gains = np.zeros_like(points), np.ones_like(points)
    for step in range(steps):
        early = step < steps // 4
        kernel = 1 / (1 + _square_distances(points))
        np.fill_diagonal(kernel, 0)
        pull = (affinities * (12 if early else 1) - kernel / kernel.sum()) * kernel
        gradient = 4 * (pull.sum(axis=1)[:, None] * points - pull @ points)
        gains = np.where(np.sign(gradient) != np.sign(speed), gains + 0.2, gains * 0.8)
        gains = np.maximum(gains, 0.01)
        speed = (0.5 if early else 0.8) * speed - max(count / 12, 50) * gains * gradient
        points = points + speed
        points = points - points.mean(axis=0)
    return points


def _square_distances(points: np.ndarray) -> np.ndarray:
    norms = np.sum(points**2, axis=1)
    distances = norms[:, None] + norms[None, :] - 2 * points @ points.T
    return np.maximum(distances, 0)


def _affinities(distances: np.ndarray, perplexity: float) -> np.ndarray:
    """Finds each point's bandwidth by bisection and returns the symmetric joint probabilities."""
    count = len(distances)
    others = ~np.eye(count, dtype=bool)
    # Scaled so that the search starts near the answer whatever the units, and taken from each
    # point's nearest neighbour so that no row underflows; a point is no neighbour of itself.
    distances = distances / max(float(distances[others].mean()), 1e-12)
    distances = np.where(others, distances, np.inf)
    distances = distances - distances.min(axis=1, keepdims=True)
    low, high = np.full((count, 1), 1e-6), np.full((count, 1), 1e6)
    for _ in range(60):
        precision = np.sqrt(low * high)
        weights = np.exp(-precision * distances)
        shares = weights / weights.sum(axis=1, keepdims=True)
        entropy = -np.sum(shares * np.log(np.maximum(shares, 1e-300)), axis=1, keepdims=True)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, precision, low), np.where(wide, high, precision)
    return np.maximum((shares + shares.T) / (2 * count), 1e-12)
