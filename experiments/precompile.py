"""Compiles the train step for a pod that is not there, and says what it needs and what bounds it.

    python -m experiments.precompile --config=configs/v_jepa_2/pretrain.py:huge \
        --topology=v5e:16x16 [--mesh=fsdp=256 --mesh=data=4,fsdp=64] [--out=FILE.json]
    python -m experiments.precompile --config=configs/pods.py:v_jepa_2_giant@v5p_4x4x8
    python -m experiments.precompile --all [--only=v5p] [--results=DIR] [--markdown=docs/pods.md]

No TPU, GPU or dataset is needed. For TPUs (v5e, v5p, v6e) the very program of `experiments.train`
is compiled by libtpu; for GPUs (h100:64) it is traced, and memory and time are estimates. Several
`--mesh` are compared in a table. `--all` goes through configs/pods.py, keeps each result as JSON in
`--results`, and goes on from there when it is run again; docs/pods.md has its table and says what
the numbers mean.

A program that does not fit is a result, unless `--spare=0.08` asks for a share of HBM to be left:
the exit code is then 1 where one leaves less. So it is where `--mfu=0.5` asks for more than the
roofline with communication not overlapped at all lets one reach. With `--all` both judge what
`--only` and `--phase` name. The exit code is 2 for what cannot be compiled at all: an unknown
topology, no libtpu, a mesh that does not divide.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import cli, precompile_pods, precompile_program, precompile_report, train
from jepa.errors import UserError
from jepa.parallel import chips

TOPOLOGY = flags.DEFINE_string("topology", None, "Chips, as v5e:16x16, v5p:4x4x8 or h100:64.")
MESH = flags.DEFINE_multi_string("mesh", [], "A mesh, as data=4,fsdp=64; may be given often.")
PHASE = flags.DEFINE_multi_string("phase", [], "Only these phases; may be given often.")
OUT = flags.DEFINE_string("out", None, "JSON file to write the results to.")
ALL = flags.DEFINE_bool("all", False, "Every config of configs/pods.py on every pod.")
ONLY = flags.DEFINE_string("only", "", "With --all: those whose NAME@POD contains this.")
RESULTS = flags.DEFINE_string("results", "docs/pods", "With --all: where results are kept.")
SPARE = flags.DEFINE_float("spare", None, "Share of HBM to be left, or the exit code is 1.")
MFU = flags.DEFINE_float(
    "mfu",
    None,
    "MFU to be reached, or the exit code is 1: by the roofline with communication not overlapped "
    "at all; of GPUs, whose communication is not counted, by that of the arithmetic alone.",
)
MARKDOWN = flags.DEFINE_string("markdown", None, "With --all: a document to put the table into.")


def main() -> int:
    """Runs the command line; see the module's docstring. Returns the exit code."""
    # Nothing runs here, on whatever chips this machine has.
    jax.config.update("jax_platforms", "cpu")
    if ALL.value:
        if train.CONFIG.value is not None or TOPOLOGY.value or MESH.value or OUT.value:
            raise UserError("--all takes configs and pods of configs/pods.py, and no other flags")
        entries = precompile_pods.run(Path(RESULTS.value), ONLY.value, PHASE.value)
        print(precompile_report.table(entries))
        if MARKDOWN.value:
            precompile_report.write_markdown(Path(MARKDOWN.value), entries)
        return _verdict(precompile_pods.chosen(entries, ONLY.value, PHASE.value))
    entries = _given()
    if len(MESH.value) > 1:
        print(precompile_report.table(entries))
    if OUT.value:
        write(Path(OUT.value), entries)
    return _verdict(entries)


def _verdict(entries: Sequence[Any]) -> int:
    """1 where a program does less than `--spare` and `--mfu` ask for, and says which; else 0."""
    wrong = list(precompile_report.faults(entries, SPARE.value, MFU.value))
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def _given() -> list[dict[str, Any]]:
    """Compiles what the flags name, telling each result as it is there."""
    if train.CONFIG.value is None:
        raise UserError("--config=FILE is needed, or --all (see --help)")
    name = config_name()
    if OUT.value and not Path(OUT.value).parent.is_dir():
        raise UserError(f"--out={OUT.value} cannot be written (there is no such directory)")
    where = chips.topology(TOPOLOGY.value or precompile_pods.topology_of(name))
    meshes: list[Any] = [precompile_program.parse_mesh(text) for text in MESH.value]
    jobs = [
        precompile_program.make_job(name, train.CONFIG.value, where, sizes)
        for sizes in meshes or [None]
    ]
    found = []
    for job in jobs:
        for prepared in chosen(job.phases, PHASE.value):
            found.append(precompile_program.run(job, prepared))
            print(precompile_report.page(found[-1]), flush=True)
    return found


def config_name() -> str:
    """Returns the config as the command line names it."""
    flag: Any = flags.FLAGS["config"]
    name: str = flag.config_filename
    return name


def chosen(prepared: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Returns the phases of these names; all where none is named.

    Raises:
      UserError: there is no such phase.
    """
    known = [each.phase.name for each in prepared]
    for name in names:
        if name not in known:
            raise UserError(f"--phase={name}: the config has no such phase; it has {known}")
    return [each for each in prepared if not names or each.phase.name in names]


def write(path: Path, entries: Sequence[Any]) -> None:
    """Writes results as JSON.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out={path} cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    cli.run_absl(main)
