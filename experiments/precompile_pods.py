"""Every config of configs/pods.py on every pod: each result a file, so that a table can go on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs import pods
from experiments import precompile_program
from jepa.data.storage import write_atomically
from jepa.errors import UserError
from jepa.parallel import chips

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
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--results={results} cannot be written ({error.strerror})") from error
    for name in wanted:
        where = chips.topology(topology_of(f"{FILE}:{name}"))
        config = pods.get_config(name)
        told = [phase["name"] for phase in config.get("phases", ())] or [""]
        missing = [
            phase
            for phase in told
            if (not phases or phase in phases) and not path_of(results, name, phase).exists()
        ]
        if not missing:
            continue
        job = precompile_program.make_job(f"{FILE}:{name}", config, where, None)
        for prepared in job.phases:
            phase = prepared.phase.name
            if phase in missing:
                print(f"{time.strftime('%H:%M:%S')}  {name} {phase}", file=sys.stderr, flush=True)
                text = json.dumps(precompile_program.run(job, prepared), indent=1) + "\n"
                write_atomically(path_of(results, name, phase), text.encode())
    return list(read(results))


def path_of(results: Path, name: str, phase: str) -> Path:
    """Returns the file of a result."""
    return results / f"{name}{'-' if phase else ''}{phase}.json"


def read(results: Path) -> Iterator[dict[str, Any]]:
    """Yields the results that are there, in the order of the table.

    Raises:
      UserError: a file is no result.
    """
    for name in names():
        for phase in [p["name"] for p in pods.get_config(name).get("phases", ())] or [""]:
            path = path_of(results, name, phase)
            if not path.exists():
                continue
            try:
                yield json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{path} is no result of precompile; delete it") from error
