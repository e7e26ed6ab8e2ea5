"""What `experiments.quickstart` and `experiments.demo_long` share: stages, each its own process.

What is finished is not done again, and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments import cli, train
from jepa import methods
from jepa.data.dataset import Dataset
from jepa.errors import UserError
from jepa.evaluation import baselines, results
from jepa.training import config as configs
from jepa.training import phases
from jepa.training import workdir as workdirs
from jepa.words import duration

# --workdir and --devices are those of training, with defaults of their own.
DEVICES = 2
SMOKE_WORLD = "runs/smoke-world"
DATA = flags.DEFINE_string(
    "data", None, "Directory of the videos; by default what the config says, or runs/smoke-world."
)
FORCE = flags.DEFINE_bool("force", False, "Evaluate again, even if nothing has changed.")
SMOKE = flags.DEFINE_bool("smoke", False, "A tiny run that goes through every stage.")

_SMOKE_CLIPS = {"train": 96, "validation": 48, "novel": 24, "hard": 24, "surprise": 4}
# What a smoke run of VL-JEPA has otherwise, but for its steps.
SMOKE_RUN: dict[str, Any] = {
    "train.global_batch": 16,
    "train.log_every": 2,
    "train.eval_every": 3,
    "train.save_every": 3,
    "evaluation.batch_size": 16,
    "evaluation.retrieval.count": 24,
    "evaluation.zero_shot.count": 48,
    "evaluation.questions.count": 48,
    "evaluation.novel.count": 16,
    "evaluation.quick.retrieval": 16,
    "evaluation.quick.zero_shot": 16,
    "evaluation.quick.questions": 16,
    "evaluation.quick.hard": 4,
}


# A step on CPU allocates its activations anew; in small pages, faulting them in takes up to a third
# of the step. glibc reads this only when a process starts, so no stage can set it for itself.
_MEMORY = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Stopped(Exception):
    """A stage ended the run: it failed, or a signal asked for it. Carries the exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Stages:
    """Runs the stages one after another and remembers how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._signal: int | None = None

    @contextlib.contextmanager
    def forwarding(self) -> Iterator[None]:
        """Passes SIGINT and SIGTERM on to the stage that runs, which then saves what it has.

        A terminal that is closed (SIGHUP) ends the stage as SIGTERM does, unless nohup is about.
        """
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        old = {number: signal.signal(number, self._forward) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signal = number
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(_sent(number))

    def run(self, name: str, module: str, arguments: Sequence[str]) -> None:
        """Runs `python -m module arguments`.

        Raises:
          Stopped: with the stage's exit code if it failed, or 128 plus the signal's number.
        """
        print(f"== {name}", flush=True)
        begin = time.perf_counter()
        # It saves and ends when our end of this pipe is closed: by us, or with us by kill -9.
        leash, end = os.pipe()
        try:
            # A process group of its own: Ctrl-C on a terminal reaches it once, through us.
            self._child = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                process_group=0,
                env={**_MEMORY, **os.environ, cli.LEASH: str(leash)},
                pass_fds=(leash,),
            )
            if self._signal is not None:
                self._child.send_signal(_sent(self._signal))
            code = self._child.wait()
        finally:
            os.close(leash)
            os.close(end)
        self.seconds[name] = time.perf_counter() - begin
        if code:
            raise Stopped(128 - code if code < 0 else code)
        if self._signal is not None:
            raise Stopped(128 + self._signal)

    def skip(self, name: str, why: str) -> None:
        """Notes that a stage has nothing to do."""
        print(f"== {name}: {why}", flush=True)
        self.seconds[name] = 0.0

    def summary(self) -> str:
        """Returns one line with the time of each stage."""
        parts = [f"{name} {duration(seconds)}" for name, seconds in self.seconds.items()]
        return f"{', '.join(parts)}; in all {duration(sum(self.seconds.values()))}"


def _sent(number: int) -> int:
    return signal.SIGTERM if number == signal.SIGHUP else number


@dataclasses.dataclass(frozen=True)
class Run:
    """A training and its evaluation.

    Attributes:
      directory: the workdir.
      config: resolved.
      arguments: the flags that give a stage this config and workdir.
      name: of a baseline; empty for the run itself.
    """

    directory: Path
    config: ConfigDict
    arguments: tuple[str, ...]
    name: str = ""

    def train(self, stages: Stages) -> None:
        """Trains, unless the last checkpoint is there."""
        stage = f"train {self.name}".strip()
        if self._is_trained():
            stages.skip(stage, f"{self.directory} holds step {self.config.train.steps}")
        else:
            stages.run(stage, "experiments.train", self.arguments)

    def evaluate(self, stages: Stages, stage: str = "evaluate", *, force: bool = False) -> None:
        """Evaluates, unless the evaluation there is of this checkpoint and these baselines."""
        stage = f"{stage} {self.name}".strip()
        if self._is_evaluated() and not force:
            stages.skip(stage, f"{self.directory / results.FILE} is of this checkpoint")
        else:
            stages.run(stage, "experiments.evaluate", self.arguments)

    def _is_trained(self) -> bool:
        """Whether the run has ended and its last checkpoint is as it left it."""
        return workdirs.finished_step(self.directory) == self.config.train.steps

    def _is_evaluated(self) -> bool:
        config = self.config
        found = baselines.find(self.directory) if config.evaluation.hard else {}
        try:
            others = {name: baselines.read(name, path).identity for name, path in found.items()}
        except UserError:
            return False  # The evaluation will say it.
        plain = workdirs.plain(config)
        wanted = results.identity(plain, config.train.steps, config.data.path, others)
        return results.is_current(self.directory, wanted)


def check(run: Run, devices: int) -> None:
    """Checks before the videos are written what training would only find after that."""
    if devices < 1:
        raise UserError(f"--devices={devices}: give 1 or more")
    if train.DISTRIBUTED.value:
        raise UserError("--distributed: this runs on one machine; call experiments.train on each")
    train.check_path(train.WORKDIR.value or "")
    workdirs.check(run.directory, run.config)
    for phase in phases.plan(run.config):
        with phases.naming(phase.name):
            configs.check_run(phase.config, methods.from_config(phase.config), devices)
    train.check_evaluation(run.config)


def passed_on() -> list[str]:
    """Returns the flags that are the stages' as they are."""
    names = [name for name in ("compile_cache", "verbosity") if flags.FLAGS[name].present]
    return [f"--{name}={flags.FLAGS[name].value}" for name in names]


def write_videos(stages: Stages, path: str) -> None:
    """Writes the world's videos to `path`, unless they are there."""
    if _has_data(path):
        stages.skip("data", f"{path} is there")
        return
    clips = [f"{split}={count}" for split, count in _SMOKE_CLIPS.items()]
    more = ["--world-clips", *clips] if SMOKE.value else []
    stages.run("data", "experiments.prepare_data", ["--output", path, *more])


def hint(stopped: Stopped, stages: Stages) -> int:
    """Says where the time went and how to go on; returns the exit code."""
    text = "the same command goes on from here" if stopped.code > 2 else "see above"
    print(f"stopped ({stages.summary()}); {text}", file=sys.stderr, flush=True)
    return stopped.code


def _has_data(path: str) -> bool:
    try:
        Dataset.open(path)
    except UserError:
        return False
    return True
