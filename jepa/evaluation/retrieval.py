"""Retrieval: whether the right item comes first.

Letters: Q queries, M items, N pairs. A score is a similarity: higher is nearer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jepa.evaluation import intervals

DEPTHS = (1, 5, 10)


def ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the 1-based rank `[Q]` of each query's target among all items.

    Ties are pessimistic: an item that scores the same as the target counts as ahead of it, so a
    model that maps everything to one point ranks last, not first.

    Args:
      scores: `[Q, M]`.
      targets: `[Q]` integers, the column of the right item.

    Raises:
      ValueError: a score is not finite (a comparison with NaN would count as a win).
    """
    scores = _finite(scores)
    own = scores[np.arange(len(scores)), np.asarray(targets)]
    return np.sum(scores >= own[:, None], axis=1)


def summary(
    rank: np.ndarray, items: int, *, depths: Sequence[int] = DEPTHS, seed: int = 0
) -> dict[str, intervals.Measure]:
    """Returns `recall_at_K` for each depth and `median_rank` for ranks `[Q]` among `items`."""
    rank = np.asarray(rank)
    measures = {
        f"recall_at_{depth}": intervals.proportion(rank <= depth, min(depth, items) / items)
        for depth in depths
    }
    measures["median_rank"] = intervals.median(rank, (items + 1) / 2, seed=seed)
    return measures


def both_directions(
    texts: np.ndarray, videos: np.ndarray, *, depths: Sequence[int] = DEPTHS, seed: int = 0
) -> dict[str, dict[str, intervals.Measure]]:
    """Returns retrieval among N pairs, from text to video and from video to text.

    Args:
      texts: `[N, S]`, normalised.
      videos: `[N, S]`, normalised; row i belongs to text i and to no other text.
      depths: the K of `recall_at_K`.
      seed: of the bootstrap.
    """
    scores = np.asarray(texts, np.float64) @ np.asarray(videos, np.float64).T
    own = np.arange(len(scores))
    return {
        name: summary(ranks(table, own), len(scores), depths=depths, seed=seed)
        for name, table in (("text_to_video", scores), ("video_to_text", scores.T))
    }


def within_groups(scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how often each query finds its item in its own group, and what guessing gets.

    Here a tie counts as a fair guess (one over the number of tied best items), not pessimistically:
    clips of a group can be the very same picture under a control (a single frame, say), and calling
    that worse than chance would flatter the model that the control is compared with.

    Args:
      scores: `[N, N]`, row i a query whose right item is column i.
      groups: `[N]` integers or strings.

    Returns:
      `(hits [N], chances [N])`, both in [0, 1].
    """
    scores = _finite(scores)
    groups = np.asarray(groups)
    same = groups[:, None] == groups[None, :]
    candidates = np.where(same, scores, -np.inf)
    best = candidates.max(axis=1, keepdims=True)
    tied = np.sum(candidates == best, axis=1)
    hits = np.where(np.diagonal(candidates) == best[:, 0], 1.0 / tied, 0.0)
    return hits, 1.0 / np.sum(same, axis=1)


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("retrieval scores must be finite")
    return scores
