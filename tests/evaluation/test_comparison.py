"""The table of the run and the models beside it."""

from jepa.evaluation import comparison


def measure(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 10, "chance": None}


def numbers():
    return {
        "retrieval": {"text_to_video": {"recall_at_1": measure(0.5)}},
        "zero_shot": {"labels": {"colour": {"accuracy": measure(0.9)}}},
        "questions": {"balanced": measure(0.7)},
        "hard": {"text_to_video": measure(0.6)},
        "training": {"seconds": 480.0, "feature_seconds": 40.0, "pretraining_seconds": 700.0},
    }


def test_each_model_has_its_scores_its_time_and_its_paired_gain():
    own = numbers()
    other = {**numbers(), "training": {"seconds": 1199.6}}
    assert comparison.seconds(own["training"]) == 1220.0
    assert comparison.seconds({}) is None
    told = {"training": other["training"], "scores": comparison.scores(other)}
    own["baselines"] = {"joint": told}
    own["gains"] = {
        "hard_over_joint_model": measure(0.25),
        "zero_shot_colour_over_joint_model": measure(0.0),
    }
    header, (first, second, above) = comparison.header(own), comparison.rows(own)
    assert header[2:] == ["retrieval R@1", "colour", "questions", "hard groups"]
    assert first[:3] == ["this run", "20m20s", "50.0 (40.0 to 60.0)"]
    assert second[0] == "joint training from a random start" and second[1] == "20m00s"
    assert above[1:] == ["", "", "+0.0 (-10.0 to +10.0)", "", "+25.0 (+15.0 to +35.0)"]
    lines = comparison.table(own).splitlines()
    assert len(lines) == 4 and len({line.index("20m") for line in lines[1:3]}) == 1


def test_what_was_not_measured_leaves_its_cell_empty():
    own = numbers()
    own["baselines"] = {"joint": {"training": {}, "scores": {}}}
    own["gains"] = {"hard_over_joint_model": measure(0.0)}
    assert comparison.rows(own)[1][1:] == ["unknown", "", "", "", ""]
    assert comparison.table(numbers()) == ""
