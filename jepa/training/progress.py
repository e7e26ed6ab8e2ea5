"""What a run tells while it works: lines, a bar on a terminal, where the time went."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import tqdm

from jepa.words import duration


class Progress:
    """A bar with ETA on a terminal, plain lines elsewhere; silent on all processes but one."""

    def __init__(self, *, start: int, steps: int, main: bool = True, stream: TextIO | None = None):
        """Begins at `start` of `steps`."""
        self._stream = stream or sys.stdout
        self._main = main
        self._bar = None
        if main and self._stream.isatty():
            self._bar = tqdm.tqdm(
                initial=start, total=steps, unit="step", file=self._stream, dynamic_ncols=True
            )

    def line(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if not self._main:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def step(self) -> None:
        """Moves the bar by a step."""
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class Clock:
    """Adds up wall time by what it was spent on.

    `step` is computing, `data` waiting for a batch with idle devices, `start` everything before
    the first step (restoring, compiling), then `evaluate` and `save`.
    """

    def __init__(self) -> None:
        """Starts counting wall time."""
        self._begin = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Counts the time inside as spent on `what`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(what, time.perf_counter() - start)

    def add(self, what: str, seconds: float) -> None:
        """Counts `seconds` as spent on `what`."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def wall(self) -> float:
        """Returns seconds since the start."""
        return time.perf_counter() - self._begin

    def goodput(self) -> float:
        """Returns the share of the wall time spent in steps."""
        return self.seconds.get("step", 0.0) / max(self.wall(), 1e-9)

    def summary(self) -> str:
        """Returns one line: goodput, and where the rest went."""
        wall = self.wall()
        parts = ", ".join(
            f"{name} {duration(seconds)}"
            for name, seconds in sorted(self.seconds.items(), key=lambda item: -item[1])
        )
        return f"goodput {self.goodput():.1%} of {duration(wall)} ({parts})"


def describe(step: int, steps: int, values: Mapping[str, Any], phase: str = "") -> str:
    """Returns the log line of a step from its numbers (`loss`, `clips_per_second`, ...).

    Args:
      step: which.
      steps: of the whole run.
      values: the numbers; `eta_seconds` is that of the phase.
      phase: its name; empty for a run of one.
    """
    parts = [f"step {step}/{steps}", *([phase] if phase else []), f"loss {values['loss']:.5g}"]
    parts.append(f"{values['clips_per_second']:.1f} clips/s")
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.1%}")
    parts.append(f"data wait {values['data_wait_seconds']:.2f}s")
    if values.get("skipped"):
        parts.append(f"skipped {int(values['skipped'])}")
    end = "end of the phase in" if phase else "ETA"
    parts.append(f"{end} {duration(values['eta_seconds'])}")
    return "  ".join(parts)
