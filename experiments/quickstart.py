"""From nothing to a report: writes the videos, trains, evaluates. What `make demo` runs.

    python -m experiments.quickstart [--devices=2] [--workdir=runs/quickstart] [--data=data/world] \
        [--config=configs/vl_jepa/quickstart.py] [--config.train.steps=500] [--baselines] \
        [--force] [--smoke]

Each stage is its own process. What is finished is not done again, and an interrupted run goes on
where it stopped. `--baselines` trains the same config on single and on shuffled frames as well,
each as long as the run itself, and compares. `--smoke` is a run of about a minute that goes through
everything and learns nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import cli, train
from experiments.processes import Stages, Stopped, hint
from experiments.stages import (
    DATA,
    DEVICES,
    FORCE,
    SMOKE,
    SMOKE_RUN,
    SMOKE_WORLD,
    Run,
    check,
    passed_on,
    write_videos,
)
from jepa.errors import UserError
from jepa.evaluation import baselines, results
from jepa.training import config as configs

# --config, --workdir and --devices are those of training, with defaults of their own.
_CONFIG = "configs/vl_jepa/quickstart.py"
_WORKDIR, _SMOKE_WORKDIR = "runs/quickstart", "runs/smoke"
BASELINES = flags.DEFINE_bool(
    "baselines", False, "Also train on single and on shuffled frames, and compare with that."
)
_SMOKE: dict[str, Any] = {"train.steps": 6, **SMOKE_RUN}

# What a baseline sees, by its name.
_LESS = {"single_frame": "single", "shuffled_frames": "shuffled"}


def main() -> int:
    """Runs what is not done yet; returns the exit code."""
    smoke = SMOKE.value
    directory = Path(train.WORKDIR.value or (_SMOKE_WORKDIR if smoke else _WORKDIR))
    overrides: dict[str, Any] = dict(_SMOKE) if smoke else {}
    if DATA.value or smoke:
        overrides["data.path"] = DATA.value or SMOKE_WORLD
    config, arguments = _configuration(overrides)
    devices = DEVICES if train.DEVICES.value is None else train.DEVICES.value
    arguments += [f"--workdir={directory}", f"--devices={devices}", *passed_on()]
    run = Run(directory, config, tuple(arguments))
    others = [_less(run, name) for name in _LESS] if BASELINES.value else []
    for one in (run, *others):
        _check(one, devices)

    stages = Stages()
    try:
        with stages.forwarding():
            write_videos(stages, str(config.data.path))
            run.train(stages)
            run.evaluate(stages, force=FORCE.value)
            for other in others:
                other.train(stages)
                other.evaluate(stages, force=FORCE.value)
            if others:
                run.evaluate(stages, "compare")
    except Stopped as stopped:
        return hint(stopped, stages)
    print(f"done: {stages.summary()}")
    print(f"report: {(directory / results.REPORT).resolve().as_uri()}")
    return 0


def _less(run: Run, name: str) -> Run:
    """Returns the baseline of this name."""
    control = _LESS[name]
    config = run.config.copy_and_resolve_references()
    config.data.frame_control = control
    directory = run.directory / baselines.DIRECTORY / name
    # The later of two flags counts.
    more = (f"--workdir={directory}", f"--config.data.frame_control={control}")
    return Run(directory, config, (*run.arguments, *more), name)


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


def _check(run: Run, devices: int) -> None:
    control = train.CONFIG.value.data.frame_control
    if run.name and control != "none":
        raise UserError(
            f"--config.data.frame_control={control}: with --baselines the run itself sees all "
            "frames; leave it out"
        )
    check(run, devices)


if __name__ == "__main__":
    if not any(argument.split("=")[0].lstrip("-") == "config" for argument in sys.argv[1:]):
        sys.argv.insert(1, f"--config={_CONFIG}")
    cli.run_absl(main)
