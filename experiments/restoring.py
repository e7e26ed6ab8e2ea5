"""The state of a run for those that read it: a checkpoint, or the random start."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jepa.data import loader
from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.methods.base import Method
from jepa.training import checkpoints, loop
from jepa.training.state import Initializer
from jepa.training.step import global_spec


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


def initializer(config: ConfigDict, method: Method, mesh: jax.sharding.Mesh) -> Initializer:
    """Returns what makes the state of step 0, and knows the shapes of every other; reads no data.

    Args:
      config: resolved.
      method: of the config.
      mesh: where the state is to lie.
    """
    # The shapes of the parameters follow from those of a batch.
    data = dataclasses.replace(
        DataConfig.parse(config.data), cache="none", workers=0, text_features=None
    )
    batches = loader.make_train_loader(
        data, global_batch=config.train.global_batch, seed=config.seed
    )
    spec = global_spec(batches.element_spec, 1)
    batches.close()
    step_program = loop.make_step(config, method)
    return Initializer(
        method, step_program.optimizer, mesh, spec, seed=config.seed, dtype=config.dtype
    )


def restore(
    config: ConfigDict,
    directory: str | Path,
    step: int | None,
    method: Method,
    mesh: jax.sharding.Mesh,
) -> checkpoints.Restored:
    """Returns a checkpoint, laid out on `mesh`; None as `step` is the latest that can be read.

    Raises:
      UserError: it is damaged.
    """
    shapes = initializer(config, method, mesh).shapes
    return checkpoints.restore(Path(directory) / "checkpoints", step, shapes)
