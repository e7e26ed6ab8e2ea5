"""The linear probe and the nearest neighbours, against SciPy and against counting by hand."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from jepa.evaluation import probes_knn, probes_linear


def task(count, width, classes, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(width, width))  # correlated, of very different sizes
    x = rng.normal(size=(count, width)) @ mixed * np.logspace(0, 2, width) + 5
    scores = (x - x.mean(axis=0)) / x.std(axis=0) @ rng.normal(size=(width, classes))
    return x.astype(np.float32), (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)


def objective(x, labels, weights, bias, l2):
    logits = x @ weights + bias
    return -log_softmax(logits, axis=1)[np.arange(len(x)), labels].mean() + l2 / 2 * np.sum(
        weights**2
    )


def solved(x, labels, classes, l2):
    """The minimum by SciPy, in float64: its value and its weights."""
    width = x.shape[1]

    def split(flat):
        return flat[: width * classes].reshape(width, classes), flat[width * classes :]

    def value(flat):
        weights, bias = split(flat)
        errors = np.exp(log_softmax(x @ weights + bias, axis=1))
        errors[np.arange(len(x)), labels] -= 1
        slopes = x.T @ errors / len(x) + l2 * weights
        whole = np.concatenate([slopes.reshape(-1), errors.mean(axis=0)])
        return objective(x, labels, weights, bias, l2), whole

    options = {"maxiter": 5000, "maxfun": 10**6, "ftol": 1e-15, "gtol": 1e-10}
    start = np.zeros(width * classes + classes)
    found = minimize(value, start, jac=True, method="L-BFGS-B", options=options)
    return found.fun, split(found.x)[0]


@pytest.mark.parametrize(("count", "width", "classes"), [(200, 6, 3), (30, 50, 2)])
def test_every_penalty_of_the_grid_reaches_scipys_minimum(count, width, classes):
    x, labels = task(count, width, classes)
    grid = (1e-3, 1e-1)
    options = {"iterations": 3000, "tolerance": 1e-11}
    found = probes_linear.fit(x, labels, classes=classes, l2=grid, **options)
    assert found.steps < 3000
    assert np.all(found.gap <= 1e-11)
    z = ((x.astype(np.float64)) - x.mean(axis=0)) / x.std(axis=0)
    for place, l2 in enumerate(grid):
        best, weights = solved(z, labels, classes, l2)
        mine = objective(z, labels, found.weights[place], found.bias[place], l2)
        assert mine == pytest.approx(best, abs=2e-6)
        np.testing.assert_allclose(found.weights[place], weights, atol=2e-2)
        logits = z @ found.weights[place] + found.bias[place]
        np.testing.assert_allclose(found.logits(x)[place], logits, atol=1e-3)


def test_the_grid_is_the_same_as_one_penalty_at_a_time():
    x, labels = task(60, 5, 3)
    grid = (1e-3, 1e-2, 1.0)
    # So many steps that all have ended, and none by the others' leave.
    options = {"classes": 3, "iterations": 120, "tolerance": 0.0}
    together = probes_linear.fit(x, labels, l2=grid, **options)
    for place, l2 in enumerate(grid):
        alone = probes_linear.fit(x, labels, l2=(l2,), **options)
        np.testing.assert_allclose(together.weights[place], alone.weights[0], atol=1e-5)
        np.testing.assert_allclose(together.bias[place], alone.bias[0], atol=1e-5)


def test_the_scale_of_a_feature_is_of_no_matter_and_constant_ones_are_left_out():
    x, labels = task(60, 4, 3)
    first = probes_linear.fit(x, labels, classes=3, l2=(0.1,))
    other = np.concatenate([x * [1e-3, 1, 10, 1e3] + 7, np.full((60, 1), 3.0)], axis=1)
    second = probes_linear.fit(other, labels, classes=3, l2=(0.1,))
    np.testing.assert_allclose(second.logits(other), first.logits(x), atol=2e-3)
    assert second.scale[4] == 0
    # A constant that moves in the test split is no reason to say something else.
    other[:, 4] = 100
    np.testing.assert_allclose(second.logits(other), first.logits(x), atol=2e-3)


def test_a_collapsed_encoder_is_at_the_most_common_class():
    labels = np.array([0, 1, 1, 2])
    found = probes_linear.fit(np.full((4, 3), 2.5), labels, classes=3, l2=(0.1,))
    assert found.logits(np.full((5, 3), 2.5))[0].argmax(axis=1).tolist() == [1] * 5


def test_the_choice_goes_by_accuracy_then_by_cross_entropy_then_by_place():
    right, sure, wrong = [[1.0, 0.0]] * 2, [[3.0, 0.0]] * 2, [[0.0, 9.0]] * 2
    labels = np.zeros(2, int)
    assert probes_linear.select(np.array([wrong, right, sure]), labels) == 2
    assert probes_linear.select(np.array([wrong, right, right]), labels) == 1


def test_neighbours_vote_as_counted_by_hand():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(50, 7)), rng.normal(size=(23, 7))
    labels = rng.integers(0, 4, 50)
    found = probes_knn.predict(train, labels, test, classes=4, k=9, temperature=0.07)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    for row, similarities in enumerate(unit[1] @ unit[0].T):
        votes = np.zeros(4)
        for place in np.argsort(-similarities)[:9]:
            votes[labels[place]] += np.exp(similarities[place] / 0.07)
        assert found[row] == votes.argmax()


def test_blocks_of_test_clips_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    train, test, labels = rng.normal(size=(9, 3)), rng.normal(size=(7, 3)), np.arange(9) % 3
    whole = probes_knn.predict(train, labels, test, classes=3, k=3)
    monkeypatch.setattr(probes_knn, "_MOST", 27)  # three rows at a time
    np.testing.assert_array_equal(probes_knn.predict(train, labels, test, classes=3, k=3), whole)


def test_ties_go_to_the_earlier_clip_and_the_lower_class():
    # Equally near: the first three vote. Then two classes with equal votes.
    train, test = np.ones((6, 2)), np.ones((1, 2))
    assert probes_knn.predict(train, np.array([2, 2, 1, 1, 1, 1]), test, classes=3, k=3) == [2]
    assert probes_knn.predict(train, np.array([2, 1, 0, 0, 0, 0]), test, classes=3, k=2) == [1]
    # Fewer clips than neighbours.
    assert probes_knn.predict(train[:1], np.array([1]), test, classes=3, k=20) == [1]
