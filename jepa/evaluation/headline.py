"""The numbers that a reader looks at first, out of the nested result of the suite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jepa.evaluation.intervals import Measure


@dataclasses.dataclass(frozen=True)
class Headline:
    """One line of the table.

    Attributes:
      key: dotted key of the result.
      label: what it is, in words.
      measure: the number.
      bar: the least value asked for by the config's `evaluation.bars`, or None.
    """

    key: str
    label: str
    measure: Measure
    bar: float | None

    @property
    def is_gain(self) -> bool:
        """Whether the number is a difference of shares, in points."""
        return self.key.startswith("gains.")

    @property
    def reached(self) -> bool | None:
        """Whether the bar is reached; None without one."""
        return None if self.bar is None else self.measure["value"] >= self.bar


def look_up(numbers: Mapping[str, Any], key: str) -> Any | None:
    """Returns what the dotted `key` names, or None."""
    entry: Any = numbers
    for part in key.split("."):
        if not isinstance(entry, Mapping) or part not in entry:
            return None
        entry = entry[part]
    return entry


def headlines(numbers: Mapping[str, Any], bars: Iterable[Sequence[Any]] = ()) -> list[Headline]:
    """Returns the lines for what was measured, in a fixed order, then bars on anything else.

    Args:
      numbers: the result of the suite.
      bars: (dotted key, least value) pairs; those on what was not measured are left to
        `unmeasured`.
    """
    least = {str(key): float(value) for key, value in bars}
    labels = dict(_labels(numbers))
    labels.update({key: key for key in least if key not in labels})
    lines = []
    for key, label in labels.items():
        measure = look_up(numbers, key)
        if isinstance(measure, Mapping) and "value" in measure:
            lines.append(Headline(key, label, _measure(measure), least.get(key)))
    return lines


def unmeasured(numbers: Mapping[str, Any], bars: Iterable[Sequence[Any]]) -> list[str]:
    """Returns the keys of `bars` that name no number of the result."""
    return [
        str(key)
        for key, _ in bars
        if not isinstance(found := look_up(numbers, str(key)), Mapping) or "value" not in found
    ]


def gain_label(name: str) -> str:
    """Returns what a key of `gains` is, in words."""
    task, _, other = name.partition("_over_")
    own = {
        "blank": "itself, blank frames",
        "same_model_single": "itself, one frame",
        "same_model_shuffled": "itself, shuffled frames",
    }
    words = own.get(other) or baseline_label(other.removesuffix("_model"))
    if task.startswith("zero_shot_"):
        task = f"zero-shot {task.removeprefix('zero_shot_')}"
    named = {"hard": "hard groups", "retrieval": "text to video, R@1"}
    return f"{named.get(task, task)}, above {words}"


def baseline_label(name: str) -> str:
    """Returns what a baseline is, in words."""
    otherwise = {
        "single_frame": "a model trained on single frames",
        "random_frozen": "a frozen random X-encoder",
        "joint": "joint training from a random start",
    }
    return otherwise.get(name) or f"a model trained on {name.replace('_', ' ')}"


def table(lines: Sequence[Headline]) -> str:
    """Returns the headlines as aligned plain text for a terminal."""
    rows = [("metric", "value", "95% interval", "chance", "bar", "")]
    for line in lines:
        measure, sign = line.measure, "+" if line.is_gain else ""
        rows.append(
            (
                line.label,
                f"{measure['value'] * 100:{sign}.1f}",
                f"{measure['low'] * 100:{sign}.1f} to {measure['high'] * 100:{sign}.1f}",
                "" if measure["chance"] is None else f"{measure['chance'] * 100:.1f}",
                "" if line.bar is None else f"{line.bar * 100:.0f}",
                {None: "", True: "reached", False: "missed"}[line.reached],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    text = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:5], widths[1:5], strict=True)]
        text.append("  ".join([*cells, row[5]]).rstrip())
    return "\n".join(text)


def _measure(entry: Mapping[str, Any]) -> Measure:
    return Measure(
        value=entry["value"],
        low=entry["low"],
        high=entry["high"],
        count=entry["count"],
        chance=entry["chance"],
    )


def _labels(numbers: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    count = look_up(numbers, "retrieval.count")
    yield "retrieval.text_to_video.recall_at_1", f"text to video, R@1 of {count}"
    yield "retrieval.text_to_video.recall_at_10", f"text to video, R@10 of {count}"
    yield "retrieval.video_to_text.recall_at_1", f"video to text, R@1 of {count}"
    for label in look_up(numbers, "zero_shot.labels") or ():
        yield f"zero_shot.labels.{label}.accuracy", f"zero-shot {label}"
    yield "questions.balanced", "questions, answers balanced"
    yield "gains.questions_over_blank", gain_label("questions_over_blank")
    yield "hard.text_to_video", "hard groups, right clip for a text"
    names = [f"hard_over_{name}_model" for name in look_up(numbers, "baselines") or ()]
    for name in (*names, "hard_over_same_model_single", "hard_over_same_model_shuffled"):
        yield f"gains.{name}", gain_label(name)
    novel = look_up(numbers, "novel.retrieval.count")
    yield "novel.retrieval.text_to_video.recall_at_1", f"unseen combinations, R@1 of {novel}"
    for label in look_up(numbers, "novel.zero_shot.labels") or ():
        yield f"novel.zero_shot.labels.{label}.accuracy", f"unseen combinations, {label}"
