import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jepa.evaluation import intervals


@given(st.integers(1, 400), st.data())
def test_wilson_agrees_with_scipy(count, data):
    successes = data.draw(st.integers(0, count))
    expected = scipy.stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(
        intervals.wilson(successes / count, count), [expected.low, expected.high], atol=1e-12
    )


@pytest.mark.parametrize(("share", "count"), [(0.5, 0), (1.2, 10), (-0.1, 10)])
def test_wilson_refuses_what_is_no_proportion(share, count):
    with pytest.raises(ValueError, match="no proportion"):
        intervals.wilson(share, count)


def test_wilson_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).binomial(60, 0.3, size=2000)
    covered = [low <= 0.3 <= high for low, high in (intervals.wilson(d / 60, 60) for d in draws)]
    assert 0.92 <= np.mean(covered) <= 0.97


def test_median_interval_covers_the_truth_and_is_reproducible():
    rng = np.random.default_rng(1)
    covered = []
    for seed in range(200):
        found = intervals.median(rng.exponential(size=80), seed=seed, samples=300)
        covered.append(found["low"] <= np.log(2) <= found["high"])
    assert 0.9 <= np.mean(covered) <= 0.99
    values = rng.normal(size=50)
    assert intervals.median(values, seed=3) == intervals.median(values, seed=3)


def test_clusters_of_identical_hits_count_once():
    groups = np.repeat(np.arange(40), 5)
    hits = np.repeat(np.arange(40) % 2, 5)
    found = intervals.clustered_proportion(hits, groups)
    assert found["count"] == 200
    np.testing.assert_allclose([found["low"], found["high"]], intervals.wilson(0.5, 40), atol=0.01)


def test_independent_hits_in_clusters_keep_their_count():
    rng = np.random.default_rng(0)
    groups, hits = np.repeat(np.arange(2000), 2), rng.integers(0, 2, 4000)
    found = intervals.clustered_proportion(hits, groups)
    low, high = intervals.wilson(hits.mean(), 4000)
    assert found["high"] - found["low"] == pytest.approx(high - low, rel=0.06)


def test_a_perfect_score_is_as_sure_as_its_number_of_clusters():
    found = intervals.clustered_proportion(np.ones(20), np.repeat(np.arange(10), 2))
    assert (found["low"], found["high"]) == intervals.wilson(1.0, 10)


def test_balanced_proportion_ignores_how_frequent_a_class_is():
    hits = np.array([1] * 90 + [0] * 10)
    classes = np.array([0] * 90 + [1] * 10)
    assert intervals.balanced_proportion(hits, classes)["value"] == pytest.approx(0.5)
    same = intervals.balanced_proportion(hits, np.arange(100) % 2)
    assert (same["low"], same["high"]) == pytest.approx(intervals.wilson(0.9, 100))


def test_paired_gain_sees_through_shared_difficulty():
    rng = np.random.default_rng(0)
    control = rng.integers(0, 2, 400).astype(float)
    hits = control.copy()
    hits[np.flatnonzero(control == 0)[:40]] = 1
    found = intervals.paired_gain(hits, control)
    assert found["value"] == pytest.approx(0.1)
    assert found["low"] > 0.06
    assert found["high"] < 0.14
