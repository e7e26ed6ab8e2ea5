"""Measures parts of the library on this machine.

    python -m experiments.benchmark --suite=loader [--out=FILE.json]
    python -m experiments.benchmark --suite=losses [--parts=infonce,sigreg] [--out=FILE.json]
    python -m experiments.benchmark --suite=health [--vit=tiny] [--out=FILE.json]
    python -m experiments.benchmark --suite=compile [--rounds=1] [--out=FILE.json]
    python -m experiments.benchmark --suite=saving [--saves=4] [--out=FILE.json]
    python -m experiments.benchmark --markdown=FILE.json

Prints a line a measurement and writes all of them, with the machine and the versions, as JSON;
`--markdown` prints such a file as a table for a document. To add a suite, write a module beside
`experiments.benchmarks.loader` with its three functions and name it in `SUITES`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import cli
from experiments.benchmarks import compiling, health, loader, losses, machine, saving
from experiments.benchmarks.measurement import Measurement, markdown, read, table
from jepa.errors import UserError

SUITES: dict[str, ModuleType] = {
    "compile": compiling,
    "health": health,
    "loader": loader,
    "losses": losses,
    "saving": saving,
}
_VERSIONS = ("jax", "grain", "av", "array_record", "numpy", "torch", "libtpu")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one suite, or print what one has found; see the module's docstring."""
    args = _parser().parse_args(argv)
    if args.markdown:
        print(markdown(read(Path(args.markdown))))
        return
    suite = SUITES[args.suite]
    if args.rounds < 1:
        raise UserError(f"--rounds is {args.rounds}; it must be at least 1")
    suite.check(args)
    if args.out and not Path(args.out).parent.is_dir():
        raise UserError(f"--out={args.out} cannot be written (there is no such directory)")
    found = suite.suite(args)
    print(table(found))
    if args.out:
        _write(Path(args.out), args, found)


def _parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--suite", choices=sorted(SUITES))
    what.add_argument("--markdown", metavar="FILE", help="print this JSON file as a table")
    parser.add_argument("--out", metavar="FILE", help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, of which the median")
    for suite in SUITES.values():
        suite.add_flags(parser)
    return parser


def _write(path: Path, args: argparse.Namespace, found: Sequence[Measurement]) -> None:
    report: dict[str, Any] = {
        "suite": args.suite,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "versions": _versions(),
        "settings": {k: v for k, v in vars(args).items() if k not in ("suite", "out", "markdown")},
        "measurements": [dataclasses.asdict(item) for item in found],
    }
    try:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out={path} cannot be written ({error.strerror})") from error


def _versions() -> dict[str, str]:
    """Versions of the packages that are there; torch and libtpu need not be."""
    path = [*sys.path, str(Path(sys.prefix) / "libtpu")]
    if "TPU_LIBRARY_PATH" in os.environ:
        path.insert(0, str(Path(os.environ["TPU_LIBRARY_PATH"]).parents[1]))
    found: dict[str, str] = {}
    for name in _VERSIONS:
        for distribution in metadata.distributions(name=name, path=path):
            found.setdefault(name, distribution.version)
    return found


if __name__ == "__main__":
    cli.run(main)
