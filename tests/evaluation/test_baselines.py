from types import SimpleNamespace

import numpy as np
import pytest

from jepa.errors import UserError
from jepa.evaluation import baselines, results

CAPTIONS = [(f"clip-{i}", f"caption {i}", f"g{i // 2}") for i in range(40)]
HARD = {"text_to_video": {"value": 0.5}}


def evaluated(directory, hits, captions=CAPTIONS, identity="abc", others=None):
    baselines.write(directory, identity, captions, list(hits), others)
    numbers = {"identity": identity, "checkpoint_step": 7, "frame_control": "single", "hard": HARD}
    results.write(directory, numbers)


def test_gain_is_paired_caption_by_caption(tmp_path):
    rng = np.random.default_rng(0)
    less = rng.integers(0, 2, 40).astype(float)
    own = np.where(np.arange(40) % 4 == 0, 1.0, less)
    evaluated(tmp_path / "baselines" / "single_frame", less)
    found = {
        "single_frame": baselines.read("single_frame", baselines.find(tmp_path)["single_frame"])
    }
    baselines.check(found, CAPTIONS)
    described, gains = baselines.compare(found, CAPTIONS, own, seed=0)
    gain = gains["hard_over_single_frame_model"]
    assert gain["value"] == pytest.approx(own.mean() - less.mean())
    # Pairing: the interval is of the differences, which are small, not of two independent means.
    unpaired = 1.96 * np.sqrt((own.var() + less.var()) / 40)
    assert gain["high"] - gain["value"] < unpaired
    assert described["single_frame"] == {
        "frame_control": "single",
        "checkpoint_step": 7,
        "hard": HARD,
        "training": {},
        "scores": {"hard.text_to_video": HARD["text_to_video"]},
    }


def test_only_evaluated_baselines_are_found(tmp_path):
    assert baselines.find(tmp_path) == {}
    (tmp_path / "baselines" / "half").mkdir(parents=True)
    (tmp_path / "baselines" / "half" / results.FILE).write_text("{}")
    evaluated(tmp_path / "baselines" / "whole", np.ones(40))
    assert list(baselines.find(tmp_path)) == ["whole"]


def test_names_and_directories_are_parsed(tmp_path):
    assert list(baselines.parse(["a_1=x", "b=y=z"])) == ["a_1", "b"]
    for wrong in (["a"], ["a="], ["A b=x"], ["a=x", "a=y"]):
        with pytest.raises(UserError, match="write NAME=WORKDIR"):
            baselines.parse(wrong)


def test_what_cannot_be_compared_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no evaluation of hard groups"):
        baselines.read("less", tmp_path / "nowhere")
    evaluated(tmp_path, np.ones(38), CAPTIONS[:38])
    found = {"less": baselines.read("less", tmp_path)}
    with pytest.raises(UserError, match="'less' was evaluated on other hard clips"):
        baselines.check(found, CAPTIONS)
    baselines.write(tmp_path, "another", CAPTIONS, [1.0] * 40)
    with pytest.raises(UserError, match="are of two evaluations"):
        baselines.read("less", tmp_path)


def test_other_tasks_are_paired_where_their_examples_are_the_same(tmp_path):
    question = SimpleNamespace(id="q0")
    evidence = {
        ("retrieval",): {
            "captions": ["a", "b", "c"],
            "indices": [0, 1, 2],
            "ranks": {"text_to_video": np.array([1, 2, 1])},
        },
        ("zero_shot",): {
            "colour": {
                "indices": [4, 5],
                "truth": np.array([1, 0]),
                "shares": np.array([[0.5, 0.5], [1.0, 0.0]]),
            }
        },
        ("questions",): {
            "clips": ["x", "y"],
            "questions": [(0, question), (1, question)],
            "hits": np.array([True, False]),
        },
    }
    own = baselines.examples(evidence)
    assert own["retrieval"]["hits"] == [1, 0, 1] and own["zero_shot_colour"]["hits"] == [0.5, 1.0]
    assert own["questions"]["items"] == ["x q0", "y q0"]
    less = {**own, "retrieval": {**own["retrieval"], "hits": [0, 0, 1]}}
    less["questions"] = {**own["questions"], "items": ["x q0", "z q0"]}
    evaluated(tmp_path, np.ones(40), others=less)
    found = {"less": baselines.read("less", tmp_path)}
    _, gains = baselines.compare(found, CAPTIONS, np.ones(40), own, seed=0)
    assert gains["retrieval_over_less_model"]["value"] == pytest.approx(1 / 3)
    assert gains["zero_shot_colour_over_less_model"]["value"] == 0
    assert "questions_over_less_model" not in gains
