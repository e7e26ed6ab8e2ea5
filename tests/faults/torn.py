"""Checkpoints that were torn, truncated or flipped: the one before is used, or nothing is lost."""

from __future__ import annotations

import logging
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jepa.parallel import mesh as meshes
from jepa.training.checkpoints import Checkpoints
from jepa.training.state import TrainState
from tests.faults import damage
from tests.faults.harness import demand

DATA = {7: {"position": 56, "digests": ["abc"]}, 8: {"position": 64, "digests": ["abc"]}}
KINDS = {**damage.KINDS, "delete": None}


class _Said(logging.Handler):
    """What was logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def kind_of_file(path: Path) -> str:
    """The part of a checkpoint that a file is: its path, with names of chunks left out."""
    parts = [part if len(part) < 32 else "..." for part in path.parts]
    return "/".join(parts)


def harm(path: Path, kind: str, rng: random.Random) -> None:
    """Damages a file for good."""
    data = path.read_bytes()
    if kind == "delete":
        path.unlink()
        return
    other = data
    while other == data:
        other = damage.KINDS[kind](data, rng)
    path.write_bytes(other)


def toy_state() -> Any:
    """A state of a few arrays on two devices, or on one where there are no more."""
    devices = jax.devices()[:2]
    mesh = meshes.make_mesh({"data": len(devices)}, devices)
    whole = NamedSharding(mesh, PartitionSpec())
    cut = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    kernel = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    count = jax.device_put(np.int32(3), whole)
    return TrainState(
        step=count,
        params={"kernel": jax.device_put(kernel, cut)},
        target_params={"kernel": jax.device_put(kernel / 2, whole)},
        opt_state=(jax.device_put(np.full(3, 0.5, np.float32), whole),),
        method_state={},
        skipped=count,
        skipped_in_a_row=count,
    )


def damage_checkpoints(
    directory: Path, state: Any, *, seed: int, rounds: int, kinds: tuple[str, ...] = tuple(KINDS)
) -> dict[str, Any]:
    """Damages each file of a checkpoint in each way, `rounds` times, and restores.

    What comes back must be the damaged checkpoint with every bit of it right (the damage hit
    nothing that counts), or the one before it, and then a warning has named the damaged one.

    Args:
        directory: where to work.
        state: the train state of step 8; that of step 7 is another.
        seed: of the places.
        rounds: how often, for each file and kind of damage.
        kinds: of damage, some of `KINDS`.
    """
    before = jax.tree.map(lambda x: x + np.ones((), x.dtype), state)
    states = {7: before, 8: state}
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    whole = directory / "whole"
    saved = Checkpoints(whole, keep_last=2)
    for step, each in states.items():
        saved.save(step, each, DATA[step], {"seed": 0})
    saved.close()
    files = sorted(p.relative_to(whole / "8") for p in (whole / "8").rglob("*") if p.is_file())
    rng, outcomes = random.Random(seed), Counter()
    for file in files:
        for kind in kinds:
            for _ in range(rounds):
                place = directory / "run" / "checkpoints"
                shutil.rmtree(place.parent, ignore_errors=True)
                shutil.copytree(whole, place)
                harm(place / "8" / file, kind, rng)
                step = _restored(place, shapes, states, f"{file}, {kind}")
                outcomes["the one before" if step == 7 else "nothing that counts was hit"] += 1
                outcomes[f"{kind_of_file(file)}: step {step}"] += 1
    return {"files": len(files), "damaged": rounds * len(files) * len(kinds), **outcomes}


def _restored(place: Path, shapes: Any, states: dict[int, Any], what: str) -> int:
    """The step that was restored; Failure if it is not what was saved, or nothing was said."""
    said, log = _Said(), logging.getLogger("jepa")
    log.addHandler(said)
    checkpoints = Checkpoints(place, keep_last=2)
    try:
        restored = checkpoints.restore_latest(shapes)
        known = checkpoints.steps()
    finally:
        checkpoints.close()
        log.removeHandler(said)
    demand(restored is not None, f"{what}: nothing was restored")
    step = restored.step
    demand(restored.data == DATA[step], f"{what}: the loader goes on at {restored.data}")
    equal = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), *(
        (restored.state, states[step])
    ))  # fmt: skip
    demand(all(jax.tree.leaves(equal)), f"{what}: other values at step {step}")
    if step == 7:
        warned = any("checkpoint 8 in" in line and "damaged" in line for line in said.lines)
        warned = warned or 8 not in known  # it does not look like a checkpoint at all any more
        demand(warned, f"{what}: nobody was told ({said.lines})")
    return step
