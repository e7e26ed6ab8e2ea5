"""Models that were trained with less, or otherwise, to compare with on the same hard clips.

A baseline is a run of the same config but for `data.frame_control` (a single frame, or shuffled
frames, in training and in evaluation), or without pretraining, evaluated in a workdir of its own.
An evaluation leaves in
`evidence.json` which caption found its clip, so that two models can be compared caption by caption.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data import storage
from jepa.errors import UserError
from jepa.evaluation import comparison, intervals, results

FILE = "evidence.json"
DIRECTORY = "baselines"


# The captions of the hard groups: (key of the clip, caption, group) each.
Captions = Sequence[Sequence[str]]
# By task: what its examples are (`items`), what each earned (`hits`), and which hang together
# (`groups`), all of one length.
Examples = Mapping[str, Mapping[str, Sequence[Any]]]


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What the evaluation of a baseline left.

    Attributes:
      numbers: its evaluation.json.
      captions: of the hard groups that it was evaluated on.
      hits: what each caption earned, in [0, 1].
      others: what each example of the other tasks earned; see `examples`.
    """

    numbers: Mapping[str, Any]
    captions: Captions
    hits: Sequence[float]
    others: Examples = dataclasses.field(default_factory=dict)

    @property
    def identity(self) -> str:
        """The identity of its evaluation; see `results.identity`."""
        return str(self.numbers["identity"])


def find(workdir: str | Path) -> dict[str, Path]:
    """Returns the evaluated baselines of a run, `WORKDIR/baselines/NAME`, by name."""
    paths = sorted((Path(workdir) / DIRECTORY).glob(f"*/{FILE}"))
    return {
        path.parent.name: path.parent for path in paths if (path.parent / results.FILE).is_file()
    }


def parse(arguments: Iterable[str]) -> dict[str, Path]:
    """Returns name -> workdir for `NAME=WORKDIR` arguments.

    Raises:
      UserError: one is not of this form, or a name comes twice.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        name, _, path = argument.partition("=")
        if not path or not re.fullmatch(r"[a-z0-9_]+", name) or name in found:
            raise UserError(
                f"--baseline={argument}: write NAME=WORKDIR, each name once and of the letters "
                "a-z, digits and _"
            )
        found[name] = Path(path)
    return found


def examples(evidence: Mapping[tuple[str, ...], Mapping[str, Any]]) -> Examples:
    """Returns what can be compared example by example, beside the hard groups, of an evaluation.

    Args:
      evidence: of `jepa.evaluation.suite.Evaluation`.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    if ("retrieval",) in evidence:
        own = evidence["retrieval",]
        hits = np.asarray(own["ranks"]["text_to_video"]) == 1
        found["retrieval"] = _example(own["captions"], hits, own["indices"])
    for label, own in evidence.get(("zero_shot",), {}).items():
        hits = np.asarray(own["shares"])[np.arange(len(own["truth"])), own["truth"]]
        found[f"zero_shot_{label}"] = _example(own["indices"], hits, own["indices"])
    if ("questions",) in evidence:
        own = evidence["questions",]
        items = [f"{key} {question.id}" for key, (_, question) in _keyed(own)]
        found["questions"] = _example(items, own["hits"], own["clips"])
    return found


def _keyed(own: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return zip(own["clips"], own["questions"], strict=True)


def _example(items: Iterable[Any], hits: Iterable[Any], groups: Iterable[Any]) -> dict[str, Any]:
    return {"items": list(items), "hits": [float(hit) for hit in hits], "groups": list(groups)}


def write(
    workdir: str | Path,
    identity: str,
    captions: Captions,
    hits: Sequence[float],
    others: Examples | None = None,
) -> None:
    """Writes `evidence.json`; UserError if the disk refuses."""
    hard = {"captions": [list(row) for row in captions], "hits": [float(hit) for hit in hits]}
    said = {"identity": identity, "hard": hard, "others": others or {}}
    storage.write_atomically(Path(workdir) / FILE, json.dumps(said) + "\n")


def read(name: str, workdir: str | Path) -> Baseline:
    """Returns what the evaluation in `workdir` found.

    Raises:
      UserError: there is none, or it measured no hard groups.
    """
    directory = Path(workdir)
    try:
        numbers = json.loads((directory / results.FILE).read_text(encoding="utf-8"))
        evidence = json.loads((directory / FILE).read_text(encoding="utf-8"))
        whole = evidence["identity"] == numbers["identity"]
        # Evaluations of before there were others compare the hard groups alone.
        others = evidence.get("others", {})
        found = Baseline(numbers, evidence["hard"]["captions"], evidence["hard"]["hits"], others)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"baseline {name!r}: {directory} holds no evaluation of hard groups ({error}); run "
            f"`python -m experiments.evaluate --workdir={directory}` with its config first"
        ) from error
    if not whole:
        raise UserError(
            f"baseline {name!r}: {FILE} and {results.FILE} in {directory} are of two evaluations; "
            "evaluate it again"
        )
    return found


def check(found: Mapping[str, Baseline], captions: Captions) -> None:
    """Raises UserError if a baseline was evaluated on other clips or captions than these."""
    wanted = [list(row) for row in captions]
    for name, other in found.items():
        if [list(row) for row in other.captions] != wanted:
            raise UserError(
                f"baseline {name!r} was evaluated on other hard clips; evaluate it with the same "
                "data and evaluation.hard"
            )


def compare(
    found: Mapping[str, Baseline],
    captions: Captions,
    hits: np.ndarray,
    others: Examples | None = None,
    *,
    seed: int,
) -> tuple[dict[str, Any], dict[str, intervals.Measure]]:
    """Returns what `baselines` and `gains` of evaluation.json say of the baselines.

    Args:
      found: by name, checked.
      captions: of the hard groups.
      hits: `[N]` what each caption earned with the model that is compared.
      others: what the examples of other tasks earned with it; those that the baseline was evaluated
        on too are compared.
      seed: of the bootstrap.
    """
    described, gains = {}, {}
    groups = np.array([group for _, _, group in captions])
    for name, other in found.items():
        described[name] = {
            "frame_control": other.numbers.get("frame_control", "none"),
            "checkpoint_step": other.numbers["checkpoint_step"],
            "hard": other.numbers["hard"],
            "training": other.numbers.get("training", {}),
            "scores": comparison.scores(other.numbers),
        }
        gains[f"hard_over_{name}_model"] = intervals.paired_gain(
            hits, np.array(other.hits), groups, seed=seed
        )
        for task, own in (others or {}).items():
            its = other.others.get(task, {})
            if its.get("items") == own["items"]:
                gains[f"{task}_over_{name}_model"] = intervals.paired_gain(
                    np.array(own["hits"]),
                    np.array(its["hits"]),
                    np.array(own["groups"]),
                    seed=seed,
                )
    return described, gains
