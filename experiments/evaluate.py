"""Evaluates a checkpoint: WORKDIR/evaluation.json and WORKDIR/report.html.

    python -m experiments.evaluate --config=configs/vl_jepa/quickstart.py --workdir=DIR \
        [--checkpoint=latest|best|STEP] [--picture=FILE.png] [--baseline=NAME=WORKDIR ...]

The config is that of the run; its `evaluation` section may differ. Baselines are evaluated runs of
models that were trained with less (`--config.data.frame_control=single`, say); the hard groups are
compared with theirs, caption by caption.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import cli, train
from experiments.restoring import CHECKPOINT, find_step, of_phase, restore
from jepa import methods
from jepa.data import sources, storage
from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.evaluation import baselines, comparison, headline, poster, report, results
from jepa.evaluation.suite import Evaluator
from jepa.methods.base import Method
from jepa.parallel import hosts
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import costs, metrics, optimizer, phases, workdir

# --config, --workdir, --devices and the like are those of training.
PICTURE = flags.DEFINE_string("picture", None, "Also write a picture of the result (PNG).")
BASELINES = flags.DEFINE_multi_string(
    "baseline", [], "NAME=WORKDIR of an evaluated baseline; by default WORKDIR/baselines/NAME."
)


def main(
    config: ConfigDict,
    directory: str | Path,
    *,
    checkpoint: str = "latest",
    name: str = "",
    devices: int | None = None,
    picture: str | Path | None = None,
    compared: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Evaluates in this process and returns the content of evaluation.json.

    Args:
      config: of the run.
      directory: the workdir.
      checkpoint: `latest`, `best` or a step.
      name: of the config, for the report.
      devices: CPU devices to show JAX, if its backend has not started.
      picture: where to write a PNG of the result, if anywhere.
      compared: workdirs of baselines by name; by default those in `directory`.

    Raises:
      UserError: a config that does not fit, no checkpoint, or a baseline that was not evaluated
        on the same clips.
    """
    begin = time.perf_counter()
    config = configs.resolve(config)
    workdir.check(directory, config)
    train.check_data(config)
    train.setup(config, devices=devices)
    wanted = find_step(directory, checkpoint, config)
    mesh = meshes.make_mesh(config.mesh)
    train.distrust_cache(mesh)
    here = of_phase(config, directory, wanted)
    method = methods.from_config(here)
    configs.check_run(here, method, mesh.size)
    evaluator = Evaluator(method, here.data, config.evaluation, mesh)
    captions = evaluator.hard_captions()
    others = _open_baselines(directory, compared, captions)
    restored = restore(config, directory, wanted, method, mesh)
    step, state = restored.step, restored.state
    found = evaluator.examine(state.averaged, state.method_state)

    plain = workdir.plain(config)
    rows = results.history(directory)
    identities = {other: baseline.identity for other, baseline in others.items()}
    numbers: dict[str, Any] = {
        "version": results.VERSION,
        "identity": results.identity(plain, step, _data_directory(here), identities),
        "config": name or "unnamed",
        "method": config.method,
        "frame_control": evaluator.source.frame_control,
        "checkpoint_step": step,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": meshes.describe(mesh),
        "parameters": _parameters(method, state.params),
        "training": {
            **results.training(rows, phases.batch_at(config)),
            **costs.read(directory),
        },
        "wall_seconds": round(time.perf_counter() - begin, 1),
        **found.numbers,
    }
    hits = found.evidence["hard",]["hits"] if captions else np.zeros(0)
    examples = baselines.examples(found.evidence)
    if others:
        seed = config.evaluation.seed
        numbers["baselines"], gains = baselines.compare(others, captions, hits, examples, seed=seed)
        numbers["gains"] = {**numbers.get("gains", {}), **gains}
    if jax.process_index() == 0:
        if captions:
            baselines.write(directory, numbers["identity"], captions, hits.tolist(), examples)
        material = report.Material(numbers, found.evidence, evaluator.source, rows, plain)
        write(directory, material, picture)
    return numbers


def write(
    directory: str | Path, material: report.Material, picture: str | Path | None = None
) -> None:
    """Writes evaluation.json, then what is drawn from it, so that no number is lost to a picture.

    Raises:
      UserError: the disk is full or may not be written.
    """
    page = Path(directory) / results.REPORT
    with storage.storing(page):
        page.unlink(missing_ok=True)  # an old report beside new numbers would look finished
    _tell(material, results.write(directory, material.numbers))
    report.write(page, material)
    print(f"report:  {page.resolve().as_uri()}")
    if picture is not None:
        print(f"picture: {poster.write(picture, material)}")


def _open_baselines(
    directory: str | Path, compared: Mapping[str, Path] | None, captions: baselines.Captions
) -> dict[str, baselines.Baseline]:
    """Returns the baselines to compare with: those given, else those in the workdir."""
    if compared and not captions:
        raise UserError(
            f"--baseline={next(iter(compared))}=...: only hard groups are compared, and "
            "config.evaluation.hard is None; set it"
        )
    paths = compared or (baselines.find(directory) if captions else {})
    found = {name: baselines.read(name, path) for name, path in paths.items()}
    baselines.check(found, captions)
    return found


def _tell(material: report.Material, path: Path) -> None:
    print(headline.table(material.headlines))
    if material.numbers.get("baselines"):
        print(f"\n{comparison.table(material.numbers)}\n")
    for key in headline.unmeasured(material.numbers, material.bars):
        print(f"not measured, so not compared with its bar: {key}")
    print(f"numbers: {path}", flush=True)


def _data_directory(config: ConfigDict) -> str | None:
    path = DataConfig.parse(config.data).sources[0][0]
    return path if sources.is_dataset(path) else None


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
    config, directory = train.from_flags()
    with hosts.together():
        main(
            config,
            directory,
            checkpoint=CHECKPOINT.value,
            name=config_name(config_flags.get_config_filename(flags.FLAGS["config"])),
            devices=train.DEVICES.value,
            picture=PICTURE.value,
            compared=baselines.parse(BASELINES.value),
        )


if __name__ == "__main__":
    cli.run_absl(_from_flags)
