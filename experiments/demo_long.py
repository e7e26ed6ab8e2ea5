"""Both stages of the paper on the world, and what the first is worth. What `make demo-long` runs.

    python -m experiments.demo_long [--devices=2] [--workdir=runs/quickstart_long] \
        [--data=data/world] [--force] [--smoke]

The videos; V-JEPA 2 on the clips without their texts; its encoder as VL-JEPA's X-encoder, first
frozen, with its features computed once, then trained too for a short end. Beside that, for the same
time and without pretraining: a frozen X-encoder at its random start, and all trained jointly. All
three get the same evaluation, and the report of the first compares them. Steps are those of
configs/v_jepa_2/world.py and configs/vl_jepa/quickstart_long.py.

Each stage is its own process. What is finished is not done again, and an interrupted run goes on
where it stopped. `--smoke` is a run of some minutes that goes through everything and learns
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from configs.v_jepa_2 import world
from configs.vl_jepa import quickstart_long
from experiments import cli, stages, train
from experiments.processes import Stages, Stopped, hint
from experiments.stages import Run
from jepa.errors import UserError
from jepa.evaluation import baselines, results
from jepa.interop import parameters
from jepa.training import config as configs

_WORKDIR, _SMOKE_WORKDIR = "runs/quickstart_long", "runs/smoke_long"
_PRETRAINING = "configs/v_jepa_2/world.py"
_TRAINING = "configs/vl_jepa/quickstart_long.py"
_ENCODER = "encoder.safetensors"

_TINY = {"train.global_batch": 16, "train.log_every": 2, "train.save_every": 2}
_SMOKE_PRETRAINING: dict[str, Any] = {**_TINY, "train.steps": 4}
_SMOKE_PHASES: dict[str, Any] = {"phases[0].steps": 4, "phases[1].steps": 2, "train.steps": 6}


def main() -> int:
    """Runs what is not done yet; returns the exit code."""
    if train.CONFIG.value is not None:
        raise UserError(
            "--config: this runs configs of its own; leave it out, or call experiments.train"
        )
    smoke = stages.SMOKE.value
    directory = Path(train.WORKDIR.value or (_SMOKE_WORKDIR if smoke else _WORKDIR))
    devices = stages.DEVICES if train.DEVICES.value is None else train.DEVICES.value
    data = stages.DATA.value or (stages.SMOKE_WORLD if smoke else world.get_config().data.path)

    pretraining = _run(
        directory / "pretraining",
        world.get_config(),
        _PRETRAINING,
        {"data.path": data, **(_SMOKE_PRETRAINING if smoke else {})},
        devices,
        name="pretraining",
    )
    encoder = pretraining.directory / _ENCODER
    tiny = stages.SMOKE_RUN if smoke else {}
    run = _run(
        directory,
        quickstart_long.get_config(),
        _TRAINING,
        {
            "data.path": data,
            "model.x_encoder.weights": str(encoder),
            **tiny,
            **(_SMOKE_PHASES if smoke else {}),
        },
        devices,
    )
    others = [
        _run(
            directory / baselines.DIRECTORY / name,
            quickstart_long.get_config(name),
            f"{_TRAINING}:{name}",
            {"data.path": data, **tiny, **({"train.steps": 6} if smoke else {})},
            devices,
            name=name,
        )
        for name in quickstart_long.COMPARISONS
    ]
    for one in (pretraining, run, *others):
        stages.check(one, devices)

    done = Stages()
    try:
        with done.forwarding():
            stages.write_videos(done, data)
            pretraining.train(done)
            _export(done, pretraining, encoder)
            run.train(done)
            for other in others:
                other.train(done)
                other.evaluate(done, force=stages.FORCE.value)
            run.evaluate(done, force=stages.FORCE.value)
    except Stopped as stopped:
        return hint(stopped, done)
    print(f"done: {done.summary()}")
    print(f"report: {(directory / results.REPORT).resolve().as_uri()}")
    return 0


def _run(
    directory: Path,
    config: ConfigDict,
    filename: str,
    overrides: Mapping[str, Any],
    devices: int,
    *,
    name: str = "",
) -> Run:
    """Returns a run of a config with overrides, which its stages get as flags."""
    arguments = [f"--config={filename}"]
    for key, value in overrides.items():
        config_path.set_value(key, config, value)
        arguments.append(f"--config.{key}={value}")
    arguments += [f"--workdir={directory}", f"--devices={devices}", *stages.passed_on()]
    return Run(directory, configs.resolve(config), tuple(arguments), name)


def _export(done: Stages, pretraining: Run, encoder: Path) -> None:
    """Writes the encoder's file, unless it is there and of the last step."""
    if _exported_step(encoder) == pretraining.config.train.steps:
        done.skip("export", f"{encoder} is there")
    else:
        done.run("export", "experiments.export", [*pretraining.arguments, f"--to={encoder}"])


def _exported_step(encoder: Path) -> int | None:
    try:
        return int(parameters.about(encoder)["step"])
    except (UserError, KeyError, ValueError):
        return None


if __name__ == "__main__":
    cli.run_absl(main)
