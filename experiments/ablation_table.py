"""The table of `experiments.ablation`: means over seeds, beside table 7 of VL-JEPA's paper.

Measures stand for the paper's three: the mean accuracy over labels of zero-shot classes (cls), text
to video recall at 1 (ret), questions with answers balanced (VQA).
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jepa.evaluation import results
from jepa.training import phases

MEASURES = ("classes", "retrieval", "questions")


@dataclasses.dataclass(frozen=True)
class Row:
    """A variant beside the row of the paper's table that it stands for.

    Attributes:
      variant: of `configs.vl_jepa.ablation`.
      setting: of the variant.
      theirs: the paper's.
      paper: cls, ret and VQA there, in per cent; None where the paper has no such row.
    """

    variant: str
    setting: str
    theirs: str
    paper: tuple[float, float, float] | None


GROUPS: Mapping[str, tuple[Row, ...]] = {
    "(b) rate of the Y-encoder": (
        Row("rate_1", "x 1", "x 1", (23.7, 28.8, 40.7)),
        Row("rate_0.1", "x 0.1", "x 0.1", (26.9, 30.2, 42.9)),
        Row("rate_0.05", "x 0.05", "x 0.05", (27.3, 30.2, 42.5)),
        Row("rate_0.01", "x 0.01", "x 0.01", (25.6, 27.7, 41.0)),
        Row("rate_0", "frozen", "x 0", (20.0, 25.9, 41.4)),
    ),
    "(c) loss, frozen Y-encoder without a head": (
        Row("info_nce", "InfoNCE", "InfoNCE", (23.3, 30.3, 44.3)),
        Row("cosine", "cosine", "cosine", (16.5, 20.2, 46.6)),
        Row("l1", "L1", "L1", (14.8, 15.5, 41.9)),
        Row("l2", "L2", "L2", (13.5, 11.7, 43.7)),
    ),
    "(d) layers of the predictor": (
        Row("depth_1", "1 layer", "2 (0 to 2)", (24.3, 27.8, 40.1)),
        Row("depth_2", "2 layers", "4 (0 to 4)", (25.1, 28.9, 43.6)),
        Row("depth_4", "4 layers", "8 (0 to 8)", (27.2, 29.3, 43.4)),
    ),
    "(d) what the predictor sees": (
        Row("depth_2", "both ways", "both ways (8 to 16)", (27.3, 30.2, 42.5)),
        Row("causal", "causal", "causal (8 to 16)", (26.7, 31.2, 40.6)),
    ),
    # Of the paper's six, none is small enough to be one of these.
    "(e) Y-encoder, with a head": (
        Row("minilm", "MiniLM, frozen", "", None),
        Row("scratch", "two layers, from scratch", "", None),
    ),
}


def summarise(directory: Path) -> dict[str, Any]:
    """Returns what the evaluated workdirs VARIANT/seedN under a directory found.

    `runs.VARIANT.MEASURE` is `{"by_seed": {seed: value}, "mean", "sd"}`, `runs.VARIANT.minutes` the
    mean time of the training steps, `runs.VARIANT.steps` their number.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.glob(f"*/seed*/{results.FILE}")):
        variant, seed = path.parts[-3], path.parts[-2].removeprefix("seed")
        run = found.setdefault(variant, {"seconds": []})
        numbers = json.loads(path.read_text(encoding="utf-8"))
        for measure, value in _measured(numbers).items():
            run.setdefault(measure, {"by_seed": {}})["by_seed"][seed] = value
        run["steps"] = numbers["checkpoint_step"]
        run["seconds"] += _seconds(path.parent)
    for run in found.values():
        seconds = run.pop("seconds")
        run["minutes"] = statistics.fmean(seconds) / 60 if seconds else None
        for measure in MEASURES:
            values = list(run[measure]["by_seed"].values())
            run[measure]["mean"] = statistics.fmean(values)
            run[measure]["sd"] = statistics.stdev(values) if len(values) > 1 else None
    return {"version": 1, "runs": found}


def _measured(numbers: Mapping[str, Any]) -> dict[str, float]:
    labels = numbers["zero_shot"]["labels"].values()
    return {
        "classes": statistics.fmean(entry["accuracy"]["value"] for entry in labels),
        "retrieval": numbers["retrieval"]["text_to_video"]["recall_at_1"]["value"],
        "questions": numbers["questions"]["balanced"]["value"],
    }


def _seconds(directory: Path) -> list[float]:
    """The time of the training's steps, where its log says it."""
    config = ConfigDict(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    said = results.training(results.history(directory), phases.batch_at(config))
    return [said["seconds"]] if said else []


def table(summary: Mapping[str, Any]) -> str:
    """Returns two Markdown tables: the numbers in per cent, and the orders that they make."""
    runs = summary["runs"]
    lines = [
        ["", "setting", "seeds", "steps", "minutes", *MEASURES, "paper's", "cls", "ret", "VQA"],
        ["---", "---"] + ["---:"] * 6 + ["---"] + ["---:"] * 3,
    ]
    orders = [["", "by", "here", "in the paper"], ["---"] * 4]
    for group, rows in GROUPS.items():
        present = [row for row in rows if row.variant in runs]
        for index, row in enumerate(present):
            lines.append(_line(group if not index else "", row, runs[row.variant]))
        if len(present) > 1:
            for index, measure in enumerate(MEASURES):
                here = [(row.setting, runs[row.variant][measure]) for row in present]
                title = group if not index else ""
                orders.append([title, measure, _order(here), _order(_theirs(present, index))])
    parts = [_markdown(lines)]
    if len(orders) > 2:
        parts.append(
            "Best first; `~` joins neighbours that differ by less than the larger standard "
            "deviation of the two."
        )
        parts.append(_markdown(orders))
    return "\n\n".join(parts)


def _line(group: str, row: Row, run: Mapping[str, Any]) -> list[str]:
    minutes = "" if run["minutes"] is None else f"{run['minutes']:.1f}"
    seeds = len(run[MEASURES[0]]["by_seed"])
    ours = [_cell(run[measure]) for measure in MEASURES]
    theirs = [f"{value:.1f}" for value in row.paper] if row.paper else [""] * len(MEASURES)
    return [group, row.setting, str(seeds), str(run["steps"]), minutes, *ours, row.theirs, *theirs]


def _cell(found: Mapping[str, Any]) -> str:
    spread = "" if found["sd"] is None else f" ± {100 * found['sd']:.1f}"
    return f"{100 * found['mean']:.1f}{spread}"


def _theirs(rows: Sequence[Row], index: int) -> list[tuple[str, Mapping[str, Any]]]:
    return [(row.theirs, {"mean": row.paper[index], "sd": 0.0}) for row in rows if row.paper]


def _order(found: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    if not found:
        return ""
    ranked = sorted(found, key=lambda item: -item[1]["mean"])
    said = ranked[0][0]
    for (_, before), (name, after) in zip(ranked, ranked[1:], strict=False):
        spread = max(before["sd"] or 0.0, after["sd"] or 0.0)
        gap = before["mean"] - after["mean"]
        said += f" {'>' if gap > spread else '~'} {name}"
    return said


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
