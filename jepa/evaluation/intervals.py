"""How sure a number is: Wilson intervals for proportions, seeded bootstrap for the rest.

Everything here is NumPy on small arrays. Letters: N examples, G groups (clusters).
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np

# The 97.5 % quantile of the normal distribution: all intervals are two-sided 95 % intervals.
Z95 = 1.959963984540054


class Measure(TypedDict):
    """One number of `evaluation.json`.

    `low` and `high` bound a 95 % confidence interval; `count` is the number of examples behind the
    value; `chance` is what guessing gets, or None where guessing means nothing.
    """

    value: float
    low: float
    high: float
    count: int
    chance: float | None


def measure(
    value: float, interval: tuple[float, float], count: int, chance: float | None = None
) -> Measure:
    """Returns the `Measure` with plain Python numbers, ready for JSON."""
    return Measure(
        value=float(value),
        low=float(interval[0]),
        high=float(interval[1]),
        count=int(count),
        chance=None if chance is None else float(chance),
    )


def wilson(share: float, count: float, z: float = Z95) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion (Wilson 1927).

    Unlike the textbook interval it never leaves [0, 1] and is not empty at 0 or 1.

    Args:
      share: the observed proportion.
      count: the number of trials; a fraction is allowed, so that an effective count can be given.
      z: the normal quantile of the wanted confidence.

    Raises:
      ValueError: `count` is not positive, or `share` is not a proportion.
    """
    if not count > 0 or not 0 <= share <= 1:
        raise ValueError(f"no proportion: share {share}, count {count}")
    spread = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    centre = share + z * z / (2 * count)
    scale = 1 + z * z / count
    low, high = (centre - spread) / scale, (centre + spread) / scale
    # At 0 and 1 the interval touches the share; rounding must not push it past.
    return max(0.0, min(float(low), share)), min(1.0, max(float(high), share))


def proportion(hits: np.ndarray, chance: float | None = None) -> Measure:
    """Returns the mean of independent `hits` `[N]` in [0, 1] with its Wilson interval."""
    hits = np.asarray(hits, np.float64)
    share = _unit(hits.mean())
    return measure(share, wilson(share, hits.size), hits.size, chance)


def clustered_proportion(
    hits: np.ndarray, groups: np.ndarray, chance: float | None = None
) -> Measure:
    """Returns the mean of `hits` `[N]` when hits of one group hang together.

    The Wilson interval is taken at the effective count: the number of independent trials that
    would have the variance of the mean estimated from the groups' totals. It is kept between the
    number of groups and the number of hits, so a perfect score is as sure as its groups are many.

    Args:
      hits: `[N]` in [0, 1].
      groups: `[N]` integers or strings; equal values mean the same group.
      chance: what guessing gets.
    """
    hits = np.asarray(hits, np.float64)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    number = int(group.max()) + 1
    share = _unit(hits.mean())
    variance = 0.0
    if number > 1:
        residuals = np.bincount(group, weights=hits - share)
        variance = number / (number - 1) * float(np.sum(residuals**2)) / hits.size**2
    effective = share * (1 - share) / variance if variance > 0 else float(number)
    effective = float(np.clip(effective, number, hits.size))
    return measure(share, wilson(share, effective), hits.size, chance)


def balanced_proportion(
    hits: np.ndarray, classes: np.ndarray, chance: float | None = None
) -> Measure:
    """Returns the mean over classes of the mean of `hits` `[N]` in each class.

    The Wilson interval is taken at the count of equally weighted trials with the same variance when
    all classes are equally hard: `K^2 / sum(1 / n_k)` for K classes of `n_k` examples.
    """
    hits = np.asarray(hits, np.float64)
    _, index = np.unique(np.asarray(classes), return_inverse=True)
    counts = np.bincount(index)
    share = _unit(float(np.mean(np.bincount(index, weights=hits) / counts)))
    effective = len(counts) ** 2 / float(np.sum(1 / counts))
    return measure(share, wilson(share, effective), hits.size, chance)


def median(
    values: np.ndarray, chance: float | None = None, *, seed: int = 0, samples: int = 2000
) -> Measure:
    """Returns the median of `values` `[N]` with its percentile bootstrap interval."""
    values = np.asarray(values, np.float64)
    picks = np.random.default_rng(seed).integers(values.size, size=(samples, values.size))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return measure(float(np.median(values)), (low, high), values.size, chance)


def paired_gain(
    hits: np.ndarray,
    control: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    seed: int = 0,
    samples: int = 2000,
) -> Measure:
    """Returns the mean of `hits - control`, both `[N]` on the same examples.

    The interval is a percentile bootstrap over groups (over examples without `groups`), which keeps
    the pairing: what is hard for both does not widen it.
    """
    gains = np.asarray(hits, np.float64) - np.asarray(control, np.float64)
    names = np.arange(gains.size) if groups is None else np.asarray(groups)
    _, group = np.unique(names, return_inverse=True)
    totals, counts = np.bincount(group, weights=gains), np.bincount(group)
    picks = np.random.default_rng(seed).integers(totals.size, size=(samples, totals.size))
    means = totals[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return measure(float(gains.mean()), (low, high), gains.size, 0.0)


def _unit(value: float) -> float:
    """Brings a mean that rounding pushed past 0 or 1 back."""
    return float(min(1.0, max(0.0, value)))
