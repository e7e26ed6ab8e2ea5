"""Every config of configs/pods.py on every pod: each result a file, so that a table can go on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import pods
from experiments import precompile_program
from jepa.data.storage import write_atomically
from jepa.errors import UserError
from jepa.parallel import chips
from jepa.training import config as configs
from jepa.training import phases as training_phases
from jepa.training.phases import Phase

FILE = "configs/pods.py"


def topology_of(name: str) -> str:
    """Returns the topology that a config's name says, as in `configs/pods.py:NAME@POD`.

    Raises:
      UserError: it says none.
    """
    pod = name.rpartition("@")[2]
    if f"{FILE}:" not in name or pod not in pods.PODS:
        raise UserError(
            "--topology=NAME is needed, such as v5e:16x16, unless the config is one of "
            f"{FILE}:NAME@POD"
        )
    return pods.PODS[pod]


def names(only: str = "") -> list[str]:
    """Returns NAME@POD of every config on every pod, if it contains `only`."""
    every = [f"{name}@{pod}" for name in pods.CONFIGS for pod in pods.PODS]
    return [name for name in every if only in name]


def run(results: Path, only: str, phases: Sequence[str]) -> list[dict[str, Any]]:
    """Compiles what is missing; returns all results that are there, in the order of the table.

    Args:
      results: directory of the results.
      only: what NAME@POD must contain.
      phases: names of phases; empty for all.

    Raises:
      UserError: nothing is called so, or `results` cannot be written.
    """
    wanted = names(only)
    if not wanted:
        raise UserError(f"--only={only!r} names none of {', '.join(names())}")
    _check_phases(wanted, phases)
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--results={results} cannot be written ({error.strerror})") from error
    for name in wanted:
        config = pods.get_config(name)
        missing = [
            phase.name
            for phase in plan(config)
            if (not phases or phase.name in phases) and read(results, name, phase) is None
        ]
        if not missing:
            continue
        where = chips.topology(topology_of(f"{FILE}:{name}"))
        job = precompile_program.make_job(f"{FILE}:{name}", config, where, None)
        for prepared in job.phases:
            phase = prepared.phase
            if phase.name in missing:
                told = f"{time.strftime('%H:%M:%S')}  {name} {phase.name}"
                print(told, file=sys.stderr, flush=True)
                write(path_of(results, name, phase.name), precompile_program.run(job, prepared))
    found = [
        read(results, name, phase) for name in names() for phase in plan(pods.get_config(name))
    ]
    return [entry for entry in found if entry is not None]


def _check_phases(wanted: Sequence[str], phases: Sequence[str]) -> None:
    plans = [plan(pods.get_config(name)) for name in wanted] if phases else []
    known = list(dict.fromkeys(phase.name for each in plans for phase in each))
    for phase in phases:
        if phase not in known:
            raise UserError(f"--phase={phase}: none of these configs has such a phase; of {known}")


def chosen(
    entries: Sequence[dict[str, Any]], only: str, phases: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the results that `run` was asked for, of all that it returns; arguments as there."""
    wanted = {f"{FILE}:{name}" for name in names(only)}
    return [
        entry
        for entry in entries
        if entry["config"] in wanted and (not phases or entry["phase"] in phases)
    ]


def plan(config: ConfigDict) -> tuple[Phase, ...]:
    """Returns the phases of a config."""
    return training_phases.plan(configs.resolve(config))


def path_of(results: Path, name: str, phase: str) -> Path:
    """Returns the file of a result."""
    return results / f"{name}{'-' if phase else ''}{phase}.json"


def write(path: Path, entry: dict[str, Any]) -> None:
    """Keeps a result.

    Raises:
      UserError: the file cannot be written.
    """
    write_atomically(path, json.dumps(entry, indent=1) + "\n")


def read(results: Path, name: str, phase: Phase) -> dict[str, Any] | None:
    """Returns the result of a phase; None where there is none, or of another config or capacity of
    a chip than now.

    A result from before there were digests is taken for one of this config where its settings are
    those of it, and is given the digest.

    Raises:
      UserError: the file is no result.
    """
    path = path_of(results, name, phase.name)
    if not path.exists():
        return None
    try:
        entry: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wanted = precompile_program.settings(phase.config, entry["chips"])
        alike = all(entry[key] == value for key, value in wanted.items())
        chip = chips.topology(entry["topology"]).chip
        alike = alike and entry["memory"]["capacity"] == chip.memory
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no result of precompile; delete it") from error
    digest = precompile_program.digest(phase.config)
    if not alike or entry.get("digest", digest) != digest:
        return None
    if "digest" not in entry:
        entry["digest"] = digest
        write(path, entry)
    return entry
