"""Zero-shot classification: the class whose texts lie nearest to the video.

Letters: N videos, P prompts, K classes, S the shared dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jepa.evaluation import intervals


def class_vectors(prompts: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Returns one unit vector a class `[K, S]`: the mean of its normalised prompts, normalised.

    Args:
      prompts: `[P, S]`.
      classes: `[P]` integers below `count`, the class of each prompt.
      count: the number of classes.

    Raises:
      ValueError: a class has no prompt.
    """
    classes = np.asarray(classes)
    if set(classes.tolist()) != set(range(count)):
        raise ValueError("every class needs at least one prompt")
    prompts = _normalised(prompts)
    sums = np.zeros((count, prompts.shape[1]))
    np.add.at(sums, classes, prompts)
    return _normalised(sums)


def classify(videos: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Returns for `videos` `[N, S]` the share `[N, K]` that each class of `vectors` `[K, S]` takes.

    The nearest class takes all of it. Classes that tie for it share it evenly, as a fair guess
    would on average: a model that maps everything to one point is at chance, and not right
    whenever the first class is.

    Raises:
      ValueError: a similarity is not finite.
    """
    scores = _normalised(videos) @ _normalised(vectors).T
    if not np.isfinite(scores).all():
        raise ValueError("zero-shot scores must be finite")
    nearest = scores == scores.max(axis=1, keepdims=True)
    return nearest / nearest.sum(axis=1, keepdims=True)


def confusion(truth: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Returns the counts `[K, K]`: rows are true classes, columns what `shares` `[N, K]` say."""
    table = np.zeros((shares.shape[1], shares.shape[1]))
    np.add.at(table, np.asarray(truth), shares)
    return table


def summary(truth: np.ndarray, shares: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Returns accuracy, the mean over the classes present, each class's own, and the confusion.

    Args:
      truth: `[N]` integers.
      shares: `[N, K]` as of `classify`.
      classes: the K names.
    """
    truth, shares = np.asarray(truth), np.asarray(shares, np.float64)
    hits, chance = shares[np.arange(len(truth)), truth], 1 / len(classes)
    return {
        "accuracy": intervals.proportion(hits, chance),
        "mean_class_accuracy": intervals.balanced_proportion(hits, truth, chance),
        "classes": list(classes),
        "per_class": {
            name: intervals.proportion(hits[truth == index], chance)
            for index, name in enumerate(classes)
            if np.any(truth == index)
        },
        "confusion": confusion(truth, shares).tolist(),
    }


def _normalised(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
