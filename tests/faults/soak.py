"""Does to runs what machines do to them, and checks that no work is lost and nothing hangs.

    python -m tests.faults.soak --out=DIR [--kills=50] [--only=kills,two_runs] [--seed=0]

A tiny model trains on real clips in processes of its own. What was done to it and what came of
it is printed and written to DIR/soak.json; the exit code is 1 if anything failed. `make soak`.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.benchmarks import machine
from jepa.errors import UserError
from tests.faults import kills, scenarios, torn
from tests.faults.harness import Run, make_data, same_end


class Soak:
    """The scenarios, on one set of clips and against one undisturbed run."""

    def __init__(self, directory: Path, args: argparse.Namespace):
        """Writes the clips and trains without disturbance."""
        self.directory, self.args = directory, args
        tell("writing clips, and training undisturbed")
        self.data = make_data(directory / "world")
        self.undisturbed = self.run("undisturbed")
        kills.measure_startup(self.undisturbed)
        # Once more, with everything compiled: it also says that a run can be repeated at all.
        again = self.run("again")
        self.startup = kills.measure_startup(again)
        same_end(again, self.undisturbed)

    def run(self, name: str, **settings: Any) -> Run:
        """A fresh run."""
        return Run(self.directory / name, self.data, model=self.args.model, **settings)

    def _interrupt(self, name: str, count: int, how: Callable[[Run], Any]) -> dict[str, Any]:
        return kills.interrupt(
            kills.runs(self.directory, name, self.data, self.args.model),
            self.undisturbed,
            count=count,
            seed=self.args.seed,
            startup=self.startup,
            how=how,
            tell=tell,
        )

    def kills(self) -> dict[str, Any]:
        """kill -9 while the process starts, in a step, during a save."""
        return self._interrupt("kill", self.args.kills, kills.kill)

    def sigterm(self) -> dict[str, Any]:
        """SIGTERM with a deadline, at the same moments."""
        found = self._interrupt("sigterm", self.args.terms, kills.Terminate(self.args.deadline))
        return {**found, "slowest_seconds": max(each["seconds"] for each in found["all"])}

    def checkpoints(self) -> dict[str, Any]:
        """Each file of a checkpoint torn, truncated, flipped, swapped: the one before is used."""
        return torn.damage_checkpoints(
            self.directory / "torn", torn.toy_state(), seed=self.args.seed, rounds=self.args.rounds
        )


def _scenario(name: str) -> Callable[[Soak], dict[str, Any]]:
    function = scenarios.SCENARIOS[name]

    @functools.wraps(function)
    def call(soak: Soak) -> dict[str, Any]:
        return function(soak.run, soak.undisturbed, soak.directory)

    return call


SCENARIOS: dict[str, Callable[[Soak], dict[str, Any]]] = {
    "kills": Soak.kills,
    "sigterm": Soak.sigterm,
    "checkpoints": Soak.checkpoints,
    **{name: _scenario(name) for name in scenarios.SCENARIOS},
}


def tell(text: str) -> None:
    """Prints a line with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def main() -> int:
    """Runs the scenarios; returns how many of them failed, at most 1."""
    args = _parser().parse_args()
    wanted = args.only.split(",") if args.only else list(SCENARIOS)
    for name in wanted:
        if name not in SCENARIOS:
            raise UserError(f"--only has {name!r}; known are {', '.join(SCENARIOS)}")
    directory = Path(args.out)
    work = directory / "runs"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    soak, results = Soak(work, args), {}
    for name in wanted:
        begin = time.monotonic()
        tell(f"{name}: {_title(SCENARIOS[name])}")
        try:
            results[name] = {"passed": True, **SCENARIOS[name](soak)}
        except Exception as error:
            traceback.print_exc()
            results[name] = {"passed": False, "error": f"{type(error).__name__}: {error}"}
        results[name]["seconds_taken"] = round(time.monotonic() - begin)
        _write(directory, args, results)
    print(summary(results))
    print(f"written to {directory / 'soak.json'}")
    return int(not all(each["passed"] for each in results.values()))


def _title(scenario: Callable[[Soak], Any]) -> str:
    return (scenario.__doc__ or "").splitlines()[0]


def _parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", required=True, metavar="DIR", help="where the runs and JSON go")
    parser.add_argument(
        "--model", choices=("linear", "vl_jepa"), default="linear", help="what to train"
    )
    parser.add_argument("--kills", type=int, default=50, help="kill -9 so many times")
    parser.add_argument("--terms", type=int, default=10, help="SIGTERM so many times")
    parser.add_argument("--rounds", type=int, default=3, help="damage to each file, in each way")
    parser.add_argument("--deadline", type=float, default=60, help="seconds after SIGTERM")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument("--only", default="", help=f"some of {','.join(SCENARIOS)}")
    return parser


def _write(directory: Path, args: argparse.Namespace, results: dict[str, Any]) -> None:
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "settings": vars(args),
        "results": results,
    }
    (directory / "soak.json").write_text(json.dumps(report, indent=1, default=str) + "\n")


def summary(results: dict[str, Any]) -> str:
    """A line a scenario: whether it passed, and its figures."""
    lines = []
    for name, found in results.items():
        hidden = ("passed", "all", "error")
        figures = ", ".join(f"{k} {v}" for k, v in found.items() if k not in hidden)
        verdict = "skipped" if "skipped" in found else "passed"
        verdict = verdict if found["passed"] else f"FAILED: {found['error']}"
        lines.append(f"{name:14} {verdict:8} {figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    cli.run(main)
