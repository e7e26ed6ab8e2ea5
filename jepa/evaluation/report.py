"""The report: one HTML file that shows what a model learnt, with pictures and without network.

Clips that are shown are drawn by the evaluation's seed from all of them, and a few more from those
that went wrong; none is picked by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data import storage
from jepa.evaluation import charts, comparison, gallery, page
from jepa.evaluation.headline import Headline, headlines, unmeasured
from jepa.evaluation.page import Html, tag
from jepa.evaluation.source import Source
from jepa.evaluation.suite import Name
from jepa.words import duration


@dataclasses.dataclass(frozen=True)
class Material:
    """What a report is made from.

    Attributes:
      numbers: the content of `evaluation.json`.
      evidence: of `jepa.evaluation.suite.Evaluation`.
      source: gives records and frames.
      history: lines of the workdir's `metrics.jsonl`.
      config: the run's config, plain.
    """

    numbers: Mapping[str, Any]
    evidence: Mapping[Name, Mapping[str, Any]]
    source: Source
    history: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]

    @property
    def headlines(self) -> list[Headline]:
        """The lines of the headline table."""
        return headlines(self.numbers, self.bars)

    @property
    def bars(self) -> Sequence[Sequence[Any]]:
        """(dotted key, least value) pairs; none for a baseline, which is there to be beaten."""
        if self.config.get("data", {}).get("frame_control", "none") != "none":
            return ()
        return self.config.get("evaluation", {}).get("bars", ())

    @property
    def rng(self) -> np.random.Generator:
        """Draws the clips that are shown; the same in each report of one seed."""
        return np.random.default_rng(self.config.get("evaluation", {}).get("seed", 0))


def write(path: str | Path, material: Material) -> Path:
    """Writes the report so that it is there whole or not at all, and returns its path.

    Raises:
      UserError: the disk is full or may not be written.
    """
    path = Path(path)
    storage.write_atomically(path, make(material))
    return path


def make(material: Material) -> str:
    """Returns the report as HTML."""
    parts = [
        _headline(material),
        comparison.section(material) if material.numbers.get("baselines") else "",
        *gallery.sections(material),
        *charts.sections(material),
        _glossary(),
    ]
    sections = [part for part in parts if part]
    title = f"{_method(material)} · {material.numbers['config']}"
    body = page.join(
        [
            _header(material, title),
            tag("main", *sections),
            tag(
                "footer",
                "Made by ",
                tag("code", "python -m experiments.evaluate"),
                " from ",
                tag("code", "evaluation.json"),
                " beside this file. Clips shown are drawn by a fixed seed.",
            ),
        ]
    )
    return page.document(title, body)


def _method(material: Material) -> str:
    name = str(material.config.get("method", "")).rsplit(":", 1)[-1].rsplit(".", 1)[-1]
    return {"vl_jepa": "VL-JEPA", "VLJEPA": "VL-JEPA"}.get(name, name or "JEPA")


def _header(material: Material, title: str) -> Html:
    numbers, data = material.numbers, material.config.get("data", {})
    run = numbers.get("training", {})
    facts = [
        ("Checkpoint", f"step {numbers['checkpoint_step']:,}"),
        ("Parameters", _parameters(numbers)),
        ("Training time", duration(run["seconds"]) if "seconds" in run else "unknown"),
        ("Clips seen", f"{run['clips']:,}" if run.get("clips") else "unknown"),
        ("Evaluated on", str(numbers["device"])),
        ("Clips", f"{data.get('frames', '?')} frames, {data.get('size', '?')}² pixels"),
        ("Evaluation", duration(numbers["wall_seconds"])),
        ("Date", str(numbers["date"])),
    ]
    cells = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]
    links = [
        ("results", "Results"),
        ("comparison", "Comparison"),
        ("retrieval", "Retrieval"),
        ("hard", "Hard groups"),
        ("questions", "Questions"),
        ("classes", "Classes"),
        ("controls", "Controls"),
        ("map", "Map"),
        ("training", "Training"),
        ("glossary", "Glossary"),
    ]
    shown = _anchors(material)
    return tag(
        "header",
        tag("p", "Evaluation report", css="eyebrow"),
        tag("h1", title),
        tag("p", _summary(material), css="summary"),
        tag("dl", *cells, css="facts"),
        tag(
            "nav",
            *[tag("a", name, href=f"#{anchor}") for anchor, name in links if anchor in shown],
            aria_label="Sections",
        ),
    )


def _anchors(material: Material) -> set[str]:
    numbers = material.numbers
    shown = {"results", "glossary"}
    shown |= {name for name in ("retrieval", "hard", "questions") if name in numbers}
    if numbers.get("baselines"):
        shown.add("comparison")
    if "gains" in numbers:
        shown.add("controls")
    if "zero_shot" in numbers:
        shown.add("classes")
    if "retrieval" in numbers:
        shown.add("map")
    if material.history:
        shown.add("training")
    return shown


def _summary(material: Material) -> str:
    numbers = material.numbers
    text = (
        "A model that watches a short clip, reads a question about it and predicts the embedding "
        "of the answer. All clips below were held out from training."
    )
    control = numbers.get("frame_control", "none")
    if control != "none":
        text += f" This is a baseline, trained and evaluated with data.frame_control={control}."
    first = numbers.get("retrieval", {}).get("text_to_video", {}).get("recall_at_1")
    if first:
        text += (
            f" Given a sentence, it finds the right one of {numbers['retrieval']['count']} clips "
            f"at the first try {first['value']:.0%} of the time; guessing would find it "
            f"{first['chance']:.1%} of the time."
        )
    return text


def _parameters(numbers: Mapping[str, Any]) -> str:
    found = numbers.get("parameters", {})
    if "total" not in found:
        return "unknown"
    total, trained = found["total"], found.get("trained", found["total"])
    if trained == total:
        return _millions(total)
    return f"{_millions(trained)} trained, {_millions(total - trained)} frozen"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def _headline(material: Material) -> Html:
    lines = material.headlines
    rows = []
    for line in lines:
        measure, sign = line.measure, "+" if line.is_gain else ""
        unit = " points" if line.is_gain else "%"
        chance = "" if measure["chance"] is None else f"{measure['chance'] * 100:.1f}%"
        row: list[str] = [
            line.label,
            tag("span", f"{measure['value'] * 100:{sign}.1f}{unit}", css="value"),
            _range(line),
            f"{measure['low'] * 100:{sign}.1f} to {measure['high'] * 100:{sign}.1f}",
            "" if line.is_gain else chance,
        ]
        if any(entry.bar is not None for entry in lines):
            row += ["" if line.bar is None else f"{line.bar * 100:.0f}{unit}", _verdict(line)]
        rows.append(row)
    header = ["Metric", "Result", "0 to 100", "95% interval", "Chance"]
    if any(entry.bar is not None for entry in lines):
        header += ["Bar", "Reached"]
    return page.section(
        "results",
        "Results",
        "Each number on clips that training never saw. The shaded band is the 95% confidence "
        "interval, the grey tick is what guessing gets, the triangle is the bar set beforehand.",
        page.table(header, rows, caption="Headline results", numeric=(1, 3, 4, 5)),
        _unmeasured(material),
    )


def _unmeasured(material: Material) -> str:
    keys = unmeasured(material.numbers, material.bars)
    if not keys:
        return ""
    text = "Bars on what was not measured in this run: "
    return tag("p", text, page.join(page.join([tag("code", key), " "]) for key in keys), css="note")


def _verdict(line: Headline) -> str:
    if line.reached is None:
        return ""
    return tag("span", "✓ yes", css="good") if line.reached else tag("span", "✗ no", css="bad")


def _range(line: Headline) -> Html:
    """Draws value, interval, chance and bar on a track from 0 to 1."""
    measure = line.measure

    def place(share: float) -> float:
        return 4 + 200 * min(max(share, 0.0), 1.0)

    low, high = place(measure["low"]), place(measure["high"])
    parts = [
        '<rect x="4" y="7" width="200" height="4" rx="2" class="track"/>',
        f'<rect x="{low:.1f}" y="4" width="{max(high - low, 1):.1f}" height="10" rx="2" '
        'class="band"/>',
    ]
    if measure["chance"] is not None and not line.is_gain:
        at = place(measure["chance"])
        parts.append(f'<line x1="{at:.1f}" y1="2" x2="{at:.1f}" y2="16" class="at"/>')
    if line.bar is not None:
        at = place(line.bar)
        parts.append(f'<path d="M{at - 3.5:.1f} 0h7l-3.5 5Z" class="wanted"/>')
    parts.append(f'<circle cx="{place(measure["value"]):.1f}" cy="9" r="4" class="point"/>')
    return Html(
        f'<svg class="range" viewBox="0 0 208 18" aria-hidden="true">{"".join(parts)}</svg>'
    )


_GLOSSARY = (
    (
        "Embedding",
        "A list of numbers that stands for a clip with a question, or for a text. Near means "
        "alike.",
    ),
    (
        "R@1, R@10",
        "Recall: how often the right item is the first, or among the first ten, when all are "
        "sorted by nearness. Ties count against the model.",
    ),
    ("Median rank", "The middle place of the right item; 1 is best."),
    (
        "Zero-shot",
        "The class whose describing texts lie nearest wins. No classifier is trained.",
    ),
    (
        "Hard groups",
        "Clips that look the same but for the motion or the order of events. The right clip must "
        "be told from the others of its group. A tie counts as a guess.",
    ),
    (
        "Questions",
        "The candidate answer nearest to the prediction counts as given. Kinds of question, and "
        "the answers within a kind, weigh the same (answers balanced).",
    ),
    (
        "Blank, single and shuffled frames",
        "What is taken away. “Itself” is the same model, tested with grey, one frame repeated, or "
        "the frames in a random order. “A model trained on …” is another one of the same config, "
        "trained and tested that way.",
    ),
    (
        "95% interval",
        "Wilson's interval for shares, with fewer effective examples where several come from one "
        "clip or group; a bootstrap for medians and differences.",
    ),
    ("Unseen combinations", "Colours and shapes that training saw, but never together."),
)


def _glossary() -> Html:
    entries = page.join(page.join([tag("dt", word), tag("dd", text)]) for word, text in _GLOSSARY)
    return page.section(
        "glossary",
        "Glossary",
        "What the words above mean here.",
        tag("dl", entries, css="glossary"),
    )
