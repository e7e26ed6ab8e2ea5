"""What the demonstration makes of measurements; the runs themselves take minutes."""

import json

import pytest
from PIL import Image

from experiments import cli, collapse_demo, collapse_plots
from jepa.errors import UserError
from jepa.training import loop
from tests.evaluation import probe_toy


def write_run(directory, spreads, name):
    directory.mkdir(parents=True)
    lines = [
        {
            "step": max(1, 100 * index),
            f"health/{name}/examples/mean_cosine": 1 - spread**2,
            f"health/{name}/examples/rankme": 9.0,
            f"health/{name}/examples/effective_rank": 5.0,
        }
        for index, spread in enumerate(spreads)
    ]
    (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture
def outcomes(tmp_path):
    found = []
    for kind in collapse_demo.KINDS:
        spreads = [0.6, 0.02, 0.01, 0.01] if kind.broken else [0.6, 0.5, 0.6, 0.6]
        name = "target/blocks" if kind.name.startswith("i-jepa") else "features"
        write_run(tmp_path / kind.name, spreads, name)
        found.append(collapse_demo.Outcome.of(kind, 0, tmp_path / kind.name))
    return found


def test_the_table_says_which_were_called_collapsed_and_when(outcomes):
    lines = collapse_demo.table(outcomes).splitlines()
    assert len(lines) == 2 + len(collapse_demo.KINDS)
    assert "| i-jepa | 1 | 0 | - | 0 |" in lines[2]
    assert "| i-jepa, no teacher | 1 | 1 | 200 to 200 | 1 |" in lines[3]
    assert collapse_demo.missed(outcomes) == []


def test_a_wrong_verdict_is_named(outcomes, tmp_path):
    write_run(tmp_path / "well", [0.6] * 4, "target/blocks")
    wrong = collapse_demo.Outcome.of(collapse_demo.KINDS[1], 7, tmp_path / "well")
    assert collapse_demo.missed([*outcomes, wrong]) == [
        "i-jepa, no teacher, seed 7: not called collapsed"
    ]


def test_a_run_that_is_told_to_stop_ends_the_demonstration(tmp_path, monkeypatch):
    probe_toy.write(tmp_path / "set")
    data, given = f"idx:{tmp_path / 'set'}", {"seeds": 2, "steps": 20, "long_steps": 0}
    begun = []

    def stopped(config, directory, **kwargs):
        begun.append(directory.name)
        return loop.Result({}, 3, False, {}, None)

    monkeypatch.setattr(collapse_demo.loop, "train", stopped)
    monkeypatch.setattr(collapse_demo.loader, "make_train_loader", lambda *given, **named: None)
    assert cli.exit_code(lambda: collapse_demo.main(tmp_path, data=data, **given)) == 130
    assert begun == ["i-jepa-0"]


def test_data_without_a_test_split_is_refused_before_the_first_run(tmp_path):
    probe_toy.write(tmp_path / "set")
    for file in (tmp_path / "set").glob("test-*"):
        file.unlink()
    given = {"data": f"idx:{tmp_path / 'set'}", "seeds": 1, "steps": 20, "long_steps": 20}
    with pytest.raises(UserError, match="no split 'test'"):
        collapse_demo.main(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_plots_are_small(outcomes, tmp_path):
    runs = [(o.kind.name, o.kind.broken, o.history) for o in outcomes]
    collapse_plots.write_health(tmp_path / "a.png", runs)
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "neighbours/accuracy": 0.5}]
    collapse_plots.write_losses(tmp_path / "b.png", {"i-jepa": rows, "i-jepa, no teacher": rows})
    for name in ("a.png", "b.png"):
        assert Image.open(tmp_path / name).size[0] > 400
        assert (tmp_path / name).stat().st_size < 150_000


def test_a_broken_teacher_is_the_encoder_itself():
    configs = [kind.config("x", 0, 200) for kind in collapse_demo.KINDS]
    assert configs[0].ema is not None and configs[1].ema is None
    assert collapse_demo.WithoutTeacher(configs[1]).requirements.ema is False
    assert [config.loss.get("sigreg_weight") for config in configs] == [None, None, 0.05, 0.0]
