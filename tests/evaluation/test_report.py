import dataclasses
import errno
import html.parser
import json
import os
import re

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import evaluate
from jepa.data.schema import Caption
from jepa.errors import UserError
from jepa.evaluation import headline, pictures, poster, projection, report, results, svg
from jepa.evaluation.suite import Evaluator
from jepa.parallel.mesh import make_mesh
from tests.evaluation import toy
from tests.evaluation.test_suite import settings

NASTY = "<script>alert('x')</script> & \"moves\" </h4>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Checker(html.parser.HTMLParser):
    """Checks that tags nest, ids are unique and nothing is loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.images = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        for key in ("src", "href", "srcset", "data", "action"):
            if key in found:
                self.links.append(found[key])
        if tag == "img":
            self.images.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def material(kind=toy.Random, **changes):
    source = toy.ToySource(40)
    source.splits["validation"] = [
        dataclasses.replace(row, captions=(Caption("1", f"{NASTY} {number}", "full"),))
        for number, row in enumerate(source.splits["validation"])
    ]
    config = settings(**changes)
    mesh = make_mesh({"data": 2}, jax.devices()[:2])
    found = Evaluator(kind(source), None, config, mesh, source=source).examine({}, {})
    numbers = {
        "config": "toy <b>",
        "checkpoint_step": 7,
        "date": "2026-01-01",
        "device": "2 cpu",
        "wall_seconds": 3.0,
        "parameters": {"total": 10, "trained": 4},
        **found.numbers,
    }
    history = [
        {"step": 1, "loss": 3.0, "clips_per_second": 10.0},
        {"step": 5, "loss": None, "clips_per_second": 12.0, "evaluation/hard_t2v": 0.4},
        {"step": 7, "loss": 1.0, "clips_per_second": 12.0, "evaluation/hard_t2v": 0.6},
    ]
    plain = {"method": "jepa.methods.vl_jepa.VLJEPA", "evaluation": config.to_dict(), "data": {}}
    return report.Material(numbers, found.evidence, source, history, plain)


@pytest.fixture(scope="module")
def made():
    return material()


@pytest.fixture(scope="module")
def page(made):
    return report.make(made)


def test_page_is_well_formed_and_stands_alone(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    for link in checker.links:
        assert link.startswith(("#", "data:image/jpeg;base64,"))
        if link.startswith("#"):
            assert link[1:] in checker.ids
    assert "script" not in checker.tags
    assert "link" not in checker.tags
    assert not re.search(r"@import|url\(|https?://", page)


def test_pictures_have_a_text_alternative_and_a_size(page):
    checker = Checker()
    checker.feed(page)
    assert len(checker.images) > 20
    for found in checker.images:
        assert found["alt"].strip()
        assert int(found["width"]) > 0
    assert checker.tags.count("svg") == page.count('role="img"') + page.count('aria-hidden="true"')


def test_texts_are_escaped(page):
    assert "toy &lt;b&gt;" in page
    assert "&lt;script&gt;alert(" in page
    assert "<script" not in page
    assert "<b>" not in page


def test_same_seed_shows_the_same_clips(made, page):
    assert report.make(made) == page


def test_failures_are_shown_beside_what_is_drawn(page):
    assert "Drawn at random from the misses" in page
    assert "Drawn at random from the wrong answers" in page
    assert "Drawn at random from the misses" not in report.make(material(toy.Perfect))


def test_sections_follow_what_was_measured():
    page = report.make(material(hard=None, zero_shot=None, novel=None))
    for anchor, there in (("hard", False), ("classes", False), ("questions", True)):
        assert (f'id="{anchor}"' in page) == there
        assert (f'href="#{anchor}"' in page) == there


def test_report_is_written_whole(made, tmp_path):
    path = report.write(tmp_path / "deep" / "report.html", made)
    assert path.read_text().endswith("</html>\n")
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_poster_is_a_small_picture(made, tmp_path):
    path = poster.write(tmp_path / "poster.png", made)
    assert path.stat().st_size < 300_000
    assert Image.open(path).size[0] > 1000


def test_headlines_compare_with_bars(made):
    bars = (("questions.balanced", 0.0), ("hard.text_to_video", 1.1))
    lines = {line.key: line for line in headline.headlines(made.numbers, bars)}
    assert lines["questions.balanced"].reached is True
    assert lines["hard.text_to_video"].reached is False
    assert lines["retrieval.text_to_video.recall_at_1"].reached is None
    text = headline.table(list(lines.values()))
    assert "missed" in text
    assert "reached" in text
    wrong = (*bars, ("questions.all", 0.5), ("gains.hard_over_single_frame_model", 0.1))
    assert len(headline.headlines(made.numbers, wrong)) == len(lines)
    assert headline.unmeasured(made.numbers, wrong) == [key for key, _ in wrong[2:]]


def test_bars_on_what_was_not_measured_are_named_in_the_report(made):
    config = {**made.config, "evaluation": {"bars": [["gains.hard_over_less_model", 0.1]]}}
    page = report.make(dataclasses.replace(made, config=config))
    assert "<code>gains.hard_over_less_model</code>" in page
    # A baseline is there to be beaten: its report has no bars.
    config = {**config, "data": {"frame_control": "single"}}
    page = report.make(dataclasses.replace(made, config=config))
    assert "hard_over_less_model" not in page


def test_baselines_are_drawn_beside_the_controls(made):
    hard = made.numbers["hard"]
    gain = {"value": 0.2, "low": 0.1, "high": 0.3, "count": 40, "chance": 0.0}
    numbers = {
        **made.numbers,
        "baselines": {"single_frame": {"frame_control": "single", "hard": hard}},
        "gains": {**made.numbers["gains"], "hard_over_single_frame_model": gain},
    }
    page = report.make(dataclasses.replace(made, numbers=numbers))
    assert "hard: a model trained on single frames" in page
    assert "hard groups, above a model trained on single frames" in page
    assert "hard groups, above itself, one frame" in page


def broken_report(_):
    raise RuntimeError("no picture")


def test_numbers_are_not_lost_to_a_report_that_fails(made, tmp_path, monkeypatch, capsys):
    (tmp_path / results.REPORT).write_text("of an earlier evaluation")
    config = {**made.config, "evaluation": {"bars": [["gains.hard_over_less_model", 0.1]]}}
    material = dataclasses.replace(made, config=config)
    with monkeypatch.context() as broken, pytest.raises(RuntimeError):
        broken.setattr(report, "make", broken_report)
        evaluate.write(tmp_path, material)
    assert json.loads((tmp_path / results.FILE).read_text())["checkpoint_step"] == 7
    assert not (tmp_path / results.REPORT).exists()
    told = capsys.readouterr().out
    assert "questions, answers balanced" in told
    assert "not measured, so not compared with its bar: gains.hard_over_less_model" in told
    evaluate.write(tmp_path, material)
    assert (tmp_path / results.REPORT).exists()


def test_strip_shows_first_and_last_frame():
    frames = np.zeros((8, 10, 20, 3), np.uint8)
    frames[0], frames[-1] = 200, 100
    picture = pictures.strip(frames, 3, height=10, gap=2)
    assert picture.shape == (10, 64, 3)
    assert (picture[:, :20] == 200).all()
    assert (picture[:, 20:22] == 255).all()
    assert (picture[:, -20:] == 100).all()


def test_ticks_are_round_and_inside():
    assert svg.ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert svg.ticks(3, 3) == [3]
    assert svg.log_ticks(0.9, 12) == [1.0, 2.0, 5.0, 10.0]


def test_curves_leave_out_what_has_no_place():
    chart = svg.lines(
        [("a", [1, 2, 3], [1.0, float("nan"), 0.0])], alt="a", x_label="x", y_label="y", log=True
    )
    assert chart.count("<circle") == 1
    assert svg.lines([], alt="a", x_label="x", y_label="y") == ""


def test_principal_axes_are_those_of_the_data():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(60, 2)) * [5, 1]
    basis = np.linalg.qr(rng.normal(size=(9, 2)))[0]
    points = projection.principal(plane @ basis.T)
    wanted = plane - plane.mean(0)
    np.testing.assert_allclose(points @ points.T, wanted @ wanted.T, atol=1e-8)


def test_map_keeps_clusters_apart():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16)) * 3
    points = projection.t_sne(np.repeat(centres, 20, 0) + rng.normal(size=(60, 16)), steps=250)
    labels = np.repeat(np.arange(3), 20)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert np.mean(labels[distances.argmin(1)] == labels) == 1.0


def test_results_are_known_by_what_they_are_of(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    first = results.identity({"a": 1}, 5, tmp_path)
    assert first == results.identity({"a": 1}, 5, tmp_path)
    others = [
        results.identity({"a": 1}, 5, tmp_path, {"single_frame": "0123"}),
        results.identity({"a": 2}, 5, tmp_path),
        results.identity({"a": 1}, 6, tmp_path),
        results.identity({"a": 1}, 5, None),
    ]
    (tmp_path / "dataset.json").write_text('{"more": 1}')
    others.append(results.identity({"a": 1}, 5, tmp_path))
    assert first not in others
    assert not results.is_current(tmp_path, first)
    results.write(tmp_path, {"identity": first})
    assert not results.is_current(tmp_path, first)
    (tmp_path / results.REPORT).write_text("")
    assert results.is_current(tmp_path, first)
    assert json.loads((tmp_path / results.FILE).read_text()) == {"identity": first}
    with pytest.raises(ValueError, match="JSON"):
        results.write(tmp_path, {"value": float("nan")})


def test_a_full_disk_is_named(made, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"evaluation.json: No space left"):
        results.write(tmp_path, {})
    with pytest.raises(UserError, match=r"report.html: No space left"):
        report.write(tmp_path / "report.html", made)
    assert list(tmp_path.iterdir()) == []


def test_history_survives_a_torn_line(tmp_path):
    lines = [{"step": 10, "loss": 2.0, "clips_per_second": 20.0}, {"step": 10, "e/x": 1.0}]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / results.HISTORY).write_text(text + '\n{"step": 20, "lo')
    rows = results.history(tmp_path)
    assert rows == lines
    assert results.training(rows, lambda step: 4) == {
        "steps": 10,
        "clips": 40,
        "seconds": 2.0,
        "clips_per_second": 20.0,
        "final_loss": 2.0,
    }
    assert results.history(tmp_path / "nowhere") == []
    assert results.training([], lambda step: 4) == {}
