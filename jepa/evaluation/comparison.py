"""The run beside the models that it is compared with: what each took to train, and what it reaches.

Each row is one model; its intervals are its own. Below each, how far this run is above it on the
same examples: these intervals are paired (see `jepa.evaluation.baselines`), and of questions every
one counts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jepa.evaluation import headline, page
from jepa.evaluation.page import Html, tag
from jepa.words import aligned, duration

if TYPE_CHECKING:
    from jepa.evaluation.report import Material

# The seconds of a training, by key and word: together they are its time.
_PARTS = (
    ("pretraining_seconds", "pretraining"),
    ("feature_seconds", "features"),
    ("seconds", "steps"),
)


def scores(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the measures that models are compared by, by dotted key, of an `evaluation.json`."""
    labels = headline.look_up(numbers, "zero_shot.labels") or ()
    keys = [
        "retrieval.text_to_video.recall_at_1",
        *(f"zero_shot.labels.{label}.accuracy" for label in labels),
        "questions.balanced",
        "hard.text_to_video",
    ]
    found = {key: headline.look_up(numbers, key) for key in keys}
    return {key: measure for key, measure in found.items() if measure is not None}


def seconds(training: Mapping[str, Any]) -> float | None:
    """Returns how long a training took: pretraining, features and steps; None where unknown."""
    if "seconds" not in training:
        return None
    return sum(float(training.get(key, 0.0)) for key, _ in _PARTS)


def header(numbers: Mapping[str, Any]) -> list[str]:
    """Returns the columns of `rows`."""
    return ["model", "training", *map(_word, scores(numbers))]


def rows(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Returns a row for the run and two for each model: itself, and how far the run is above it."""
    others, gains = numbers.get("baselines", {}), numbers.get("gains", {})
    keys = list(scores(numbers))
    found = [["this run", *_of(numbers.get("training", {}), scores(numbers), keys)]]
    for name, other in others.items():
        cells = _of(other.get("training", {}), other.get("scores", {}), keys)
        found.append([headline.baseline_label(name), *cells])
        above = [gains.get(f"{_task(key)}_over_{name}_model") for key in keys]
        found.append(["  this run above it", "", *("" if m is None else _points(m) for m in above)])
    return found


def table(numbers: Mapping[str, Any]) -> str:
    """Returns the comparison as plain text for a terminal; empty where there is none."""
    if not numbers.get("baselines"):
        return ""
    return aligned([header(numbers), *rows(numbers)])


def section(material: Material) -> Html:
    """Returns the section of the report."""
    numbers = material.numbers
    told = [("this run", numbers.get("training", {}))]
    told += [
        (headline.baseline_label(name), other.get("training", {}))
        for name, other in numbers["baselines"].items()
    ]
    return page.section(
        "comparison",
        "Comparison",
        "Other models that were trained on the same clips and evaluated on the same questions, "
        "with the time that each training really took, on whatever else the machine did meanwhile. "
        "Differences are paired, example by example; in those of questions each counts once.",
        page.table(
            header(numbers),
            rows(numbers),
            caption="Shares in % and differences in points, with 95% intervals",
            numeric=range(1, len(header(numbers))),
        ),
        tag("p", page.join([_time(name, training) for name, training in told]), css="note"),
    )


def _of(training: Mapping[str, Any], measures: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    total = seconds(training)
    cells = [_share(measures[key]) if key in measures else "" for key in keys]
    return ["unknown" if total is None else duration(total), *cells]


def _time(name: str, training: Mapping[str, Any]) -> str:
    parts = [f"{word} {training[key]:.0f} s" for key, word in _PARTS if key in training]
    return f"{name}: {', '.join(parts) or 'unknown'}. "


def _share(measure: Mapping[str, Any]) -> str:
    low, high = measure["low"] * 100, measure["high"] * 100
    return f"{measure['value'] * 100:.1f} ({low:.1f} to {high:.1f})"


def _points(measure: Mapping[str, Any]) -> str:
    low, high = measure["low"] * 100, measure["high"] * 100
    return f"{measure['value'] * 100:+.1f} ({low:+.1f} to {high:+.1f})"


def _task(key: str) -> str:
    """What the gains call the task of a dotted key."""
    first = key.split(".")[0]
    return f"zero_shot_{key.split('.')[-2]}" if first == "zero_shot" else first


def _word(key: str) -> str:
    """A column's name for a dotted key."""
    named = {
        "retrieval.text_to_video.recall_at_1": "retrieval R@1",
        "questions.balanced": "questions",
        "hard.text_to_video": "hard groups",
    }
    return named.get(key) or key.split(".")[-2]
