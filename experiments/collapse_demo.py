"""Trains small models that are healthy and models that are made to collapse, and compares them.

    python -m experiments.collapse_demo --out=DIR [--seeds=5] [--steps=200] [--long_steps=3000] \
        [--data=idx:/usr/share/datasets/fashion-mnist]

Four kinds of runs, on real pictures of clothes, each through the train loop as it is:

    i-jepa                 targets from a moving average, no gradient into them
    i-jepa, no teacher     targets from the encoder itself, with the gradient: a constant is perfect
    lejepa                 views agree, and SIGReg spreads them
    lejepa, lambda 0       views agree, and nothing spreads them

Writes table.md (what the diagnostics said of each run, and when), collapse.png (the measures of
all seeds), loss.png (of the longer runs: the loss, and what the features are worth) and the runs
themselves. About eight minutes on two idle CPU cores.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import cli, collapse_plots, train
from jepa import methods
from jepa.data import loader, storage
from jepa.data.config import default_data_config
from jepa.data.evalset import EvalSet
from jepa.errors import UserError
from jepa.evaluation import probes_knn
from jepa.methods import i_jepa, lejepa
from jepa.methods.base import Method, Params, Requirements
from jepa.parallel import mesh as meshes
from jepa.training import collapse, loop
from jepa.training import config as configs

FASHION = "idx:/usr/share/datasets/fashion-mnist"
# Pictures that neighbours are looked for among, and pictures that they are found for.
_KNOWN, _ASKED = 4000, 1000
_BATCH = 32


class WithoutTeacher(i_jepa.IJEPA):
    """I-JEPA with all that keeps it from collapse taken away. For demonstrations only."""

    def __init__(self, config: ConfigDict):
        """As I-JEPA, but without a moving average."""
        super().__init__(config)
        self.requirements = Requirements()

    def goal(self, params: Params, target_params: Params | None, video: jax.Array) -> jax.Array:
        """The encoder's own tokens, which the gradient may change to be easy to predict."""
        del target_params
        return self.normalised(self.tokens(params, video), self.encoder.width)


def _base(data: str, seed: int, steps: int) -> ConfigDict:
    config = ConfigDict({"seed": seed, "dtype": "float32", "ema": None})
    config.mesh = configs.default_mesh_config()
    config.data = default_data_config()
    config.data.update(path=data, streams=("video",), frames=1, size=28)
    config.optimizer = configs.default_optimizer_config()
    config.optimizer.update(learning_rate=1e-3, warmup_steps=20)
    config.train = configs.default_train_config()
    config.train.update(
        steps=steps, global_batch=_BATCH, log_every=10, health_every=20, save_every=0
    )
    return config


def i_jepa_config(data: str, seed: int, steps: int, *, teacher: bool) -> ConfigDict:
    """Returns the config of a run of I-JEPA, healthy or not."""
    config = _base(data, seed, steps)
    name = "jepa.methods.i_jepa.IJEPA" if teacher else "experiments.collapse_demo.WithoutTeacher"
    config.method = name
    config.data.update(streams=("video", "masks"), patch=7, masks={"sampler": "multiblock"})
    config.model = i_jepa.default_model()
    config.model.encoder.update(patch=7, width=32, depth=2, heads=2, gelu="tanh")
    config.model.predictor.update(width=16, depth=2, heads=2, gelu="tanh")
    config.loss = i_jepa.default_loss()
    if teacher:
        config.ema = configs.default_ema_config()
        config.ema.update(momentum=0.99, final_momentum=1.0)
    return config


