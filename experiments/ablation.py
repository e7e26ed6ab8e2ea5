"""The paper's ablations of VL-JEPA (arXiv 2512.10942 v2, table 7), small and on the world.

    python -m experiments.ablation [--workdir=runs/ablation] [--devices=2] [--data=data/world] \
        [--variants=info_nce,l2] [--seeds=0,1,2] [--set=KEY=VALUE ...] [--smoke]

The rate of the Y-encoder, the loss before a frozen one, the predictor's depth and whether it is
causal, and which Y-encoder: the variants of configs/vl_jepa/ablation.py, which says what they are.
Each is trained from each seed, then evaluated; the table of means over seeds stands beside the
paper's numbers, and its orders beside the paper's.

Each training and each evaluation is its own process. What is finished is not done again, and an
interrupted run goes on where it stopped. After each evaluation the table of what there is so far is
kept as WORKDIR/ablation.md, its numbers as ablation.json. `--smoke` goes through everything in two
steps a run and learns nothing.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from configs.vl_jepa import ablation
from experiments import ablation_table, cli, repeated, stages, train
from experiments.processes import Stages, Stopped, hint
from experiments.stages import Run
from jepa.data import storage
from jepa.errors import UserError
from jepa.training import config as configs

# --workdir and --devices are those of training, --data, --force and --smoke those of `stages`,
# --seeds and --set those of `repeated`.
CHOSEN = flags.DEFINE_list("variants", None, "Variants to run; by default all.")

_CONFIG = "configs/vl_jepa/ablation.py"
_WORKDIR, _SMOKE_WORKDIR = "runs/ablation", "runs/smoke_ablation"
_SEEDS, _SMOKE_SEEDS = ("0", "1", "2"), ("0",)
FILE, TABLE = "ablation.json", "ablation.md"
# Of a smoke run of the quickstart, but for what is not evaluated here.
_SMOKE: dict[str, Any] = {
    key: value for key, value in stages.SMOKE_RUN.items() if not key.startswith("evaluation.novel")
} | {"train.steps": 2}


def plan(
    variants: Sequence[str],
    seeds: Sequence[str],
    directory: Path,
    overrides: Mapping[str, Any],
    devices: int,
) -> list[Run]:
    """Returns the runs, all variants with the first seed before any with the second.

    Args:
      variants: of `configs.vl_jepa.ablation`.
      seeds: whole numbers.
      directory: where the workdirs go, VARIANT/seedN.
      overrides: of every run's config; a string may stand for a value of another type.
      devices: of every run.

    Raises:
      UserError: an unknown variant, or an override that the config cannot have.
    """
    unknown = sorted(set(variants) - set(ablation.VARIANTS))
    if unknown or not variants:
        known = ", ".join(ablation.VARIANTS)
        raise UserError(f"--variants={','.join(variants)}: give one or more of {known}")
    made = []
    for seed in seeds:
        for variant in dict.fromkeys(variants):
            where = directory / variant / f"seed{seed}"
            config = ablation.get_config(variant)
            arguments = [f"--config={_CONFIG}:{variant}"]
            for key, value in {**overrides, "seed": int(seed)}.items():
                _override(config, key, value)
                arguments.append(f"--config.{key}={value}")
            arguments += [f"--workdir={where}", f"--devices={devices}", *stages.passed_on()]
            name = f"{variant}, seed {seed}"
            made.append(Run(where, configs.resolve(config), tuple(arguments), name))
    return made


def _override(config: ConfigDict, key: str, value: Any) -> None:
    try:
        meant = value
        if isinstance(value, str) and not isinstance(config_path.get_value(key, config), str):
            meant = ast.literal_eval(value)
        config_path.set_value(key, config, meant)
    except (KeyError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise UserError(
            f"--set={key}={value}: name a key of {_CONFIG} and give it a value of its type "
            f"({error})"
        ) from error


def overrides_of(pairs: Sequence[str]) -> dict[str, str]:
    """Returns `--set` by key.

    Raises:
      UserError: one has no value.
    """
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set={pair}: write it as KEY=VALUE")
        found[key] = value
    return found


def keep(directory: Path) -> str | None:
    """Writes the numbers and the table of what has been evaluated; returns the table, if any."""
    summary = ablation_table.summarise(directory)
    if not summary["runs"]:
        return None
    table = ablation_table.table(summary)
    storage.write_atomically(directory / FILE, json.dumps(summary, indent=2) + "\n")
    storage.write_atomically(directory / TABLE, table + "\n")
    return table


def main() -> int:
    """Runs what is not done yet; returns the exit code."""
    if train.CONFIG.value is not None:
        raise UserError(f"--config: this runs {_CONFIG}; leave it out, or call experiments.train")
    smoke = stages.SMOKE.value
    directory = Path(train.WORKDIR.value or (_SMOKE_WORKDIR if smoke else _WORKDIR))
    devices = stages.DEVICES if train.DEVICES.value is None else train.DEVICES.value
    data = stages.DATA.value or (stages.SMOKE_WORLD if smoke else ablation.get_config().data.path)
    given = overrides_of(repeated.SET.value)
    overrides = {"data.path": data, **(_SMOKE if smoke else {}), **given}
    chosen = list(ablation.VARIANTS) if CHOSEN.value is None else CHOSEN.value
    seeds = repeated.seeds(_SMOKE_SEEDS if smoke else _SEEDS)
    runs = plan(chosen, seeds, directory, overrides, devices)
    for run in runs:
        stages.check(run, devices)
    done = Stages()
    try:
        with done.forwarding():
            stages.write_videos(done, str(overrides["data.path"]))
            for run in runs:
                run.train(done)
                run.evaluate(done, force=stages.FORCE.value)
                keep(directory)
    except Stopped as stopped:
        return hint(stopped, done)
    print(f"done: {done.summary()}")
    print(keep(directory))
    print(f"numbers: {directory / FILE}", flush=True)
    return 0


if __name__ == "__main__":
    cli.run_absl(main)
