"""Zero-shot classification: the class whose texts lie nearest to the video.

Letters: N videos, P prompts, K classes, S the shared dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jepa.evaluation import intervals


def classify(
    videos: np.ndarray, prompts: np.ndarray, classes: np.ndarray, count: int
) -> np.ndarray:
    """Returns the share `[N, K]` that each class takes of each video: that of the nearest text.

    A class with several texts is as near as its nearest one, so that "a red star" can stand for
    "star" where the clip shows one. Classes that tie for a video share it evenly, as a fair guess
    would on average: a model that maps everything to one point is at chance, and not right
    whenever the first class is.

    Args:
      videos: `[N, S]`.
      prompts: `[P, S]`, the class texts.
      classes: `[P]` integers below `count`, the class of each text.
      count: the number of classes K.

    Raises:
      ValueError: a class has no text, or a similarity is not finite.
    """
    classes = np.asarray(classes)
    if set(classes.tolist()) != set(range(count)):
        raise ValueError("every class needs at least one prompt")
    scores = _normalised(videos) @ _normalised(prompts).T
    if not np.isfinite(scores).all():
        raise ValueError("zero-shot scores must be finite")
    of_class = np.stack([scores[:, classes == k].max(axis=1) for k in range(count)], axis=1)
    nearest = of_class == of_class.max(axis=1, keepdims=True)
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
