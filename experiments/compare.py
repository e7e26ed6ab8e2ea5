"""Trains configs over several seeds, probes each and its controls, and makes one table of them.

    python -m experiments.compare --workdir=runs/fashion --seeds=0,1,2 \
        --run lejepa=configs/lejepa/fashion_mnist.py \
        --run vicreg=configs/lejepa/fashion_mnist.py:vicreg \
        --run i_jepa=configs/i_jepa/fashion_mnist.py

Each training and each probe is its own process; what is finished is not done again. The section
`probe` of each config is the protocol; see docs/evaluation.md. `--set` gives all of them another
value of a key. The table is printed and kept as WORKDIR/compare.md, its numbers as compare.json.
"""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments import cli, repeated, train
from experiments.processes import Stages, Stopped, hint
from jepa.data import config as data_configs
from jepa.data import storage
from jepa.errors import UserError
from jepa.evaluation import probes_config, probes_results, results
from jepa.training import phases
from jepa.training import workdir as workdirs

# --workdir and --devices are those of training, --seeds and --set those of `repeated`.
RUNS = flags.DEFINE_multi_string("run", None, "NAME=CONFIG or NAME=CONFIG:ARGUMENT; one for each.")
MEASURES = flags.DEFINE_list("measures", ["linear", "knn"], "Probes to measure by.")
WITHOUT = flags.DEFINE_list(
    "without", [], "Also measure on clips with this taken away: shuffled, single, blank."
)
PIXELS = "pixels"
_CONTROLS = tuple(name for name in data_configs.CHOICES["frame_control"] if name != "none")
FILE, TABLE = "compare.json", "compare.md"


@dataclasses.dataclass(frozen=True)
class Run:
    """A config, trained from one seed.

    Attributes:
      name: of the config.
      seed: of the run.
      directory: the workdir.
      arguments: the flags that give a stage this config, seed and workdir.
    """

    name: str
    seed: int
    directory: Path
    arguments: tuple[str, ...]

    def do(self, stages: Stages, measures: Sequence[str], without: Sequence[str]) -> None:
        """Trains, and measures what was trained, its random start, and pixels; what is not yet."""
        label = f"{self.name}, seed {self.seed}"
        step = workdirs.finished_step(self.directory)
        if step is None:
            stages.run(f"train {label}", "experiments.train", self.arguments)
        else:
            stages.skip(f"train {label}", f"{self.directory} holds step {step}")
        probes = (*self.arguments, f"--probes={','.join(measures)}")
        # Pixels read the same from every seed: what is measured differs in the labels drawn alone.
        stages.run(f"probe {label}", "experiments.probe", probes)
        # Pixels have no network that other probes could read or tune.
        plain = [name for name in measures if name in ("knn", "linear")]
        controls = [*probes, "--random_init", *(["--pixels"] if plain == list(measures) else [])]
        stages.run(f"probe the controls of {label}", "experiments.probe", controls)
        if plain and plain != list(measures):
            pixels = (*self.arguments, f"--probes={','.join(plain)}", "--pixels")
            stages.run(f"probe the pixels of {label}", "experiments.probe", pixels)
        for control in without:
            less = (*probes, f"--frame_control={control}")
            stages.run(f"probe {label}, {control}", "experiments.probe", less)


def plan(
    runs: Sequence[str], seeds: Sequence[str], directory: Path, more: Sequence[str]
) -> list[Run]:
    """Returns the runs, all configs with the first seed before any with the second.

    Args:
      runs: NAME=CONFIG each.
      seeds: integers.
      directory: where their workdirs go.
      more: flags of every stage.

    Raises:
      UserError: a run without a name, two of one name, or a seed that is none.
    """
    if not runs:
        raise UserError("--run=NAME=CONFIG is needed, once for each config (see --help)")
    named: dict[str, str] = {}
    for run in runs:
        name, equals, config = run.partition("=")
        if not equals or not config or not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"--run={run}: write it as NAME=CONFIG, a name of letters and digits")
        if name in named:
            raise UserError(f"--run={run}: there is a run of that name already; give it another")
        named[name] = config
    repeated.check_seeds(seeds)
    made = []
    for seed in seeds:
        for name, config in named.items():
            where = directory / name / f"seed{seed}"
            arguments = (f"--config={config}", f"--workdir={where}", f"--config.seed={seed}", *more)
            made.append(Run(name, int(seed), where, arguments))
    return made


def check_measures(measures: Sequence[str], without: Sequence[str]) -> None:
    """Raises UserError for what probes would refuse only after the first training."""
    known = probes_config.PROBES
    if not measures or set(measures) - set(known):
        raise UserError(f"--measures={','.join(measures)}: give one or more of {', '.join(known)}")
    if set(without) - set(_CONTROLS):
        raise UserError(f"--without={','.join(without)}: choose from {', '.join(_CONTROLS)}")


