"""Being told to stop: a flag that SIGTERM or Ctrl-C sets and the loop reads between steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Stop:
    """A context in which SIGTERM and the first Ctrl-C ask the run to save and end.

    With several processes JAX's own preemption service hears SIGTERM on any of them and makes all
    agree on the step to stop at; Ctrl-C is passed on to it.
    """

    def __init__(self) -> None:
        """Installs nothing yet."""
        self.signal: str | None = None
        self._passed_on = False
        self._old: dict[int, object] = {}

    def __enter__(self) -> Stop:
        """Installs the handlers, where Python allows it (the main thread)."""
        several = jax.process_count() > 1
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        """Brings the former handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.signal is not None or self._passed_on):
            raise KeyboardInterrupt
        if jax.process_count() > 1:
            self._passed_on = True
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.signal = signal.Signals(number).name

    def told(self) -> bool:
        """Returns whether this process was told to stop, for work outside of steps.

        Never with several processes: they agree between steps only.
        """
        return self.signal is not None and jax.process_count() == 1

    def requested(self, step: int) -> bool:
        """Returns whether to stop after `step`, the same on every process."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = "SIGTERM"
        return self.signal is not None
