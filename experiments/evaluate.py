"""Evaluates a checkpoint: WORKDIR/evaluation.json and WORKDIR/report.html.

    python -m experiments.evaluate --config=configs/vl_jepa/quickstart.py --workdir=DIR \
        [--checkpoint=latest|best|STEP] [--picture=FILE.png]

The config is that of the run; its `evaluation` section may differ.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import cli, train
from jepa import methods
from jepa.data import loader
from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.evaluation import headline, poster, report, results
from jepa.evaluation.suite import Evaluation, Evaluator
from jepa.methods.base import Method
from jepa.parallel import mesh as meshes
from jepa.training import checkpoints, loop, metrics, optimizer, workdir
from jepa.training import config as configs
from jepa.training.state import Initializer
from jepa.training.step import global_spec

# --config, --workdir, --devices and the like are those of training.
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "`latest`, `best` or a step.")
PICTURE = flags.DEFINE_string("picture", None, "Also write a picture of the result (PNG).")


def find_step(directory: str | Path, wanted: str, config: ConfigDict) -> int:
    """Returns the step of the checkpoint that is meant.

    Args:
      directory: the workdir.
      wanted: `latest`, `best` or a step.
      config: resolved.

    Raises:
      UserError: there is no such checkpoint. Nothing is written.
    """
    where = Path(directory) / "checkpoints"
    # Opening makes the directory, which a mistyped workdir should not get.
    if not where.is_dir():
        raise UserError(f"--workdir: {directory} holds no checkpoint; train first")
    opened = checkpoints.Checkpoints(
        where,
        keep_best_metric=config.train.keep_best_metric,
        keep_best_mode=config.train.keep_best_mode,
    )
    try:
        steps = opened.steps()
        best = opened.best_step() if wanted == "best" else None
    finally:
        opened.close()
    if not steps:
        raise UserError(f"--workdir: {directory} holds no checkpoint; train first")
    if wanted == "latest":
        return steps[-1]
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


def restore(
    config: ConfigDict, directory: str | Path, step: int, method: Method, mesh: jax.sharding.Mesh
) -> Any:
    """Returns the train state of a checkpoint, laid out on `mesh`."""
    # The shapes of the parameters follow from those of a batch; no data is read for that.
    data = dataclasses.replace(
        DataConfig.parse(config.data), cache="none", workers=0, text_features=None
    )
    batches = loader.make_train_loader(
        data, global_batch=config.train.global_batch, seed=config.seed
    )
    spec = global_spec(batches.element_spec, 1)
    batches.close()
    step_program = loop.make_step(config, method)
    initializer = Initializer(
        method, step_program.optimizer, mesh, spec, seed=config.seed, dtype=config.dtype
    )
    return checkpoints.restore(Path(directory) / "checkpoints", step, initializer.shapes).state


def main(
    config: ConfigDict,
    directory: str | Path,
    *,
    checkpoint: str = "latest",
    name: str = "",
    devices: int | None = None,
    picture: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluates in this process and returns the content of evaluation.json.

    Args:
      config: of the run.
      directory: the workdir.
      checkpoint: `latest`, `best` or a step.
      name: of the config, for the report.
      devices: CPU devices to show JAX, if its backend has not started.
      picture: where to write a PNG of the result, if anywhere.

    Raises:
      UserError: a config that does not fit, or no checkpoint.
    """
    begin = time.perf_counter()
    config = configs.resolve(config)
    workdir.check(directory, config)
    train.check_data(config)
    train.setup(config, devices=devices)
    step = find_step(directory, checkpoint, config)
    mesh = meshes.make_mesh(config.mesh)
    method = methods.from_config(config)
    configs.check_run(config, method, mesh.size)
    evaluator = Evaluator(method, config.data, config.evaluation, mesh)
    state = restore(config, directory, step, method, mesh)
    found = evaluator.examine(state.params, state.method_state)

    plain = workdir.plain(config)
    rows = results.history(directory)
    numbers = {
        "version": results.VERSION,
        "identity": results.identity(plain, step, _data_directory(config)),
        "config": name or "unnamed",
        "method": config.method,
        "checkpoint_step": step,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": meshes.describe(mesh),
        "parameters": _parameters(method, state.params),
        "training": results.training(rows, config.train.global_batch),
        "wall_seconds": round(time.perf_counter() - begin, 1),
        **found.numbers,
    }
    if jax.process_index() == 0:
        _write(directory, numbers, found, evaluator, rows, plain, picture)
    return numbers


def _write(
    directory: str | Path,
    numbers: Mapping[str, Any],
    found: Evaluation,
    evaluator: Evaluator,
    rows: list[dict[str, Any]],
    config: Mapping[str, Any],
    picture: str | Path | None,
) -> None:
    material = report.Material(numbers, found.evidence, evaluator.source, rows, config)
    lines = material.headlines
    page = report.write(Path(directory) / results.REPORT, material)
    path = results.write(directory, numbers)
    print(headline.table(lines))
    print(f"numbers: {path}")
    print(f"report:  {page.resolve().as_uri()}")
    if picture is not None:
        print(f"picture: {poster.write(picture, material)}")


def _data_directory(config: ConfigDict) -> str | None:
    path = DataConfig.parse(config.data).sources[0][0]
    return None if path.startswith("tfds:") else path


def _parameters(method: Method, params: Mapping[str, Any]) -> dict[str, int]:
    frozen = method.requirements.frozen
    flat = optimizer.flatten(params)
    trained = sum(
        int(array.size)
        for path, array in flat.items()
        if not any(re.fullmatch(pattern, path) for pattern in frozen)
    )
    return {"total": metrics.count(params), "trained": trained}


def config_name(path: str) -> str:
    """Returns `vl_jepa/quickstart` for `configs/vl_jepa/quickstart.py`."""
    return "/".join(Path(path).with_suffix("").parts[-2:])


def _from_flags() -> None:
    if train.CONFIG.value is None or train.WORKDIR.value is None:
        raise UserError("--config=FILE and --workdir=DIR are both needed (see --help)")
    if train.DISTRIBUTED.value:
        jax.distributed.initialize()
    main(
        train.CONFIG.value,
        train.WORKDIR.value,
        checkpoint=CHECKPOINT.value,
        name=config_name(config_flags.get_config_filename(flags.FLAGS["config"])),
        devices=train.DEVICES.value,
        picture=PICTURE.value,
    )


if __name__ == "__main__":
    cli.run_absl(_from_flags)