def summarise(directory: Path) -> dict[str, Any]:
    """Returns what the workdirs under a directory found.

    `runs.NAME.ENCODER.LABEL.PROBE` is `{"by_seed": {seed: accuracy}, "mean", "sd", "features"}`,
    `runs.NAME.seconds` the time of the training steps by seed.

    Raises:
      UserError: there is nothing.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.glob(f"*/seed*/{probes_results.FILE}")):
        name, seed = path.parts[-3], path.parts[-2].removeprefix("seed")
        run = found.setdefault(name, {"seconds": {}, "encoders": {}})
        run["seconds"][seed] = _seconds(path.parent)
        for encoder, label, probe, numbers in _numbers(json.loads(path.read_text())):
            place = run["encoders"].setdefault(encoder, {}).setdefault(label, {})
            cell = place.setdefault(probe, {"by_seed": {}, "features": numbers["features"]})
            cell["by_seed"][seed] = numbers["accuracy"]["value"]
    if not found:
        raise UserError(
            f"{directory} holds no measured run; name the --workdir of one, or measure one first"
        )
    for run in found.values():
        for labels in run["encoders"].values():
            for probes in labels.values():
                for cell in probes.values():
                    values = list(cell["by_seed"].values())
                    cell["mean"] = statistics.fmean(values)
                    cell["sd"] = statistics.stdev(values) if len(values) > 1 else None
    return {"version": 1, "runs": found}


def _seconds(directory: Path) -> float | None:
    """The time of the training's steps, where its log says it."""
    config = ConfigDict(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    rows = results.history(directory)
    return results.training(rows, phases.batch_at(config)).get("seconds")


def _numbers(file: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    for encoder, about in file["encoders"].items():
        for label, probes in about["labels"].items():
            for probe, numbers in probes.items():
                yield encoder, label, probe, numbers


def table(summary: Mapping[str, Any]) -> str:
    """Returns accuracies in per cent as a Markdown table, a row for each encoder.

    Behind a mean over seeds is their standard deviation. Pixels are a row of their own, of the
    first run that has them.
    """
    runs: Mapping[str, Any] = summary["runs"]
    columns = sorted(
        {
            (label, probe)
            for run in runs.values()
            for labels in run["encoders"].values()
            for label, probes in labels.items()
            for probe in probes
        }
    )
    lines = [["features of", "numbers", "minutes", *(f"{a}, {b}" for a, b in columns)]]
    lines.append(["---"] + ["---:"] * (2 + len(columns)))
    pixels = [run["encoders"][PIXELS] for run in runs.values() if PIXELS in run["encoders"]]
    if pixels:
        lines.append(_row("raw pixels", pixels[0], columns, ""))
    for name, run in runs.items():
        # Controls first, whatever was measured first.
        for encoder in sorted(
            run["encoders"], key=lambda it: it.startswith(probes_results.TRAINED)
        ):
            if encoder != PIXELS:
                labels = run["encoders"][encoder]
                what = encoder.replace("_", " ").replace(probes_results.TRAINED, "").strip(" ,")
                title = f"{name}, {what}" if what else name
                minutes = "" if "random" in encoder else _minutes(run["seconds"])
                lines.append(_row(title, labels, columns, minutes))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(
    title: str, labels: Mapping[str, Any], columns: Sequence[tuple[str, str]], minutes: str
) -> list[str]:
    cells = [labels.get(label, {}).get(probe) for label, probe in columns]
    widths = {str(number) for cell in cells if cell for number in cell["features"]}
    return [title, ", ".join(sorted(widths)), minutes, *map(_cell, cells)]


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "-"
    spread = "" if cell["sd"] is None else f" ± {100 * cell['sd']:.1f}"
    return f"{100 * cell['mean']:.1f}{spread}"


def _minutes(seconds: Mapping[str, float | None]) -> str:
    known = [value for value in seconds.values() if value is not None]
    return f"{statistics.fmean(known) / 60:.1f}" if known else ""


def main() -> int:
    """Runs what is not done yet; returns the exit code."""
    if not train.WORKDIR.value:
        raise UserError("--workdir=DIR is needed (see --help)")
    check_measures(MEASURES.value, WITHOUT.value)
    directory = Path(train.WORKDIR.value)
    more = [f"--config.{pair}" for pair in repeated.SET.value]
    if train.DEVICES.value is not None:
        more.append(f"--devices={train.DEVICES.value}")
    runs = plan(RUNS.value or [], repeated.seeds(["0"]), directory, more)
    stages = Stages()
    try:
        with stages.forwarding():
            for run in runs:
                run.do(stages, MEASURES.value, WITHOUT.value)
    except Stopped as stopped:
        return hint(stopped, stages)
    summary = summarise(directory)
    storage.write_atomically(directory / FILE, json.dumps(summary, indent=2) + "\n")
    storage.write_atomically(directory / TABLE, table(summary) + "\n")
    print(f"done: {stages.summary()}")
    print(table(summary))
    print(f"numbers: {directory / FILE}", flush=True)
    return 0


if __name__ == "__main__":
    cli.run_absl(main)
