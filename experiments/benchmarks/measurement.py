"""What a benchmark finds: numbers, the bars they have to meet, and how both are written down."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa.errors import UserError


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One number; where there were rounds, their median.

    Attributes:
        name: What was measured.
        value: The number; None when it could not be measured, and then the note says why.
        unit: Its unit.
        note: What it is relative to, or how it was made.
        device: What it was measured on, or compiled for; empty where that does not matter.
        bar: What was promised, such as "at most 128 MB"; empty where nothing was, and where the
            sizes are not those of the promise.
        met: Whether it is kept; None without a bar or without a value.
    """

    name: str
    value: float | None
    unit: str
    note: str = ""
    device: str = ""
    bar: str = ""
    met: bool | None = None

    def held_to(
        self, *, at_most: float | None = None, at_least: float | None = None
    ) -> Measurement:
        """The same number with a bar."""
        limit = at_most if at_most is not None else at_least
        if limit is None:
            raise ValueError("a bar needs a limit")
        bar = f"at {'most' if at_most is not None else 'least'} {_number(limit)} {self.unit}"
        met = None
        if self.value is not None:
            met = self.value <= limit if at_most is not None else self.value >= limit
        return dataclasses.replace(self, bar=bar.strip(), met=met)

    @property
    def verdict(self) -> str:
        """The bar and whether it is met, in words; empty without a bar."""
        if not self.bar:
            return ""
        return f"{ {True: 'met', False: 'MISSED', None: 'open'}[self.met] }: {self.bar}"


def progress(text: str) -> None:
    """Tells on stderr what is going on."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def alternate(
    calls: Mapping[str, Callable[[], object]], rounds: int, *, pause: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of each call in each round, one call after another in every round.

    So a change of the machine's mood meets all of them. Every other round goes through the calls
    backwards, so that none always finds what the same other one left in the caches. `pause`
    seconds before each let threads that spin in wait of the last call's work go to sleep.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            call = calls[name]
            time.sleep(pause)
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
        told = ", ".join(f"{name} {values[-1]:.4g} s" for name, values in seconds.items())
        progress(f"round {number + 1} of {rounds}: {told}")
    return seconds


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median over rounds of the ratio of two calls."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def table(found: Sequence[Measurement]) -> str:
    """Aligned lines for a terminal."""
    width = max(len(item.name) for item in found)
    lines = []
    for item in found:
        notes = "; ".join(text for text in (item.verdict, item.device, item.note) if text)
        lines.append(f"{item.name:{width}}  {_number(item.value):>12} {item.unit:8} {notes}")
    return "\n".join(lines)


def markdown(report: Mapping[str, Any]) -> str:
    """A written report as a Markdown table, under a line that says where and when."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"Measured on {report['date'][:10]}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB, {machine['system']}; {versions}.",
        "",
        "| measured | result | bar | on | how |",
        "|---|---|---|---|---|",
    ]
    for entry in report["measurements"]:
        item = Measurement(**entry)
        result = f"{_number(item.value)} {item.unit}" if item.value is not None else "not measured"
        cells = (item.name, result.strip(), item.verdict, item.device, item.note)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def read(path: Path) -> dict[str, Any]:
    """A report that was written before.

    Raises:
        UserError: There is none, or it is of another form.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        markdown(report)
    except OSError as error:
        raise UserError(f"--markdown={path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--markdown={path} is no report of this benchmark; write one with --suite and --out"
        ) from error
    return report


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