def lejepa_config(data: str, seed: int, steps: int, *, weight: float) -> ConfigDict:
    """Returns the config of a run of LeJEPA with a weight of SIGReg (lambda)."""
    config = _base(data, seed, steps)
    config.method = "jepa.methods.lejepa.LeJEPA"
    config.model = lejepa.default_model()
    plain = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarise": 0.0}
    config.model.encoder.update(patch=7, width=32, depth=2, heads=2, gelu="tanh")
    config.model.global_views.update(plain, count=2, size=28, scale=(0.3, 1.0))
    config.model.local_views.update(plain, count=2, size=14, scale=(0.05, 0.3))
    # Batch norm alone would keep every number of a constant from being constant.
    config.model.projector.update(features=16, hidden=(64,), norm="layer")
    config.loss = lejepa.default_loss()
    config.loss.sigreg_weight = weight
    config.loss.sigreg.slices = 64
    return config


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
      name: of it.
      broken: whether it is made to collapse.
      config: (data, seed, steps) -> config.
    """

    name: str
    broken: bool
    config: Callable[[str, int, int], ConfigDict]


KINDS = (
    Kind("i-jepa", False, lambda *given: i_jepa_config(*given, teacher=True)),
    Kind("i-jepa, no teacher", True, lambda *given: i_jepa_config(*given, teacher=False)),
    Kind("lejepa", False, lambda *given: lejepa_config(*given, weight=0.05)),
    Kind("lejepa, lambda 0", True, lambda *given: lejepa_config(*given, weight=0.0)),
)


class Neighbours:
    """How often the nearest pictures of a set show the same thing: what features are worth."""

    def __init__(self, data: Mapping[str, Any], method: Method):
        """Reads the pictures; `data` is the section of a config."""
        seen = {**data, "streams": ("video", "label")}
        known, asked = EvalSet(seen, "train", _KNOWN), EvalSet(seen, "test", _ASKED)
        self._labels = known.labels, asked.labels
        self._batches = [
            [(valid, np.asarray(video)) for valid, video in part.batches(500)]
            for part in (known, asked)
        ]
        self._classes = len(known.classes)
        self._embed = jax.jit(
            lambda params, state, video: method.embed(params, state, {"video": video}).pooled[
                "video"
            ]
        )

    def __call__(self, state: Any) -> dict[str, float]:
        """Returns the accuracy of the vote of 20 neighbours."""
        params = state.averaged
        known, asked = (
            np.concatenate(
                [
                    np.asarray(self._embed(params, state.method_state, video))[:valid]
                    for valid, video in batches
                ]
            )
            for batches in self._batches
        )
        labels, wanted = self._labels
        found = probes_knn.predict(known, labels, asked, classes=self._classes)
        return {"accuracy": float(np.mean(found == wanted))}


def check_labels(data: str) -> None:
    """Raises UserError for data that neighbours cannot be asked about: else the last runs would."""
    section = {**KINDS[0].config(data, 0, 1).data, "streams": ("video", "label")}
    for split in ("train", "test"):
        EvalSet(section, split, 1)


def run(config: ConfigDict, directory: Path, *, probe: bool) -> None:
    """Trains a model, with the features' worth measured on the way if `probe`.

    Raises:
      KeyboardInterrupt: the run was told to stop; the next call goes on where it stopped.
    """
    config = configs.resolve(config)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    method = methods.from_config(config)
    batches = loader.make_train_loader(
        config.data, global_batch=config.train.global_batch, seed=config.seed
    )
    evaluators = {"neighbours": Neighbours(config.data, method)} if probe else {}
    result = loop.train(
        config, directory, method=method, loader=batches, mesh=mesh, evaluators=evaluators
    )
    if not result.finished:
        raise KeyboardInterrupt  # half a run shows nothing, and the next one is not wanted


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was said of a run.

    Attributes:
      kind, seed: of the run.
      history: its measurements.
      collapsed: the step at which it was first called collapsed; None if it never was.
      seldom: the last verdict of a run that measures at the default interval of 100 steps.
      narrowing: the number of measurements at which it was called narrowing.
      last: the verdict on the last one.
    """

    kind: Kind
    seed: int
    history: list[tuple[int, dict[str, float]]]
    collapsed: int | None
    seldom: str
    narrowing: int
    last: collapse.Verdict

    @staticmethod
    def of(kind: Kind, seed: int, directory: Path) -> Outcome:
        """Reads a run's directory and judges every measurement as the run did."""
        history = collapse.read(directory)
        verdicts = [collapse.judge(history[: end + 1]) for end in range(len(history))]
        states = [verdict.state for verdict in verdicts]
        first = states.index(collapse.COLLAPSED) if collapse.COLLAPSED in states else None
        return Outcome(
            kind,
            seed,
            history,
            None if first is None else history[first][0],
            collapse.judge([one for one in history if one[0] == 1 or one[0] % 100 == 0]).state,
            states.count(collapse.NARROWING),
            verdicts[-1],
        )


