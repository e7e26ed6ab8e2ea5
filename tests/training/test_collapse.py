import json

import pytest

from jepa.training import collapse


def trace(spreads, ranks=None, ratios=None, where="target/blocks/examples"):
    """Returns a history of rows whose spread and RankMe are given."""
    ranks = ranks or [20.0] * len(spreads)
    ratios = ratios or [0.5] * len(spreads)
    return [
        (
            10 * step,
            {
                f"{where}/mean_cosine": 1 - spread**2,
                f"{where}/rankme": rank,
                f"{where}/effective_rank": 1.0,
                "prediction_over_copy": ratio,
            },
        )
        for step, (spread, rank, ratio) in enumerate(zip(spreads, ranks, ratios, strict=True))
    ]


def state(*given, **options):
    return collapse.judge(trace(*given, **options)).state


def test_a_healthy_run():
    assert collapse.judge([]) == collapse.Verdict("healthy")
    assert state([0.6] * 5) == "healthy"
    assert state([0.03, 0.05, 0.2, 0.5]) == "healthy"
    assert str(collapse.judge(trace([0.6] * 5))) == "healthy"


def test_random_weights_are_not_called_collapsed_for_being_alike():
    assert state([0.03, 0.03, 0.03]) == "healthy"


def test_all_clips_alike():
    verdict = collapse.judge(trace([0.3, 0.1, 0.004, 0.003, 0.003]))
    assert verdict.state == "collapsed"
    assert "0.30% of their length" in verdict.reason and "target/blocks/examples" in verdict.reason
    assert state([0.5, 0.3, 0.04, 0.04, 0.04]) == "collapsed"  # lost most of what it had


def test_all_places_alike():
    history = trace([0.5] * 4)
    for (_, values), (_, tokens) in zip(
        history, trace([0.5, 0.1, 0.001, 0.001], where="target/blocks/tokens"), strict=True
    ):
        values.update(tokens)
    verdict = collapse.judge(history)
    assert verdict.state == "collapsed" and "target/blocks/tokens" in verdict.reason


def test_few_directions_left():
    verdict = collapse.judge(trace([0.5] * 4, [20.0, 5.0, 1.2, 1.2]))
    assert verdict.state == "collapsed" and "RankMe is 1.20, at first 20.0" in verdict.reason


def test_texts_of_two_kinds_have_few_directions():
    assert state([0.5] * 4, [1.0, 1.1, 1.0, 1.0]) == "healthy"


def test_guesses_are_not_judged_and_embeddings_of_clips_are():
    for where, wanted in (
        ("prediction/short/examples", "healthy"),
        ("prediction/examples", "collapsed"),
    ):
        assert state([0.5, 0.001, 0.001, 0.001], where=where) == wanted


def test_one_odd_batch_changes_nothing():
    assert state([0.5, 0.5, 0.001, 0.5]) == "healthy"
    assert state([0.5, 0.5, 0.5, 0.001]) == "healthy"
    assert state([0.001]) == "healthy"


def test_narrowing_and_recovering():
    falling = [0.6, 0.4, 0.25, 0.2, 0.19]
    assert state(falling) == "narrowing"
    assert "0.2, it has been 0.6" in collapse.judge(trace(falling)).reason
    assert state([*falling, 0.4, 0.5, 0.5]) == "healthy"
    assert state([0.5] * 5, [30, 20, 12, 11, 10]) == "narrowing"


def test_nothing_learnt_about_places_is_a_note():
    verdict = collapse.judge(trace([0.6] * 4, ratios=[1.4, 1.0, 0.99, 0.98]))
    assert verdict.state == "healthy"
    assert "0.98 of that of a guess" in str(verdict)
    # Learning began late: two of three are above, and the last one is what the run does now.
    for ratios in ([1.4, 1.0, 0.9, 0.8], [4.1, 1.4, 1.1, 0.78]):
        assert not collapse.judge(trace([0.6] * 4, ratios=ratios)).note


def test_measures_that_are_missing_or_not_finite():
    nan = trace([0.5, 0.5, float("nan"), 0.5])
    assert collapse.judge(nan).state == "healthy"
    assert collapse.judge([(0, {}), (1, {"x/y": 1.0}), (2, {"plain": 1.0})]).state == "healthy"


def test_reading_a_log(tmp_path):
    assert collapse.read(tmp_path) == []
    lines = [
        {"step": 1, "loss": 2.0},
        {"step": 20, "health/a/examples/std": 1.0, "health/verdict": 0.0},
        {"step": 10, "health/a/examples/std": 2.0, "health/a/examples/rankme": None},
        {"step": 30, "health/a/examples/std": 3.0},
    ]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "metrics.jsonl").write_text(text + '\n{"step": 40, "hea')
    found = collapse.read(tmp_path, until=20)
    assert found == [(10, {"a/examples/std": 2.0}), (20, {"a/examples/std": 1.0})]
    assert len(collapse.read(tmp_path)) == 3


@pytest.mark.parametrize("name", collapse.STATES)
def test_words(name):
    assert str(collapse.Verdict(name, "why", "note")) == f"{name}: why; note"
