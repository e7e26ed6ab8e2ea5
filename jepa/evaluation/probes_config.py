"""The section `probe` of a config: its defaults and its checks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jepa.errors import UserError, check_keys
from jepa.evaluation import probes_attentive, probes_features, probes_finetune

PROBES = ("knn", "linear", "attentive", "finetune")
POOLING = ("mean", "all")


def default_probe() -> ConfigDict:
    """The section `probe` with its defaults.

    Keys:
      train_split, test_split: whose labels fit, and whose measure.
      labels: names of labels; () for `data.label`.
      train_labels: most labelled training clips, the same number of each class; None for all.
      test_count: test on the first so many clips only; None for all.
      held_out: share of the training labels that chooses a probe's settings.
      seeds: how often labels are drawn and held out anew; numbers are means over these.
      seed: the first of them.
      batch_size: clips that are embedded at once.
      pooling: "mean" (the method's pooled vector) or "all" (every token, one behind the other).
      most_features: refuse vectors of more numbers than this; None for any. Pixels are exempt.
      storage: type of the tokens on disk: "float16", "bfloat16" or "float32".
      knn: `k`, `temperature`; see `probes_knn`.
      linear: `l2` penalties, most `iterations`; see `probes_linear`.
      attentive: see `probes_attentive.Options`; `seeds` of its own, for it is slow.
      finetune: see `probes_finetune.Options`; `seeds` of its own too.
      pixel_size: frames of the pixel control are scaled down to this.
    """
    attentive = dataclasses.asdict(probes_attentive.Options())
    del attentive["dtype"]
    return ConfigDict(
        {
            "train_split": "train",
            "test_split": "validation",
            "labels": (),
            "train_labels": placeholder(int),
            "test_count": placeholder(int),
            "held_out": 0.2,
            "seeds": 3,
            "seed": 0,
            "batch_size": 64,
            "pooling": "mean",
            "most_features": placeholder(int),
            "storage": "float16",
            "knn": {"k": 20, "temperature": 0.07},
            "linear": {
                "l2": (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 1.0),
                "iterations": 300,
            },
            "attentive": {**attentive, "seeds": 1},
            "finetune": {**dataclasses.asdict(probes_finetune.Options()), "seeds": 1},
            "pixel_size": 32,
        }
    )


def check(probe: ConfigDict) -> None:
    """Raises UserError for a key of the section that does not exist, or a value out of range."""
    known = default_probe()
    check_keys("probe", probe, known)
    for key in known:
        if key not in probe:
            raise UserError(
                f"config.probe.{key} is missing; start from "
                "jepa.evaluation.probes_config.default_probe()"
            )
    for key, choices in (("pooling", POOLING), ("storage", probes_features.STORAGE)):
        if probe[key] not in choices:
            raise UserError(f"config.probe.{key} is {probe[key]!r}; use one of {choices}")
    for path, least in (
        ("train_labels", 2), ("test_count", 1), ("most_features", 1), ("seeds", 1), ("seed", 0),
        ("batch_size", 1), ("pixel_size", 1), ("knn.k", 1), ("linear.iterations", 1),
        ("attentive.depth", 1), ("attentive.heads", 1), ("attentive.epochs", 1),
        ("attentive.batch_size", 1), ("attentive.seeds", 1), ("finetune.seeds", 1),
        ("finetune.epochs", 1), ("finetune.batch_size", 1), ("finetune.weight_decay", 0),
    ):  # fmt: skip
        value: Any = probe
        for part in path.split("."):
            value = value[part]
        if value is not None and value < least:
            raise UserError(f"config.probe.{path} is {value}; make it at least {least}")
    for path, value in (("held_out", probe.held_out), ("knn.temperature", probe.knn.temperature)):
        if not 0 < value < 1:
            raise UserError(f"config.probe.{path} is {value}; make it above 0 and below 1")
    if not 0 < probe.finetune.layer_decay <= 1 or not 0 <= probe.finetune.label_smoothing < 1:
        raise UserError(
            f"config.probe.finetune has layer_decay {probe.finetune.layer_decay} and "
            f"label_smoothing {probe.finetune.label_smoothing}; give one above 0 and at most 1, "
            "and one of at least 0 and below 1"
        )
    for path, values in (
        ("linear.l2", probe.linear.l2),
        ("attentive.learning_rates", probe.attentive.learning_rates),
        ("finetune.learning_rates", probe.finetune.learning_rates),
    ):
        if not _finite(values) or min(values) <= 0:
            raise UserError(f"config.probe.{path} is {tuple(values)}; give positive numbers")
    decays = probe.attentive.weight_decays
    if not _finite(decays) or min(decays) < 0:
        raise UserError(
            f"config.probe.attentive.weight_decays is {tuple(decays)}; give numbers of at least 0"
        )


def _finite(values: Sequence[Any]) -> bool:
    """Whether these are numbers, at least one, and all finite."""
    return bool(values) and all(
        isinstance(value, (int, float)) and math.isfinite(value) for value in values
    )
