"""From nothing to a report: writes the videos, trains, evaluates. What `make demo` runs.

    python -m experiments.quickstart [--devices=2] [--workdir=runs/quickstart] [--data=data/world] \
        [--config=configs/vl_jepa/quickstart.py] [--config.train.steps=500] [--force] [--smoke]

Each stage is its own process. What is finished is not done again, and an interrupted run goes on
where it stopped. `--smoke` is a run of about a minute that goes through everything and learns
nothing.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import cli, train
from jepa.data.dataset import Dataset
from jepa.errors import UserError
from jepa.evaluation import results
from jepa.training import config as configs
from jepa.training import workdir as workdirs

# --config, --workdir and --devices are those of training, with defaults of their own.
_CONFIG = "configs/vl_jepa/quickstart.py"
_WORKDIR, _SMOKE_WORKDIR = "runs/quickstart", "runs/smoke"
_DEVICES = 2
DATA = flags.DEFINE_string(
    "data", None, "Directory of the videos; by default what the config says, or runs/smoke-world."
)
FORCE = flags.DEFINE_bool("force", False, "Evaluate again, even if nothing has changed.")
SMOKE = flags.DEFINE_bool("smoke", False, "A tiny run that goes through every stage.")

_SMOKE_CLIPS = {"train": 96, "validation": 48, "novel": 24, "hard": 24, "surprise": 4}
_SMOKE: dict[str, Any] = {
    "train.steps": 6,
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
        """Passes SIGINT and SIGTERM on to the stage that runs, which then saves what it has."""
        old = {
            number: signal.signal(number, self._forward)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signal = number
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def run(self, name: str, module: str, arguments: Sequence[str]) -> None:
        """Runs `python -m module arguments`.

        Raises:
          Stopped: with the stage's exit code if it failed, or 128 plus the signal's number.
        """
        print(f"== {name}", flush=True)
        begin = time.perf_counter()
        # A process group of its own: Ctrl-C on a terminal reaches it once, through us.
        self._child = subprocess.Popen([sys.executable, "-m", module, *arguments], process_group=0)
        if self._signal is not None:
            self._child.send_signal(self._signal)
        code = self._child.wait()
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
        parts = [f"{name} {_clock(seconds)}" for name, seconds in self.seconds.items()]
        return f"{', '.join(parts)}; in all {_clock(sum(self.seconds.values()))}"


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def main() -> int:
    """Runs what is not done yet; returns the exit code."""
    smoke = SMOKE.value
    directory = Path(train.WORKDIR.value or (_SMOKE_WORKDIR if smoke else _WORKDIR))
    overrides: dict[str, Any] = dict(_SMOKE) if smoke else {}
    if DATA.value or smoke:
        overrides["data.path"] = DATA.value or "runs/smoke-world"
    config, arguments = _configuration(overrides)
    data = str(config.data.path)
    workdirs.check(directory, config)
    common = [*arguments, f"--workdir={directory}", f"--devices={train.DEVICES.value or _DEVICES}"]

    stages = Stages()
    try:
        with stages.forwarding():
            if _has_data(data):
                stages.skip("data", f"{data} is there")
            else:
                clips = [f"{split}={count}" for split, count in _SMOKE_CLIPS.items()]
                more = ["--world-clips", *clips] if smoke else []
                stages.run("data", "experiments.prepare_data", ["--output", data, *more])
            if _is_trained(directory, config):
                stages.skip("train", f"{directory} holds step {config.train.steps}")
            else:
                stages.run("train", "experiments.train", common)
            if _is_evaluated(directory, config) and not FORCE.value:
                stages.skip("evaluate", f"{directory / results.FILE} is of this checkpoint")
            else:
                stages.run("evaluate", "experiments.evaluate", common)
    except Stopped as stopped:
        hint = "the same command goes on from here" if stopped.code > 2 else "see above"
        print(f"stopped ({stages.summary()}); {hint}", file=sys.stderr, flush=True)
        return stopped.code
    print(f"done: {stages.summary()}")
    print(f"report: {(directory / results.REPORT).resolve().as_uri()}")
    return 0


def _configuration(overrides: Mapping[str, Any]) -> tuple[ConfigDict, list[str]]:
    """Returns the resolved config and the flags that give a stage the same one."""
    config = train.CONFIG.value
    filename = config_flags.get_config_filename(flags.FLAGS["config"])
    given = [arg for arg in sys.argv[1:] if arg.lstrip("-").startswith("config.")]
    for argument in given:
        if "=" not in argument:
            raise UserError(f"{argument}: write it as {argument}=VALUE")
    named = {arg.lstrip("-").split("=")[0].removeprefix("config.") for arg in given}
    # What the command line says goes before what --smoke and --data say.
    extra = {key: value for key, value in overrides.items() if key not in named}
    try:
        config.update_from_flattened_dict(extra)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--config={filename} is no config for the quickstart: {error}") from error
    arguments = [f"--config={filename}", *given]
    arguments += [f"--config.{key}={value}" for key, value in extra.items()]
    return configs.resolve(config), arguments


def _has_data(path: str) -> bool:
    try:
        Dataset.open(path)
    except UserError:
        return False
    return True


def _is_trained(directory: Path, config: ConfigDict) -> bool:
    """Whether the run has ended and its last checkpoint is as it left it."""
    return workdirs.finished_step(directory) == config.train.steps


def _is_evaluated(directory: Path, config: ConfigDict) -> bool:
    wanted = results.identity(workdirs.plain(config), config.train.steps, config.data.path)
    return results.is_current(directory, wanted)


if __name__ == "__main__":
    if not any(argument.split("=")[0].lstrip("-") == "config" for argument in sys.argv[1:]):
        sys.argv.insert(1, f"--config={_CONFIG}")
    cli.run_absl(main)
