"""What `experiments.quickstart` and `experiments.demo_long` share: the stages of a run.

Each is a process of its own. What is finished is not done again, and an interrupted run goes on
where it stopped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments import train
from experiments.processes import Stages
from jepa import methods
from jepa.data.dataset import Dataset
from jepa.errors import UserError
from jepa.evaluation import baselines, results
from jepa.training import config as configs
from jepa.training import phases
from jepa.training import workdir as workdirs

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


def _has_data(path: str) -> bool:
    try:
        Dataset.open(path)
    except UserError:
        return False
    return True
