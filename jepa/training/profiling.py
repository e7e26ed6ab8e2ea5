"""The JAX profiler on demand: a trace of the steps that `train.profile_steps` names.

Each process traces its own devices. The profiler names its files after the host, of which several
processes may share one; so each of several processes has a directory of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


class Profiler:
    """Traces steps `start < step <= stop` into a directory; does nothing without them."""

    def __init__(self, directory: str | Path, steps: Sequence[int]):
        """Notes what to trace; `steps` is (start, stop) or empty."""
        self._directory, self._steps, self._running = str(directory), tuple(steps), False

    def outside(self, start: int, steps: int) -> str:
        """Returns that none of the steps to trace is among `start < step <= steps`, or nothing."""
        if not self._steps or (self._steps[1] > start and self._steps[0] < steps):
            return ""
        return (
            f"train.profile_steps={self._steps} are none of the steps {start + 1} to {steps} that "
            "are left: there will be no profile"
        )

    def before(self, step: int) -> None:
        """Starts the trace before the first of its steps, or of those that are left of them."""
        if self._steps and not self._running and self._steps[0] < step <= self._steps[1]:
            jax.profiler.start_trace(self._own_directory())
            self._running = True

    def _own_directory(self) -> str:
        if jax.process_count() == 1:
            return self._directory
        return f"{self._directory}/process-{jax.process_index():05d}"

    def after(self, step: int, values: Any) -> None:
        """Ends the trace when the last of its steps is computed."""
        if self._running and step >= self._steps[1]:
            jax.block_until_ready(values)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
