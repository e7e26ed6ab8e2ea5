import json

import jax
import numpy as np
import pytest

from jepa.errors import UserError
from jepa.evaluation.suite import Evaluator, default_evaluation
from jepa.parallel.mesh import make_mesh
from tests.evaluation import toy


def settings(**changes):
    config = default_evaluation()
    config.batch_size = 6
    config.zero_shot.labels = ("colour", "direction")
    config.retrieval.count = 30
    config.quick = {"retrieval": 8, "zero_shot": 8, "questions": 8, "hard": 2}
    with config.ignore_type():
        config.zero_shot.query = {"colour": "Which colour?", "direction": "Which way?"}
        for key, value in changes.items():
            config[key] = value
    return config


def evaluator(kind, config=None, *, count=40, axes=None, frame_control="none"):
    source = toy.ToySource(count, frame_control)
    method = kind(source)
    mesh = make_mesh(axes or {"data": 2}, jax.devices()[:2])
    return Evaluator(method, None, config or settings(), mesh, source=source), source, method


@pytest.fixture(scope="module")
def perfect():
    made, source, method = evaluator(toy.Perfect)
    # Class texts are "a red shape", answers "red": bring both to one vector through the prompts.
    source.attributes = {
        "colour": {name: [name] for name in toy.COLOURS},
        "direction": {name: [name] for name in toy.WAYS},
    }
    return made, source, method, made.evaluate({}, {})


def test_perfect_vectors_are_always_right(perfect):
    _, _, _, found = perfect
    for direction in ("text_to_video", "video_to_text"):
        assert found["retrieval"][direction]["recall_at_1"]["value"] == 1
        assert found["retrieval"][direction]["median_rank"]["value"] == 1
        assert found["hard"][direction]["value"] == 1
        assert found["novel"]["retrieval"][direction]["recall_at_1"]["value"] == 1
    assert found["questions"]["overall"]["value"] == 1
    assert found["questions"]["balanced"]["value"] == 1
    for label in ("colour", "direction"):
        entry = found["zero_shot"]["labels"][label]
        assert entry["accuracy"]["value"] == 1
        assert np.trace(entry["confusion"]) == entry["accuracy"]["count"]


def test_controls_fall_to_chance_and_gains_say_so(perfect):
    _, _, _, found = perfect
    for control in ("single", "shuffled"):
        entry = found["controls"][control]["hard"]["text_to_video"]
        assert entry["value"] == pytest.approx(entry["chance"])
    blank = found["controls"]["blank"]["questions"]
    assert blank["balanced"]["value"] == pytest.approx(blank["balanced"]["chance"], abs=0.15)
    assert found["gains"]["hard_over_same_model_single"]["value"] == pytest.approx(0.5)
    assert found["gains"]["hard_over_same_model_shuffled"]["low"] >= 0.4
    assert set(found["gains"]) == {
        "questions_over_blank",
        "hard_over_same_model_single",
        "hard_over_same_model_shuffled",
    }


def test_every_measure_is_complete_and_json(perfect):
    def walk(entry):
        if isinstance(entry, dict) and "value" in entry:
            assert set(entry) == {"value", "low", "high", "count", "chance"}
            assert entry["low"] <= entry["value"] <= entry["high"]
            assert entry["count"] > 0
            return 1
        return sum(map(walk, entry.values())) if isinstance(entry, dict) else 0

    assert walk(perfect[3]) > 60
    assert json.loads(json.dumps(perfect[3])) == perfect[3]


def test_clips_are_read_once_and_programs_compiled_once(perfect):
    made, source, method, first = perfect
    assert sorted(source.passes) == [
        ("hard", "none", 40),
        ("hard", "shuffled", 40),
        ("hard", "single", 40),
        ("novel", "none", 40),
        ("validation", "blank", 1),  # grey clips are all the same
        ("validation", "none", 40),
    ]
    assert method.traces == 2
    assert made.evaluate({}, {}) == first
    made.quick({}, {})
    assert method.traces == 2


