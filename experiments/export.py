"""Writes the encoder of a run to a file that another run starts from or is taught by.

    python -m experiments.export --config=configs/v_jepa_2_1/pretrain.py:gigantic --workdir=DIR \
        --to=teacher.safetensors [--checkpoint=latest|best|STEP] [--part=encoder]

Of a method with a target encoder, the moving average is written, as in every evaluation. The header
says how the encoder is built, and how long it was trained. `--part=` writes all networks, the
average of the encoder and the others as they are: what `experiments.convert` makes a published
directory of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments import cli, restoring, train
from jepa import methods
from jepa.data import storage
from jepa.errors import UserError
from jepa.evaluation import results
from jepa.interop import parameters
from jepa.methods import text_towers
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import metrics, phases, workdir

# --config, --workdir and --devices are those of training, --checkpoint that of evaluation.
TO = flags.DEFINE_string("to", None, "File to write (safetensors).")
PART = flags.DEFINE_string(
    "part", "encoder", "Which part of the parameters, a path; all when empty."
)

# Path of VL-JEPA's text tower in the parameters; the config names it without listing its fields.
TOWER = "y_encoder/tower"


def main(
    config: ConfigDict,
    directory: str | Path,
    out: str | Path,
    *,
    checkpoint: str = "latest",
    part: str = "encoder",
    devices: int | None = None,
) -> None:
    """Writes the file.

    Args:
      config: of the run.
      directory: the workdir.
      out: the file.
      checkpoint: `latest`, `best` or a step.
      part: path of a branch of the parameters; all of them when empty.
      devices: CPU devices to show JAX, if its backend has not started.

    Raises:
      UserError: there is no such checkpoint or part, or no room for the file.
    """
    config = configs.resolve(config)
    workdir.check(directory, config)
    train.check_data(config)
    train.setup(config, devices=devices)
    wanted = restoring.find_step(directory, checkpoint, config)
    here = restoring.of_phase(config, directory, wanted)
    mesh = meshes.make_mesh(config.mesh)
    train.distrust_cache(mesh)
    method = methods.from_config(here)
    configs.check_run(here, method, mesh.size)
    restored = restoring.restore(config, directory, wanted, method, mesh)
    params = restored.state.target_params
    params = restored.state.params if params is None else params
    branch: Any = params
    if not part:
        branch = {**restored.state.params, **{k: v for k, v in params.items() if k == "encoder"}}
    for name in part.split("/") if part else ():
        if not isinstance(branch, Mapping) or name not in branch:
            raise UserError(f"--part={part}: the parameters have {', '.join(sorted(params))}")
        branch = branch[name]
    about = {"method": config.method, "step": str(restored.step), "part": part}
    fields = fields_of(here.model, part)
    if fields is not None:
        about["fields"] = json.dumps(fields)
    seconds = results.training(results.history(directory), phases.batch_at(config)).get("seconds")
    if seconds is not None:
        about["seconds"] = str(seconds)
    with storage.storing(Path(out)):
        parameters.save(out, jax.device_get(branch), about)
    print(f"{part or 'all'} of step {restored.step}, {metrics.count(branch):,} parameters: {out}")


def fields_of(model: ConfigDict, part: str) -> dict[str, Any] | None:
    """Returns what a file says of how its networks are built; None of a part without fields.

    Args:
      model: the section of the config.
      part: path of a branch of the parameters; all of them when empty.
    """
    if part == TOWER:
        return text_towers.fields_of(model.y_encoder)
    found = model.get(part) if part else model
    if not hasattr(found, "items"):
        return None
    plain: dict[str, Any] = workdir.plain(found)
    return plain


def _from_flags() -> None:
    config, directory = train.from_flags()
    if TO.value is None:
        raise UserError("--to=FILE is needed (see --help)")
    main(
        config,
        directory,
        TO.value,
        checkpoint=restoring.CHECKPOINT.value,
        part=PART.value,
        devices=train.DEVICES.value,
    )


if __name__ == "__main__":
    cli.run_absl(_from_flags)
