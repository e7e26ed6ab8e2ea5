"""Trains a tiny model on real clips in a process of its own, as `experiments.train` does.

    python -m tests.faults.child WORKDIR '{"steps": 48, "config": {"data.path": ...}, "clock": 7}'

At the end it writes WORKDIR/digest.json: the SHA-256 of every array of the train state. Keys:
`steps`; `model`: "linear" (`tests.faults.linear`) or "vl_jepa" (`tests.experiments.tiny`);
`config`: dotted keys of the config; `clock`: the seed of a clock that jumps, or None.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import cli, train
from jepa.training import config as configs
from tests.experiments import tiny


def jumping_clock(seed: int) -> None:
    """Lets `time.time` jump to and fro by up to a year, at every call."""
    drawn, real = random.Random(seed), time.time
    year = 365 * 24 * 3600.0

    def jumping() -> float:
        return real() + drawn.uniform(-year, year)

    time.time = jumping
    time.time_ns = lambda: int(jumping() * 1e9)


def get_config(settings: dict):
    """The tiny config with what `settings` say."""
    config = tiny.get_config()
    if settings["model"] == "linear":
        config.method = "tests.faults.linear.Linear"
        config.model, config.loss = ConfigDict({"width": 16}), ConfigDict()
        config.data.streams = ("video",)
        config.optimizer.name = "adamw"
        config.ema = configs.default_ema_config()
    config.train.update(steps=settings["steps"], save_every=6, keep_last=3, log_records=True)
    config.train.health_every = 0
    with config.ignore_type():
        for path, value in settings.get("config", {}).items():
            section, _, key = path.rpartition(".")
            (config[section] if section else config)[key] = value
    return config


def digest(state) -> dict[str, str]:
    """The SHA-256 of every array, by its path."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        array = np.asarray(leaf)
        said = f"{array.shape} {array.dtype}".encode()
        name = jax.tree_util.keystr(path)
        found[name] = hashlib.sha256(said + np.ascontiguousarray(array).tobytes()).hexdigest()
    return found


def main() -> None:
    """Trains; see the module's docstring."""
    directory, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    if settings.get("clock") is not None:
        jumping_clock(settings["clock"])
    result = train.main(get_config(settings), directory)
    if result.finished:
        text = json.dumps(digest(result.state), indent=1)
        (directory / "digest.json").write_text(text)


if __name__ == "__main__":
    cli.run(main)
