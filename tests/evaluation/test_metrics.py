import numpy as np
import pytest

from jepa.evaluation import question_answering, retrieval, zero_shot


def brute_rank(scores, target):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i == target))
    return order.index(target) + 1


def test_ranks_agree_with_sorting_and_ties_are_pessimistic():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, size=(40, 15)).astype(float)
    targets = rng.integers(15, size=40)
    expected = [brute_rank(line, target) for line, target in zip(scores, targets, strict=True)]
    np.testing.assert_array_equal(retrieval.ranks(scores, targets), expected)


def test_a_collapsed_model_ranks_last():
    np.testing.assert_array_equal(retrieval.ranks(np.zeros((3, 7)), np.arange(3)), [7, 7, 7])


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        retrieval.ranks(np.array([[np.nan, 1.0]]), np.array([0]))


def test_summary_counts_recalls_and_chance():
    found = retrieval.summary(np.array([1, 2, 6, 11]), 20)
    assert found["recall_at_1"]["value"] == 0.25
    assert found["recall_at_5"]["value"] == 0.5
    assert found["recall_at_10"]["value"] == 0.75
    assert found["recall_at_10"]["chance"] == 0.5
    assert found["median_rank"]["value"] == 4
    assert found["median_rank"]["chance"] == 10.5


def test_directions_use_their_own_rows():
    texts = np.eye(3)
    videos = np.array([[1.0, 0, 0], [0.9, 0.5, 0], [0, 0, 1]])
    found = retrieval.both_directions(texts, videos, depths=(1,))
    assert found["text_to_video"]["recall_at_1"]["value"] == 1
    assert found["video_to_text"]["recall_at_1"]["value"] == pytest.approx(2 / 3)


def test_within_groups_looks_only_at_the_group():
    groups = np.array(["a", "b", "a", "b", "b"])
    scores = np.array(
        [
            [0.5, 0.9, 0.4, 0.9, 0.9],
            [0.9, 0.1, 0.9, 0.2, 0.0],
            [0.7, 0.0, 0.7, 0.0, 0.0],
            [0.0, 0.3, 0.0, 0.3, 0.3],
            [0.0, 0.3, 0.0, 0.3, 0.1],
        ]
    )
    hits, chances = retrieval.within_groups(scores, groups)
    np.testing.assert_allclose(hits, [1, 0, 0.5, 1 / 3, 0])
    np.testing.assert_allclose(chances, [1 / 2, 1 / 3, 1 / 2, 1 / 3, 1 / 3])


def test_identical_clips_of_a_group_score_chance_and_not_less():
    hits, chances = retrieval.within_groups(np.ones((6, 6)), np.repeat([0, 1], 3))
    np.testing.assert_allclose(hits, chances)


def test_a_class_is_as_near_as_its_nearest_text():
    prompts = np.array([[10.0, 0], [0, 1], [0.6, 0.8]])
    classes = np.array([0, 0, 1])
    shares = zero_shot.classify(np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.6]]), prompts, classes, 2)
    np.testing.assert_array_equal(shares, [[1, 0], [1, 0], [0, 1]])
    with pytest.raises(ValueError, match="at least one prompt"):
        zero_shot.classify(prompts, prompts, np.array([0, 0, 0]), 2)


def test_zero_shot_summary_against_counting():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, 50), rng.integers(0, 4, 50)
    found = zero_shot.summary(truth, np.eye(4)[predicted], ["a", "b", "c", "d"])
    table = np.array(found["confusion"])
    for i in range(4):
        for j in range(4):
            assert table[i, j] == sum(
                t == i and p == j for t, p in zip(truth, predicted, strict=True)
            )
    assert found["accuracy"]["value"] == pytest.approx(np.trace(table) / 50)
    rows = [table[i, i] / table[i].sum() for i in range(3)]
    assert found["mean_class_accuracy"]["value"] == pytest.approx(np.mean(rows))
    assert set(found["per_class"]) == {"a", "b", "c"}
    assert found["accuracy"]["chance"] == 0.25


def test_classify_finds_the_nearest_whatever_the_lengths():
    vectors = np.array([[1.0, 0], [0, 100.0]])
    videos = np.array([[0.9, 0.8], [0.1, 0.2]])
    np.testing.assert_array_equal(zero_shot.classify(videos, vectors, np.arange(2), 2), np.eye(2))


def test_tied_classes_share_and_a_collapsed_model_is_at_chance():
    shares = zero_shot.classify(
        np.ones((4, 2)), np.array([[1.0, 0], [0, 1], [-1, 0]]), np.arange(3), 3
    )
    np.testing.assert_array_equal(shares, [[0.5, 0.5, 0]] * 4)
    collapsed = zero_shot.classify(np.ones((8, 2)), np.ones((4, 2)), np.arange(4), 4)
    found = zero_shot.summary(np.zeros(8, int), collapsed, list("abcd"))
    assert found["accuracy"]["value"] == found["accuracy"]["chance"] == 0.25
    assert found["confusion"][0] == [2, 2, 2, 2]


def test_similarities_that_are_not_finite_are_refused():
    broken = np.array([[np.nan, 1.0]])
    with pytest.raises(ValueError, match="finite"):
        zero_shot.classify(broken, np.eye(2), np.arange(2), 2)
    with pytest.raises(ValueError, match="finite"):
        question_answering.nearest(broken, np.eye(2), [[0, 1]], [0])


def test_nearest_answer_among_its_own_candidates():
    table = np.eye(4)
    predictions = np.array([[0.1, 0.9, 0.5, 0], [0.1, 0.9, 0.5, 0], [1, 1, 0, 0], [0, 0, 1.0, 0]])
    chosen, hits = question_answering.nearest(
        predictions, table, [[0, 2], [0, 1, 2], [1, 0], [3, 0]], [2, 0, 0, 3]
    )
    np.testing.assert_array_equal(chosen, [2, 1, 1, 3])
    np.testing.assert_allclose(hits, [1, 0, 0.5, 0.5])


def test_question_summary_balances_answers_and_kinds():
    found = question_answering.summary(
        np.array([1, 1, 1, 0, 0, 1]),
        kinds=["colour"] * 4 + ["count"] * 2,
        answers=["red", "red", "red", "blue", "one", "one"],
        chances=[0.25] * 4 + [0.5] * 2,
        clips=list("abcdef"),
    )
    assert found["overall"]["value"] == pytest.approx(4 / 6)
    assert found["kinds"]["colour"]["accuracy"]["value"] == 0.75
    assert found["kinds"]["colour"]["balanced"]["value"] == 0.5
    assert found["kinds"]["colour"]["answers"]["red"]["count"] == 3
    assert found["balanced"]["value"] == 0.5
    assert found["balanced"]["chance"] == pytest.approx(0.375)
    assert found["overall"]["chance"] == pytest.approx((4 * 0.25 + 2 * 0.5) / 6)