def table(outcomes: Sequence[Outcome]) -> str:
    """Returns a table in Markdown: a row a kind, over its seeds."""
    lines = [
        "| run | seeds | called collapsed | first at step | so too by steps 1, 100, 200, ... alone "
        "| narrowing | last verdict, first seed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind in KINDS:
        own = [outcome for outcome in outcomes if outcome.kind == kind]
        called = [outcome.collapsed for outcome in own if outcome.collapsed is not None]
        steps = f"{min(called)} to {max(called)}" if called else "-"
        seldom = sum(outcome.seldom == collapse.COLLAPSED for outcome in own)
        narrowing = statistics.mean(outcome.narrowing for outcome in own)
        lines.append(
            f"| {kind.name} | {len(own)} | {len(called)} | {steps} | {seldom} | "
            f"{narrowing:.1f} times | {own[0].last} |"
        )
    return "\n".join(lines) + "\n"


def missed(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns what the diagnostics got wrong, in words."""
    return [
        f"{outcome.kind.name}, seed {outcome.seed}: "
        + ("not called collapsed" if outcome.kind.broken else f"called {outcome.last}")
        for outcome in outcomes
        if outcome.kind.broken != (outcome.collapsed is not None)
    ]


def main(out: Path, *, data: str, seeds: int, steps: int, long_steps: int) -> int:
    """Runs everything; the exit code is 1 if the diagnostics were wrong about a run.

    Raises:
      UserError: a run with another config lies in `out`, or there are no such data.
    """
    began = time.perf_counter()
    if long_steps:
        check_labels(data)
    outcomes = []
    for kind in KINDS:
        for seed in range(seeds):
            directory = out / "runs" / f"{_slug(kind.name)}-{seed}"
            run(kind.config(data, seed, steps), directory, probe=False)
            outcomes.append(Outcome.of(kind, seed, directory))
    longer = {}
    for kind in KINDS if long_steps else ():
        directory = out / "runs" / f"{_slug(kind.name)}-long"
        config = kind.config(data, 0, long_steps)
        config.train.update(eval_every=max(1, long_steps // 10), log_every=max(1, long_steps // 60))
        run(config, directory, probe=True)
        longer[kind.name] = _rows(directory)
    print(table(outcomes))
    with storage.storing(out):
        (out / "table.md").write_text(table(outcomes), encoding="utf-8")
        collapse_plots.write_health(
            out / "collapse.png", [(o.kind.name, o.kind.broken, o.history) for o in outcomes]
        )
        if longer:
            collapse_plots.write_losses(out / "loss.png", longer)
    wrong = missed(outcomes)
    for words in wrong:
        print(f"wrong: {words}")
    print(
        f"{len(outcomes) - len(wrong)} of {len(outcomes)} right; {time.perf_counter() - began:.0f}s"
    )
    return 1 if wrong else 0


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def _rows(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _from_arguments() -> int:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of what is written")
    parser.add_argument("--data", default=FASHION, help="a set of pictures with classes")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--long_steps", type=int, default=3000, help="of the longer runs; 0: none")
    given = parser.parse_args()
    for name, least in (("seeds", 1), ("steps", 20), ("long_steps", 0)):
        if getattr(given, name) < least:
            raise UserError(f"--{name}={getattr(given, name)}: make it at least {least}")
    train.setup(configs.resolve(KINDS[0].config(given.data, 0, given.steps)), devices=1)
    return main(
        given.out,
        data=given.data,
        seeds=given.seeds,
        steps=given.steps,
        long_steps=given.long_steps,
    )


if __name__ == "__main__":
    cli.run(_from_arguments)
