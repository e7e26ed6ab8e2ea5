"""The report's sections without clips: classes, controls, the map, the training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jepa.evaluation import headline, page, projection, svg
from jepa.evaluation.page import Html, tag

if TYPE_CHECKING:
    from jepa.evaluation.report import Material

# What `jepa.training.health` logs begins with this.
_HEALTH = "health/"

# CSS names that are easy to see on light and dark cards; other class names take the palette.
_COLOURS = {
    "red": "#d63a3a",
    "green": "#2fa35b",
    "blue": "#3d6fe0",
    "yellow": "#d9b310",
    "purple": "#8d52c9",
    "cyan": "#16a5b8",
    "orange": "#e07b28",
    "pink": "#d9679f",
}


def sections(material: Material) -> list[Html]:
    """Returns the sections for what was measured."""
    found = []
    if "zero_shot" in material.numbers:
        found.append(_classes(material))
    if "gains" in material.numbers:
        found.append(_controls(material))
    if ("retrieval",) in material.evidence:
        found.append(_map(material))
    if material.history:
        found.append(_training(material))
    return found


def _figure(caption: str, chart: str, *more: str) -> Html:
    return tag("figure", tag("figcaption", caption), Html(chart), *more, css="chart")


def _classes(material: Material) -> Html:
    labels = material.numbers["zero_shot"]["labels"]
    novel = material.numbers.get("novel", {}).get("zero_shot", {}).get("labels", {})
    rows: list[svg.Row] = []
    for label, entry in labels.items():
        items = [svg.bar(0, entry["accuracy"])]
        if label in novel:
            items.append(svg.bar(2, novel[label]["accuracy"]))
        rows.append((label, items, entry["accuracy"]["chance"]))
    keys = [("s0", "held-out clips")] + ([("s2", "unseen combinations")] if novel else [])
    alt = "; ".join(f"{name} {items[0][1]:.0%}" for name, items, _ in rows)
    chart = _figure(
        "Zero-shot accuracy",
        svg.bars(rows, alt=f"Zero-shot accuracy: {alt}"),
        page.legend([*keys, ("tick", "chance")]),
    )
    tables = []
    for label, entry in labels.items():
        tables.append(
            tag(
                "div",
                tag("h3", f"{label[:1].upper()}{label[1:]}"),
                _confusion(label, entry),
                tag("details", tag("summary", "Accuracy of each class"), _per_class(label, entry)),
            )
        )
    return page.section(
        "classes",
        "Naming classes without a classifier",
        "The class whose describing texts lie nearest to the clip's embedding is taken.",
        chart,
        tag("div", *tables, css="grid-2"),
    )


def _confusion(label: str, entry: Mapping[str, Any]) -> Html:
    classes, counts = entry["classes"], np.array(entry["confusion"])
    head = page.join(tag("th", name, scope="col") for name in classes)
    body = []
    for name, line in zip(classes, counts, strict=True):
        cells = [tag("th", name, scope="row")]
        for count in line:
            share = count / max(line.sum(), 1)
            style = f"background: rgba(var(--heat), {0.55 * share:.2f})"
            cells.append(tag("td", f"{count:.4g}" if count else "", style=style))
        body.append(tag("tr", *cells))
    caption = f"{label}: rows are the truth, columns what the model said"
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", tag("td", ""), head)),
            tag("tbody", *body),
            css="confusion",
        ),
        css="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def _per_class(label: str, entry: Mapping[str, Any]) -> Html:
    rows = [
        [
            name,
            f"{measure['value'] * 100:.1f}%",
            f"{measure['low'] * 100:.0f} to {measure['high'] * 100:.0f}",
            str(measure["count"]),
        ]
        for name, measure in entry["per_class"].items()
    ]
    return page.table(
        ["Class", "Accuracy", "95% interval", "Clips"],
        rows,
        caption=f"{label} by class",
        numeric=(1, 2, 3),
    )


def _controls(material: Material) -> Html:
    numbers = material.numbers
    controls, baselines = numbers.get("controls", {}), numbers.get("baselines", {})
    rows: list[svg.Row] = []
    if "hard" in numbers:
        entry = numbers["hard"]["text_to_video"]
        rows.append(("hard: all frames, in order", [svg.bar(0, entry)], entry["chance"]))
        for name, words in (("shuffled", "shuffled frames"), ("single", "one frame")):
            if name in controls:
                entry = controls[name]["hard"]["text_to_video"]
                rows.append((f"hard: itself, {words}", [svg.bar(1, entry)], entry["chance"]))
        for name, other in baselines.items():
            entry, words = other["hard"]["text_to_video"], headline.baseline_label(name)
            rows.append((f"hard: {words}", [svg.bar(2, entry)], entry["chance"]))
    if "blank" in controls:
        own, blind = numbers["questions"]["balanced"], controls["blank"]["questions"]["balanced"]
        rows.append(("questions: all frames", [svg.bar(0, own)], own["chance"]))
        rows.append(("questions: itself, blank", [svg.bar(1, blind)], blind["chance"]))
    alt = "; ".join(f"{name} {items[0][1]:.0%}" for name, items, _ in rows)
    keys = [("s0", "this model"), ("s1", "this model, something taken away")]
    if baselines:
        keys.append(("s2", "another model"))
    gains = page.table(
        ["Above", "Points", "95% interval"],
        [
            [
                words,
                f"{measure['value'] * 100:+.1f}",
                f"{measure['low'] * 100:+.1f} to {measure['high'] * 100:+.1f}",
            ]
            for name, measure in numbers.get("gains", {}).items()
            for words in [headline.gain_label(name)]
        ],
        caption="Paired differences: the same clips and questions on both sides",
        numeric=(1, 2),
    )
    lead = (
        "Orange: this trained model with part of each clip taken away when it is tested. It never "
        "learnt to do without, so this shows what it uses, not what could be had without it."
    )
    if any(other["frame_control"] != "none" for other in baselines.values()):
        lead += " Green: models that were trained, from the same start, on nothing else."
    elif baselines:
        lead += " Green: models that were trained otherwise."
    return page.section(
        "controls",
        "What the model owes to motion and to sight",
        lead,
        _figure(
            "Accuracy with and without the information",
            svg.bars(rows, alt=f"Controls: {alt}"),
            page.legend([*keys, ("tick", "chance")]),
        ),
        gains,
    )


def _map(material: Material) -> Html:
    evidence, numbers = material.evidence["retrieval",], material.numbers["retrieval"]
    vectors = evidence["videos"][:500]
    points = projection.t_sne(vectors)
    records = material.source.records(numbers["split"])
    labels = [records[index].labels for index in evidence["indices"][:500]]
    names = list(material.numbers.get("zero_shot", {}).get("labels", {}))
    figures = []
    for name in names or sorted({key for entry in labels for key in entry}):
        values = material.source.attributes.get(name) or {
            entry[name]: () for entry in labels if name in entry
        }
        classes = list(values)[:8]
        own = [classes.index(entry[name]) if entry.get(name) in classes else -1 for entry in labels]
        colours = [_COLOURS.get(value) for value in classes]
        chart = svg.scatter(
            points,
            own,
            alt=f"Map of {len(points)} clips, marked by {name}",
            colours=colours,
        )
        marks = [
            (Html(svg.marker(which, colours[which])), value)
            for which, value in enumerate(classes)
            if which in own
        ]
        if any(which < 0 for which in own):
            marks.append(
                (Html('<i class="swatch s7" style="border-radius:50%"></i>'), "not defined")
            )
        figures.append(_figure(f"by {name}", chart, page.legend(marks)))
    return page.section(
        "map",
        "A map of the embeddings",
        f"{len(points)} clips, embedded under “{numbers['query']}” and laid out in two dimensions "
        "(t-SNE): near points are near in the model's space. Each picture shows the same map, "
        "marked by another attribute.",
        tag("div", *figures, css="grid-2"),
    )


def _training(material: Material) -> Html:
    history = material.history

    def curve(key: str, name: str | None = None) -> svg.Series | None:
        rows = [(line["step"], line[key]) for line in history if line.get(key) is not None]
        return (name or key, [x for x, _ in rows], [y for _, y in rows]) if rows else None

    figures = []
    losses = [found for key in ("loss", "info_nce") if (found := curve(key))]
    if len(losses) == 2 and losses[0][2] == losses[1][2]:
        losses = losses[:1]
    if losses:
        figures.append(_lines("Loss (logarithmic axis)", losses, y_label="loss", log=True))
    speed = curve("clips_per_second", "clips a second")
    if speed:
        figures.append(_lines("Throughput", [speed], y_label="clips a second"))
    norm = curve("gradient_norm") or curve("grad_norm")
    if norm:
        figures.append(_lines("Gradient norm", [norm], y_label="norm", log=True))
    rate = curve("learning_rate", "learning rate")
    if rate:
        figures.append(_lines("Learning rate", [rate], y_label="rate"))
    figures += _health(history)
    keys = sorted(
        {
            key
            for line in history
            for key in line
            if "/" in key and "median" not in key and not key.startswith(_HEALTH)
        }
    )
    during = [found for key in keys if (found := curve(key, key.split("/", 1)[1]))][:8]
    if during and max(len(found[1]) for found in during) > 1:
        figures.append(
            _lines(
                "Held-out clips during training (small subsets)",
                during,
                y_label="share right",
                percent=True,
            )
        )
    return page.section(
        "training",
        "Training",
        f"{history[-1]['step']:,} steps, as logged in metrics.jsonl.",
        tag("div", *figures, css="grid-2"),
    )


def _health(history: Sequence[Mapping[str, Any]]) -> list[Html]:
    """Draws what `jepa.training.health` measured over the batch: two of its measures."""
    figures = []
    for measure, caption in (
        ("effective_rank", "Effective rank of the embeddings of a batch"),
        ("mean_cosine", "Mean cosine of the embeddings of different clips"),
    ):
        end = f"/examples/{measure}"
        keys = sorted(
            {
                key
                for line in history
                for key in line
                if key.startswith(_HEALTH) and key.endswith(end)
            }
        )
        series: list[svg.Series] = []
        for key in keys[:8]:
            rows = [(line["step"], line[key]) for line in history if line.get(key) is not None]
            name = key.removeprefix(_HEALTH).removesuffix(end)
            series.append((name, [x for x, _ in rows], [y for _, y in rows]))
        if series:
            figures.append(_lines(caption, series, y_label=measure.replace("_", " ")))
    return figures


def _lines(caption: str, series: Sequence[svg.Series], *, y_label: str, **options: bool) -> Html:
    last = ", ".join(f"{name} ends at {svg.number(ys[-1])}" for name, _, ys in series)
    chart = svg.lines(series, alt=f"{caption}: {last}", x_label="step", y_label=y_label, **options)
    keys = [(f"s{index % 8}", name) for index, (name, _, _) in enumerate(series)]
    return _figure(caption, chart, *([page.legend(keys)] if len(keys) > 1 else []))
