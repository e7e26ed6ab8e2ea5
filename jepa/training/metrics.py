"""Where numbers go: the only module that knows clu.

clu's metric writers import TensorFlow for one of them, which this library never installs; a stub
in that one's place keeps it out. TensorBoard events come from tensorboardX behind clu's interface.
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa.training.optimizer import split

_STUBBED = "clu.metric_writers.summary_writer"
if _STUBBED not in sys.modules:
    _stub = types.ModuleType(_STUBBED)
    _stub.SummaryWriter = None  # type: ignore[attr-defined]
    sys.modules[_STUBBED] = _stub

from clu import metric_writers, parameter_overview, periodic_actions  # noqa: E402
from clu.metric_writers.interface import MetricWriter  # noqa: E402


class _ScalarWriter(MetricWriter):
    """A writer that keeps scalars and has no use for anything else."""

    def write_summaries(self, step, values, metadata=None):
        """Ignores raw tensors."""

    def write_images(self, step, images):
        """Ignores images."""

    def write_videos(self, step, videos):
        """Ignores videos."""

    def write_audios(self, step, audios, *, sample_rate):
        """Ignores audio."""

    def write_texts(self, step, texts):
        """Ignores texts."""

    def write_histograms(self, step, arrays, num_buckets=None):
        """Ignores histograms."""

    def write_hparams(self, hparams):
        """Ignores hyperparameters; the workdir holds config.json."""


class JsonLinesWriter(_ScalarWriter):
    """Appends `{"step": ..., name: value}` lines; a value that is not finite becomes null."""

    def __init__(self, path: str | Path):
        """Opens `path` for appending."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a")  # noqa: SIM115 - it lives as long as the writer.

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one line."""
        values = {name: float(value) for name, value in scalars.items()}
        record = {name: v if np.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps({"step": int(step), **record}) + "\n")

    def flush(self) -> None:
        """Hands the lines to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class _Direct:
    """tensorboardX's event file without its thread.

    The thread ends at the first error, such as a full disk or a clock that is set back by weeks;
    its queue is full soon, and whoever writes then waits for ever. clu's writer has a thread, whose
    errors reach the run.
    """

    def __init__(self, threaded: Any):
        threaded._worker.stop()
        threaded._event_queue.close()
        self._file: Any = threaded._ev_writer
        self.add_event, self.flush = self._file.write_event, self._file.flush

    def close(self) -> None:
        """Closes the file; tensorboardX asks for it again when Python ends."""
        if self._file is not None:
            self._file.close()
            self._file, self.flush = None, lambda: None


class TensorBoardWriter(_ScalarWriter):
    """Writes TensorBoard events with tensorboardX."""

    def __init__(self, directory: str | Path, purge_step: int | None = None):
        """Opens `directory`; events of an earlier run at `purge_step` and later are hidden."""
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(directory), purge_step=purge_step)
        self._writer.file_writer.event_writer = _Direct(self._writer.file_writer.event_writer)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes one event a scalar."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), int(step))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes `[H, W, C]` or `[N, H, W, C]` images."""
        for name, image in images.items():
            layout = "NHWC" if np.ndim(image) == 4 else "HWC"
            self._writer.add_image(name, np.asarray(image), int(step), dataformats=layout)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts."""
        for name, text in texts.items():
            self._writer.add_text(name, text, int(step))

    def flush(self) -> None:
        """Hands the events to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def make_writer(workdir: str | Path, *, start: int = 0, main: bool = True) -> MetricWriter:
    """Returns the writer of a run: metrics.jsonl and tensorboard/, written in the background.

    Args:
      workdir: of the run.
      start: step the run goes on from.
      main: whether this process is the one that writes.
    """
    if not main:
        return metric_writers.MultiWriter([])
    workdir = Path(workdir)
    return metric_writers.AsyncMultiWriter(
        [
            JsonLinesWriter(workdir / "metrics.jsonl"),
            TensorBoardWriter(workdir / "tensorboard", purge_step=start + 1 if start else None),
        ]
    )


class Means:
    """Means of scalars over steps."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self._values: dict[str, list[float]] = {}

    def add(self, values: Mapping[str, Any]) -> None:
        """Adds the scalars of a step, always the same names."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(float(value))

    def take(self) -> dict[str, float]:
        """Returns the mean over the steps with finite values, NaN without any; starts again.

        A step that was skipped has no finite loss; `skipped` tells of it, the mean leaves it out.
        """
        finite = {name: [x for x in xs if np.isfinite(x)] for name, xs in self._values.items()}
        self._values = {}
        return {name: sum(xs) / len(xs) if xs else float("nan") for name, xs in finite.items()}


def overview(params: Mapping[str, Any]) -> str:
    """Returns a table of the parameters: name, shape, dtype, size; and their number."""
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    # clu takes a scalar for 1.0 numbers, and all of them with it.
    return re.sub(r"(?<=\d)\.0(?= --| bytes)", "", table)


def count(params: Mapping[str, Any]) -> int:
    """Returns the number of parameters."""
    return int(parameter_overview.count_parameters(params))


def trainable(params: Mapping[str, Any], frozen: Sequence[str]) -> str:
    """Returns the line that says how many parameters are trained, of how many.

    Args:
      params: nested dict of arrays or of their shapes.
      frozen: patterns of `/`-joined paths, as in `jepa.methods.base.Requirements`.
    """
    return f"trainable {count(split(params, frozen)[0]):,} of {count(params):,} parameters"


def periodically(every: int, callback: Callable[..., None], *, also: tuple[int, ...] = ()) -> Any:
    """Returns an action to call after every step; it calls `callback(step=...)` when due."""

    def call(step: int, t: float, **kwargs: Any) -> None:
        del t
        callback(step=step, **kwargs)

    return periodic_actions.PeriodicCallback(every_steps=every, on_steps=also, callback_fn=call)
