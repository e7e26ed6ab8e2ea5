"""The plan and the table of `experiments.compare`; its stages are tested where they live."""

from __future__ import annotations

import json

import pytest

from experiments import compare
from jepa.errors import UserError


def test_plan_orders_runs_by_seed_and_gives_each_its_own_workdir(tmp_path):
    runs = compare.plan(["a=one.py", "b=two.py:x"], ["0", "3"], tmp_path, ["--devices=2"])
    assert [(run.name, run.seed) for run in runs] == [("a", 0), ("b", 0), ("a", 3), ("b", 3)]
    assert runs[3].arguments == (
        "--config=two.py:x",
        f"--workdir={tmp_path}/b/seed3",
        "--config.seed=3",
        "--devices=2",
    )


@pytest.mark.parametrize(
    ("runs", "seeds", "said"),
    [
        ([], ["0"], "--run=NAME=CONFIG is needed"),
        (["one.py"], ["0"], "--run=one.py: write it as NAME=CONFIG"),
        (["../a=one.py"], ["0"], "write it as NAME=CONFIG"),
        (["a=one.py", "a=two.py"], ["0"], "there is a run of that name"),
        (["a=one.py"], ["0", "x"], "--seeds=0,x: give whole numbers"),
    ],
)
def test_plan_names_what_is_wrong(tmp_path, runs, seeds, said):
    with pytest.raises(UserError, match=said):
        compare.plan(runs, seeds, tmp_path, [])


@pytest.mark.parametrize(
    ("measures", "without", "said"),
    [
        ([], [], "--measures=: give one or more of knn, linear"),
        (["knn", "cnn"], [], "--measures=knn,cnn: give one or more of"),
        (["knn"], ["shuffle"], "--without=shuffle: choose from single, shuffled, blank"),
        (["knn"], ["none"], "--without=none: choose from"),
    ],
)
def test_what_probes_would_refuse_is_refused_before_training(measures, without, said):
    with pytest.raises(UserError, match=said):
        compare.check_measures(measures, without)
    compare.check_measures(["knn", "finetune"], ["blank"])


def test_pixels_are_measured_by_the_probes_that_can_read_them(tmp_path):
    class Stages:
        def __init__(self):
            self.flags = []

        def run(self, name, module, arguments):
            self.flags.append([a for a in arguments if not a.startswith("--config")])

    for measures, wanted in (
        (["knn", "linear"], [["--random_init", "--pixels"]]),
        (["linear", "attentive"], [["--random_init"], ["--pixels"]]),
        (["attentive"], [["--random_init"]]),
    ):
        stages = Stages()
        (run,) = compare.plan(["a=one.py"], ["0"], tmp_path, [])
        run.do(stages, measures, [])
        assert [
            [f for f in flags[1:] if "--probes" not in f] for flags in stages.flags[2:]
        ] == wanted
        for flags in stages.flags[3:]:
            assert "--probes=linear" in flags


def test_summary_and_table_are_means_over_seeds(tmp_path):
    _measured(tmp_path / "a" / "seed0", {"trained": 0.8, "random_init": 0.6, "pixels": 0.7})
    _measured(tmp_path / "a" / "seed1", {"trained": 0.9, "random_init": 0.6})
    summary = compare.summarise(tmp_path)
    cell = summary["runs"]["a"]["encoders"]["trained"]["class"]["linear"]
    assert cell["by_seed"] == {"0": 0.8, "1": 0.9}
    assert cell["mean"] == pytest.approx(0.85)
    assert cell["sd"] == pytest.approx(0.05 * 2**0.5)
    assert summary["runs"]["a"]["seconds"] == {"0": 120.0, "1": 120.0}
    assert compare.table(summary).splitlines() == [
        "| features of | numbers | minutes | class, linear |",
        "| --- | ---: | ---: | ---: |",
        "| raw pixels | 4 |  | 70.0 |",
        "| a, random init | 4 |  | 60.0 ± 0.0 |",
        "| a | 4 | 2.0 | 85.0 ± 7.1 |",
    ]


def test_summary_of_nothing_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no measured run"):
        compare.summarise(tmp_path)


def _measured(directory, accuracies):
    """A workdir with probes.json, and the log of 60 steps of 8 clips at 4 clips a second."""
    directory.mkdir(parents=True)
    cell = {"features": [4]}
    encoders = {
        name: {"labels": {"class": {"linear": {**cell, "accuracy": {"value": value}}}}}
        for name, value in accuracies.items()
    }
    (directory / "probes.json").write_text(json.dumps({"encoders": encoders}))
    config = {"method": "m", "data": {}, "model": {}, "train": {"steps": 60, "global_batch": 8}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "metrics.jsonl").write_text(json.dumps({"step": 60, "clips_per_second": 4.0}))
