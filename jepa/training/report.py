"""Turns the metrics of steps into log lines, one step late, so that the devices never idle."""

from __future__ import annotations

import time
from typing import Any

import jax

from jepa.errors import UserError
from jepa.training import metrics as writers
from jepa.training import progress as telling
from jepa.training.flops import Peak

# Of these a line tells the last value; of everything else the mean over the steps since the last.
LAST = ("learning_rate", "weight_decay", "ema_momentum", "skipped", "skipped_in_a_row")


class Reporter:
    """Receives the metrics of every step and logs them at the configured interval.

    The host runs at most one step ahead of the devices: `after(k)` waits for step `k - 1`, whose
    scalars are then copied while the devices work on step `k`. They are added up on the host: a
    program of its own for it (clu.metrics) would run beside the step for no gain.
    """

    def __init__(
        self,
        *,
        writer: writers.MetricWriter,
        progress: telling.Progress,
        clock: telling.Clock,
        start: int,
        steps: int,
        total: int,
        phase: str,
        log_every: int,
        global_batch: int,
        flops: float,
        peak: Peak,
        max_consecutive_skipped: int,
    ):
        """Begins at step `start` of a phase that ends at `steps`, of a run that ends at `total`.

        `flops` are those of one step over all devices; `phase` is its name, empty where the run has
        only one.
        """
        self._writer, self._progress, self._clock = writer, progress, clock
        self._steps, self._batch, self._flops, self._peak = steps, global_batch, flops, peak
        self._limit, self._total, self._phase = max_consecutive_skipped, total, phase
        self._held: tuple[int, dict[str, Any]] | None = None
        self._last_step = start
        self._means = writers.Means()
        self._mark()
        self._log_when_due = writers.periodically(log_every, self._log, also=(start + 1, steps))

    def _mark(self) -> None:
        self._since = time.perf_counter()
        self._other = self._off_step()
        self._waited = self._clock.seconds.get("data", 0.0)

    def _off_step(self) -> float:
        return sum(self._clock.seconds.get(what, 0.0) for what in ("evaluate", "save"))

    def busy(self) -> bool:
        """Returns whether the devices still work on the step that was handed over last."""
        return self._held is not None and not self._held[1]["loss"].is_ready()

    def after(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes the metrics of `step`, not yet computed, and finishes those of the step before."""
        self._finish()
        self._held = (step, metrics)
        self._progress.step()

    def flush(self) -> None:
        """Waits for the step that was handed over last and logs it if it is due."""
        self._finish()
        self._writer.flush()

    def _finish(self) -> None:
        if self._held is None:
            return
        step, metrics = self._held
        self._held = None
        values = jax.device_get(metrics)
        self._means.add({name: x for name, x in values.items() if name not in LAST})
        last = {name: float(values[name]) for name in LAST if name in values}
        self._log_when_due(step, last=last)

    def _log(self, *, step: int, last: dict[str, float]) -> None:
        values = {**self._means.take(), **last}
        seconds = time.perf_counter() - self._since - (self._off_step() - self._other)
        done = step - self._last_step
        values["clips_per_second"] = done * self._batch / max(seconds, 1e-9)
        values["data_wait_seconds"] = self._clock.seconds.get("data", 0.0) - self._waited
        values["eta_seconds"] = (self._steps - step) * seconds / max(done, 1)
        utilisation = self._peak.utilisation(self._flops * done, seconds)
        if utilisation is not None:
            values["mfu"] = utilisation
        self._last_step = step
        self._mark()
        self._writer.write_scalars(step, values)
        self._progress.line(telling.describe(step, self._total, values, self._phase))
        self.check(int(values["skipped_in_a_row"]), step)

    def check(self, skipped_in_a_row: int, step: int) -> None:
        """Raises UserError when too many steps in a row were not finite."""
        if skipped_in_a_row >= self._limit:
            raise UserError(
                f"The loss or its gradient was not finite in {skipped_in_a_row} steps in a row, "
                f"up to step {step} (train.max_consecutive_skipped is {self._limit}); lower "
                "optimizer.learning_rate, or look at the data."
            )
