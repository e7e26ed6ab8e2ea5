"""The state of a run for those that read it: a checkpoint, or the random start."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments import train
from jepa import methods
from jepa.errors import UserError
from jepa.methods.base import Method
from jepa.training import checkpoints, loop, phases
from jepa.training.prepare import prepare, shapes_at
from jepa.training.state import Initializer

CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "`latest`, `best` or a step.")


def find_step(directory: str | Path, wanted: str, config: ConfigDict) -> int | None:
    """Returns the step of the checkpoint that is meant; None for the latest that can be read.

    Args:
      directory: the workdir.
      wanted: `latest`, `best` or a step.
      config: resolved.

    Raises:
      UserError: there is no such checkpoint. Nothing is written.
    """
    opened = checkpoints.Checkpoints(
        Path(directory) / "checkpoints",
        keep_best_metric=config.train.keep_best_metric,
        keep_best_mode=config.train.keep_best_mode,
        writable=False,  # a run may be saving there
    )
    try:
        steps = opened.steps()
        best = opened.best_step() if wanted == "best" else None
    finally:
        opened.close()
    if not steps:
        raise UserError(f"--workdir: {directory} holds no checkpoint; train first")
    if wanted == "latest":
        return None
    if wanted == "best":
        if best is None:
            raise UserError(
                f"--checkpoint=best: no checkpoint in {directory} has the metric "
                f"{config.train.keep_best_metric!r}; set train.keep_best_metric, or take `latest`"
            )
        return best
    if not wanted.isdecimal() or int(wanted) not in steps:
        raise UserError(
            f"--checkpoint={wanted}: {directory} has no such checkpoint; it has "
            f"{', '.join(map(str, steps))}, or say `latest` or `best`"
        )
    return int(wanted)


def of_phase(config: ConfigDict, directory: str | Path, step: int | None) -> ConfigDict:
    """Returns the config of the phase that a checkpoint is of; `config` where it has no phases.

    Args:
      config: of the run, resolved.
      directory: the workdir.
      step: of the checkpoint; None for the latest.
    """
    plan = phases.plan(config)
    if len(plan) == 1:
        return plan[0].config
    return phases.at(plan, _latest(directory) if step is None else step).config


def _latest(directory: str | Path) -> int:
    opened = checkpoints.Checkpoints(Path(directory) / "checkpoints", writable=False)
    with contextlib.closing(opened):
        return max(opened.steps(), default=0)


def initializer(config: ConfigDict, method: Method, mesh: jax.sharding.Mesh) -> Initializer:
    """Returns what makes the state of step 0, and knows the shapes of every other; reads no data.

    Args:
      config: resolved, of the run or of a phase.
      method: of the config.
      mesh: where the state is to lie.
    """
    spec = train.batch_spec(config)
    made = loop.make_step(config, method).optimizer
    return Initializer(method, made, mesh, spec, seed=config.seed, dtype=config.dtype)


class _Outline:
    """What the shapes of a run's states follow from."""

    def __init__(self, method: Method):
        self._method = method

    def method(self, phase: phases.Phase) -> Method:
        return methods.from_config(phase.config) if phase.name else self._method

    def batch_spec(self, phase: phases.Phase, method: Method) -> Any:
        return train.batch_spec(phase.config)


def restore(
    config: ConfigDict,
    directory: str | Path,
    step: int | None,
    method: Method,
    mesh: jax.sharding.Mesh,
) -> checkpoints.Restored:
    """Returns a checkpoint, laid out on `mesh`.

    Args:
      config: of the run, resolved.
      directory: the workdir.
      step: which one; None for the latest that can be read.
      method: of the config that `of_phase` gives.
      mesh: where the state is to lie.

    Raises:
      UserError: it is damaged, or the latest that can be read is of another phase than the latest.
    """
    made = prepare(config, _Outline(method), mesh)
    plan = [each.phase for each in made]
    wanted = _latest(directory) if step is None else step
    restored = checkpoints.restore(
        Path(directory) / "checkpoints", step, lambda at: shapes_at(made, at)
    )
    phase = phases.at(plan, restored.step)
    if phase is not phases.at(plan, wanted):
        raise UserError(
            f"Checkpoint {wanted} in {directory} is damaged, and {restored.step} before it is of "
            f"the phase {phase.name!r}; say --checkpoint={restored.step} to take it."
        )
    return restored
