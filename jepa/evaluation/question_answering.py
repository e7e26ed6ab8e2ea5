"""Question answering: the candidate answer that lies nearest to the prediction.

Letters: N questions, M distinct answer texts, S the shared dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jepa.evaluation import intervals


def nearest(
    predictions: np.ndarray,
    table: np.ndarray,
    candidates: Sequence[Sequence[int]],
    right: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the chosen row of `table` and the credit of each question, both `[N]`.

    A tie for the best candidate earns one over the number of tied ones if the right answer is among
    them: what a fair guess earns on average, whatever the order of the candidates.

    Args:
      predictions: `[N, S]`.
      table: `[M, S]`, the vectors of all answer texts.
      candidates: for each question the rows it may choose from.
      right: `[N]`, the row of the right answer; one of the question's candidates.

    Raises:
      ValueError: a similarity is not finite.
    """
    scores = np.asarray(predictions, np.float64) @ np.asarray(table, np.float64).T
    if not np.isfinite(scores).all():
        raise ValueError("the similarities of answers must be finite")
    chosen, hits = [], []
    for line, rows, answer in zip(scores, candidates, right, strict=True):
        own = line[list(rows)]
        best = own.max()
        chosen.append(rows[int(np.argmax(own))])
        hits.append(float(line[answer] == best) / np.sum(own == best))
    return np.array(chosen, np.int64), np.array(hits)


def summary(
    hits: np.ndarray,
    *,
    kinds: Sequence[str],
    answers: Sequence[str],
    chances: Sequence[float],
    clips: Sequence[str],
) -> dict[str, Any]:
    """Returns accuracy overall, class-balanced and by kind of question.

    `overall` counts every question once. `balanced` is the mean over kinds of the mean over that
    kind's answers, so that neither a frequent kind nor a frequent answer carries it. Questions
    about one clip hang together, and the intervals of `overall` and of a kind allow for it.

    Args:
      hits: `[N]` in [0, 1], see `nearest`.
      kinds: `[N]` the kind of each question.
      answers: `[N]` the right answers.
      chances: `[N]` one over the number of candidates.
      clips: `[N]` the key of each question's clip.
    """
    hits, chance = np.asarray(hits, np.float64), np.asarray(chances, np.float64)
    kind, answer, clip = np.asarray(kinds), np.asarray(answers), np.asarray(clips)
    by_kind: dict[str, dict[str, Any]] = {}
    for name in sorted(set(kinds)):
        rows = kind == name
        by_kind[name] = {
            "accuracy": intervals.clustered_proportion(hits[rows], clip[rows], chance[rows].mean()),
            "balanced": intervals.balanced_proportion(
                hits[rows], answer[rows], chance[rows].mean()
            ),
            "answers": {
                text: intervals.proportion(hits[rows & (answer == text)], chance[rows].mean())
                for text in sorted(set(answer[rows].tolist()))
            },
        }
    return {
        "overall": intervals.clustered_proportion(hits, clip, chance.mean()),
        "balanced": _mean_of_kinds([entry["balanced"] for entry in by_kind.values()]),
        "kinds": by_kind,
    }


def _mean_of_kinds(measures: Sequence[intervals.Measure]) -> intervals.Measure:
    """Averages measures of disjoint questions; the interval is Wilson's at the harmonic count."""
    number = len(measures)
    share = float(np.mean([entry["value"] for entry in measures]))
    effective = number**2 / sum(1 / entry["count"] for entry in measures)
    return intervals.measure(
        share,
        intervals.wilson(min(1.0, share), effective),
        sum(entry["count"] for entry in measures),
        float(np.mean([entry["chance"] for entry in measures])),
    )
