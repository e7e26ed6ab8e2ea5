"""Says from a run's health measurements whether its representations collapse. No arrays here.

The rules, for every array and both ways to compare its rows (`jepa.training.health.measure`). The
last three measurements count, by their median, so that one odd batch changes nothing. *Spread* is
the share of an embedding's length in which rows differ, sqrt(1 - mean cosine): 0 where all are
alike, about 1 where they point anywhere, and blind to scale. *RankMe* is that of
`jepa.losses.health`, which is not centred and goes to 1 where all rows are alike or lie on a line.

- collapsed: the spread is below 0.01; or it is below 0.05 and below a quarter of what it was at
  first; or RankMe is below 2 and below half of what it was at first.
- narrowing: spread or RankMe is below half of the largest that the run has had, and lower than at
  the measurement before.
- healthy: neither.

An encoder with random weights may give all clips nearly the same embedding, so that a run begins
with a spread of a few per cent; that is why all but the first rule ask for a fall. With fewer than
two measurements nothing is called anything but healthy.

Not judged, though logged: what masked methods predict (`prediction/...`), since a guess may be
narrower than what it guesses at, and early in a healthy run it is; and the centred effective rank,
which rises while all embeddings shrink to a point, whatever noise is left there being round.

`prediction_over_copy` is what the predictor's error is over that of a guess that knows nothing of
places. Where the last three are all above 0.95 nothing is learnt about places, collapsed or not;
the verdict then carries a note.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

PREFIX = "health/"
VERDICT = f"{PREFIX}verdict"
HEALTHY, NARROWING, COLLAPSED = STATES = ("healthy", "narrowing", "collapsed")

# (step, value by `ARRAY/ROWS/MEASURE`), in order of step.
History = Sequence[tuple[int, Mapping[str, float]]]

# What masked methods predict; VL-JEPA's `prediction` is the embedding of a clip, and is judged.
_GUESSES = "prediction/"

_LAST = 3
_ALIKE = 0.01
_NEARLY_ALIKE, _LOST = 0.05, 0.25
_FEW_DIRECTIONS = 2.0
_HALF = 0.5
_NO_BETTER = 0.95


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is to be said of a run.

    Attributes:
      state: one of `STATES`.
      reason: what made it so, with numbers; empty when healthy.
      note: what else is worth saying; may be empty.
    """

    state: str
    reason: str = ""
    note: str = ""

    def __str__(self) -> str:
        said = f"{self.state}: {self.reason}" if self.reason else self.state
        return f"{said}; {self.note}" if self.note else said


def judge(history: History) -> Verdict:
    """Returns the verdict on the last measurement; see the module's docstring for the rules."""
    note = _note(history)
    worst = Verdict(HEALTHY, note=note)
    for where in sorted({name.rpartition("/")[0] for name in history[-1][1]} if history else ()):
        if where.rpartition("/")[0].startswith(_GUESSES):
            continue
        state, reason = _judge_rows(history, where)
        if STATES.index(state) > STATES.index(worst.state):
            worst = Verdict(state, f"{reason} ({where})", note)
    return worst


def _judge_rows(history: History, where: str) -> tuple[str, str]:
    spreads = [math.sqrt(max(0.0, 1.0 - x)) for x in _series(history, f"{where}/mean_cosine")]
    ranks = _series(history, f"{where}/rankme")
    spread, rank = _recent(spreads), _recent(ranks)
    if spread is not None:
        differ = f"rows differ in {spread:.2%} of their length"
        if spread < _ALIKE:
            return COLLAPSED, differ
        if spread < _NEARLY_ALIKE and spread < _LOST * spreads[0]:
            return COLLAPSED, f"{differ}, at first in {spreads[0]:.1%}"
    if rank is not None and rank < _FEW_DIRECTIONS and rank < _HALF * ranks[0]:
        return COLLAPSED, f"RankMe is {rank:.2f}, at first {ranks[0]:.1f}"
    for name, now, values in (("spread", spread, spreads), ("RankMe", rank, ranks)):
        if now is not None and now < _HALF * max(values) and values[-1] < values[-2]:
            return NARROWING, f"the {name} is {now:.3g}, it has been {max(values):.3g}"
    return HEALTHY, ""


def _recent(values: Sequence[float]) -> float | None:
    """Returns the median of the last values; None if there are too few to judge."""
    return statistics.median(values[-_LAST:]) if len(values) > 1 else None


def _note(history: History) -> str:
    ratios = _series(history, "prediction_over_copy")
    if len(ratios) < _LAST or min(ratios[-_LAST:]) < _NO_BETTER:
        return ""
    return (
        f"the predictor's error is {ratios[-1]:.2f} of that of a guess that knows nothing of places"
    )


def _series(history: History, name: str) -> list[float]:
    found = (values.get(name) for _, values in history)
    return [value for value in found if value is not None and math.isfinite(value)]


def read(directory: str | Path, *, until: int | None = None) -> list[tuple[int, dict[str, float]]]:
    """Returns the measurements in a workdir's metrics.jsonl, up to a step; none without the file.

    What was not finite is left out.
    """
    path = Path(directory) / "metrics.jsonl"
    found: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # A killed run can leave its last line half written.
        step = record.pop("step")
        values = {
            name.removeprefix(PREFIX): value
            for name, value in record.items()
            if name.startswith(PREFIX) and name != VERDICT and value is not None
        }
        if values and (until is None or step <= until):
            found[step] = values
    return sorted(found.items())