def test_random_vectors_are_at_chance():
    made, *_ = evaluator(toy.Random, count=200)
    found = made.evaluate({}, {})
    for entry in (
        found["retrieval"]["text_to_video"]["recall_at_10"],
        found["hard"]["text_to_video"],
        found["questions"]["balanced"],
        found["zero_shot"]["labels"]["colour"]["accuracy"],
    ):
        low, high = entry["low"], entry["high"]
        # Twice the interval: several numbers are looked at.
        assert low - (high - low) / 2 <= entry["chance"] <= high + (high - low) / 2


def test_the_mesh_does_not_matter(perfect):
    made, source, _ = evaluator(toy.Perfect, axes={"fsdp": 1, "tensor": 2})
    source.attributes = perfect[1].attributes
    assert made.evaluate({}, {}) == perfect[3]


def test_quick_is_flat_and_small(perfect):
    made, source, _, _ = perfect
    source.passes.clear()
    found = made.quick({}, {})
    assert found["retrieval_t2v_r1"] == 1.0
    assert found["zero_shot_colour"] == 1.0
    assert found["questions_balanced"] == 1.0
    assert found["hard_t2v"] == 1.0
    assert all(isinstance(value, float) for value in found.values())
    assert {control for _, control, _ in source.passes} == {"none"}
    assert max(limit for _, _, limit in source.passes) <= 40


def test_a_model_of_less_is_evaluated_on_that_and_without_controls():
    made, source, _ = evaluator(toy.Perfect, frame_control="single")
    found = made.evaluate({}, {})
    assert {control for _, control, _ in source.passes} == {"none"}  # nothing taken away twice
    assert not {"controls", "gains"} & set(found)


def test_unseen_combinations_have_a_count_of_their_own():
    made, *_ = evaluator(toy.Perfect, settings(novel={"split": "novel", "count": 10}))
    found = made.evaluate({}, {})
    assert found["novel"]["zero_shot"]["labels"]["colour"]["accuracy"]["count"] == 10
    assert found["zero_shot"]["labels"]["colour"]["accuracy"]["count"] == 40


def test_hard_captions_are_known_beforehand_in_the_order_of_the_hits():
    made, *_ = evaluator(toy.Perfect)
    captions = made.hard_captions()
    evidence = made.examine({}, {}).evidence["hard",]
    assert [caption for _, caption, _ in captions] == evidence["captions"]
    assert [group for _, _, group in captions] == evidence["groups"]
    assert captions[0][0] == "hard-0"
    assert evaluator(toy.Perfect, settings(hard=None))[0].hard_captions() == []


class Diverged(toy.Perfect):
    def embed(self, params, state, batch):
        outputs = super().embed(params, state, batch)
        return toy.Outputs(pooled={key: value * np.nan for key, value in outputs.pooled.items()})


def test_a_diverged_model_is_named():
    with pytest.raises(UserError, match="embedding of .* is not finite"):
        evaluator(Diverged)[0].evaluate({}, {})


def test_tasks_can_be_left_out():
    config = settings(hard=None, novel=None, zero_shot=None)
    made, *_ = evaluator(toy.Perfect, config)
    assert set(made.evaluate({}, {})) == {"retrieval", "questions", "controls", "gains"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(retreival=1),
            "evaluation.retreival' does not exist; did you mean 'retrieval'",
        ),
        (lambda c: c.retrieval.update(cout=1), "evaluation.retrieval.cout' does not exist"),
        (lambda c: c.retrieval.update(level="long"), "level 'long'"),
        (lambda c: c.zero_shot.update(labels=("speed",)), "has no query for it"),
        (lambda c: c.zero_shot.update(labels=("speed",), query="?"), "no class texts"),
        (lambda c: c.hard.update(split="novel"), "no group has two clips"),
        (lambda c: c.update(batch_size=0), "evaluation.batch_size is 0"),
        (lambda c: c.update(bars=(("qestions.balanced", 0.5),)), "evaluation.bars has"),
    ],
)
def test_mistakes_are_named(change, message):
    config = settings()
    with config.unlocked():
        change(config)
    with pytest.raises(UserError, match=message):
        evaluator(toy.Perfect, config)[0].evaluate({}, {})
