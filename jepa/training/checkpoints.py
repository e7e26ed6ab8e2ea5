"""Checkpoints: with `orbax_setup`, the only module that knows Orbax.

A checkpoint holds the train state, the loader's position and the config. Saving is asynchronous
and atomic (a directory appears under its final name when it is complete). Arrays are restored
straight into the shardings of the run that reads them, so the mesh may differ from the one that
wrote them. A fingerprint of the arrays, taken on the devices, and a CRC of the rest travel along:
what does not match them after reading counts as damaged, like what cannot be read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import shutil
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jepa.errors import UserError
from jepa.parallel import hosts
from jepa.training import disk, orbax_setup
from jepa.training.state import TrainState

log = logging.getLogger("jepa")
# Those of a run's states; they differ from phase to phase, and a step says which phase it is of.
Shapes = TrainState | Callable[[int], TrainState]
_ABOUT = {"loader", "fingerprint", "evaluated"}
_SETTLE = 10.0  # seconds that a process which fails gives a save on its way, of several processes


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint gave back.

    Attributes:
      step: of the checkpoint.
      state: arrays on the devices of this run.
      data: the loader's position.
      evaluated: whether the run had evaluated at this step when it was saved.
    """

    step: int
    state: TrainState
    data: dict[str, Any]
    evaluated: bool


@dataclasses.dataclass(frozen=True)
class _Best(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint of the best score, and of equal ones the earliest, as `best_step` does.

    Of equal ones Orbax's own policy keeps the latest, and one that has no score if none has.
    """

    score: Callable[[Mapping[str, float] | None], float]

    def should_preserve(
        self, checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo], *, context: Any
    ) -> list[bool]:
        """Returns for each checkpoint whether it is kept."""
        scores = {info.step: self.score(info.metrics) for info in checkpoints}
        best = max(sorted(scores), key=lambda step: scores[step], default=None)
        return [info.step == best and scores[best] > -math.inf for info in checkpoints]


class Checkpoints:
    """The checkpoints of a run, `DIRECTORY/<step>/`."""

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_last: int = 2,
        keep_best_metric: str | None = None,
        keep_best_mode: str = "max",
        writable: bool = True,
    ):
        """Opens the directory.

        Args:
          directory: where checkpoints lie.
          keep_last: how many of the latest to keep.
          keep_best_metric: name of an evaluation metric; the best checkpoint by it is kept too, of
            equal ones the earliest.
          keep_best_mode: `max` or `min`.
          writable: whether this is the run itself, which makes the directory and removes what a
            killed run left half saved. A reader must not: it may be a live save.
        """
        self.directory = Path(directory).absolute()
        self._evaluations: dict[int, Mapping[str, float]] = {}
        self._unfinished = False
        self._metric, self._sign = keep_best_metric, 1.0 if keep_best_mode == "max" else -1.0
        policies: list[Any] = [checkpoint_managers.LatestN(keep_last)]
        if keep_best_metric is not None:
            policies.append(_Best(self._score))
            orbax_setup.drop_damaged_evaluations(self.directory)
        orbax_setup.write_whole_arrays()
        with disk.room_for(self.directory):
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                    # Orbax writes and reads metrics only where it knows what best means.
                    best_fn=self._score if keep_best_metric is not None else None,
                    cleanup_tmp_directories=writable,
                    create=writable,
                ),
                item_names=("state", "data", "config"),
            )

    def _score(self, metrics: Mapping[str, float] | None) -> float:
        value = float((metrics or {}).get(str(self._metric), math.nan))
        return -math.inf if math.isnan(value) else self._sign * value

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def last_in_words(self) -> str:
        """Returns a sentence that names the latest checkpoint that is whole.

        Of several processes this one may be the only one that asks, and the others wait for it: it
        waits for none of them, and for a save on its way a few seconds only.
        """
        if hosts.count() == 1:
            with contextlib.suppress(UserError):
                self.wait()
        else:
            self._settle()
        whole = [step for step in self.steps() if orbax_setup.is_whole(self.directory / str(step))]
        return f"The last checkpoint is step {whole[-1]}." if whole else "There is no checkpoint."

    def _settle(self) -> None:
        """Waits a bounded time for a save on its way, whose errors now count for nothing."""

        def finish() -> None:
            with contextlib.suppress(Exception):
                self._manager.wait_until_finished()

        saving = threading.Thread(target=finish, name="settle", daemon=True)
        saving.start()
        saving.join(_SETTLE)
        self._unfinished = saving.is_alive()

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Returns whether `metrics` beat those of every checkpoint kept so far."""
        if self._metric is None or self._metric not in metrics:
            return False
        kept = [self._score(self._evaluation(step)) for step in self.steps()]
        return self._score(metrics) > max(kept, default=-math.inf)

    def _evaluation(self, step: int) -> Mapping[str, float] | None:
        # A save that is still on its way has nothing on the disk yet.
        return self._evaluations.get(step) or self._manager.metrics(step)

    def best_step(self) -> int | None:
        """Returns the step of the best checkpoint by the metric, or None where none has it."""
        scores = {step: self._score(self._evaluation(step)) for step in self.steps()}
        best = max(scores, key=lambda step: scores[step], default=None)
        return None if best is None or scores[best] == -math.inf else best

    def save(
        self,
        step: int,
        state: TrainState,
        data: Mapping[str, Any],
        config: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to write a checkpoint; returns when the arrays have left the devices.

        One of the same step is replaced.

        Args:
          step: number of steps done.
          state: the train state.
          data: the loader's position, JSON.
          config: the run's config, JSON.
          metrics: evaluation metrics of this very step, for keep-best.

        Raises:
          UserError: if this or the previous save found no room on the disk.
        """
        hosts.barrier(f"save step {step}")
        about = {
            "loader": dict(data),
            "fingerprint": int(_fingerprint(state)),
            "evaluated": bool(metrics),
        }
        about["crc"] = _crc(about)
        self._evaluations[step] = dict(metrics or {})
        with disk.room_for(self.directory):
            if step in self.steps():
                self._manager.wait_until_finished()
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(about),
                    config=ocp.args.JsonSave(dict(config)),
                ),
                metrics=dict(metrics) if metrics else None,
                force=True,
            )

    def wait(self) -> None:
        """Waits until everything is on disk; raises UserError if it did not fit."""
        with disk.room_for(self.directory):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        hosts.barrier("finish saving")

    def warm(self, state: TrainState) -> None:
        """Compiles what the first save of such a state needs, so that no step waits for it."""
        _fingerprint(state).block_until_ready()

    def busy(self) -> bool:
        """Returns whether a checkpoint is still being written."""
        return self._manager.is_saving_in_progress()

    def close(self) -> None:
        """Waits for the last save and releases Orbax's threads.

        Not for one that `last_in_words` has not seen the end of: the process is about to fail.
        """
        if self._unfinished:
            return
        with disk.room_for(self.directory):
            self._manager.close()

    def restore_latest(self, shapes: Shapes, *, set_aside: bool = True) -> Restored | None:
        """Returns the latest checkpoint that can be read, or None where there is none at all.

        Damaged ones are named in a warning and, if `set_aside`, moved to `DIRECTORY/../damaged`
        once an older one has been read. All processes take the same one: what one of them cannot
        read counts as damaged.

        Args:
          shapes: tree of ShapeDtypeStruct with shardings (`Initializer.shapes`), or what gives it
            for a step.
          set_aside: whether to move damaged ones out of the way; a reader must not.

        Raises:
          UserError: if there are checkpoints and none can be read.
        """
        damaged: list[int] = []
        for step in reversed(_of_first_process(self.steps())):
            restored, why = self._try(step, _shapes_at(shapes, step))
            if restored is None:
                log.warning("checkpoint %d in %s is damaged (%s)", step, self.directory, why)
                damaged.append(step)
                continue
            if damaged:
                log.warning("going on from checkpoint %d instead", step)
                if set_aside:
                    self._set_aside(damaged)
            return restored
        if damaged:
            raise UserError(
                f"None of the checkpoints in {self.directory} can be read (steps "
                f"{', '.join(map(str, sorted(damaged)))}); start with another --workdir, or bring "
                "back the code and files that wrote them."
            )
        return None

    def _try(self, step: int, shapes: TrainState) -> tuple[Restored | None, str]:
        """Returns a checkpoint, or None and why not; the same on every process.

        The devices of all compute the fingerprint together, so only once every process has read.
        """
        restored, noted, why = None, 0, ""
        try:
            restored, noted = self._read(step, shapes)
        except Exception as error:  # Orbax raises whatever the layer beneath it raised.
            why = _first_line(error)
        if (why := hosts.agree(f"read checkpoint {step}", why)) or restored is None:
            return None, why
        if (found := int(_fingerprint(restored.state))) != noted:
            why = f"its arrays have fingerprint {found:#x}, they were {noted:#x}"
        why = hosts.agree(f"check checkpoint {step}", why)
        return (None, why) if why else (restored, "")

    def _read(self, step: int, shapes: TrainState) -> tuple[Restored, int]:
        """Returns the checkpoint of `step` as this process reads it, and the fingerprint noted.

        Waits for no other process. Raises whatever Orbax raises, ValueError if altered.
        """
        with orbax_setup.reader() as reader:
            got = reader.restore(
                self.directory / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(shapes), data=ocp.args.JsonRestore()
                ),
            )
        about = dict(got.data)
        # Checkpoints from before there was one have no CRC, and nothing that is unknown here.
        if about.pop("crc", None) != _crc(about) and ("crc" in got.data or set(about) - _ABOUT):
            raise ValueError("the position of its loader is not what was saved")
        evaluated = bool(about.get("evaluated", False))
        restored = Restored(step, got.state, dict(about["loader"]), evaluated)
        return restored, int(about["fingerprint"])

    def _set_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            aside = self.directory.parent / "damaged"
            aside.mkdir(exist_ok=True)
            for step in steps:
                target = aside / str(step)
                shutil.rmtree(target, ignore_errors=True)
                shutil.move(self.directory / str(step), target)
        hosts.barrier("set damaged checkpoints aside")
        self._manager.reload()


def restore(directory: str | Path, step: int | None, shapes: Shapes) -> Restored:
    """Returns one checkpoint to a reader; changes nothing in the directory.

    Args:
      directory: where checkpoints lie.
      step: which one; None for the latest that can be read, with a warning about later ones.
      shapes: tree of ShapeDtypeStruct with shardings, or what gives it for a step.

    Raises:
      UserError: where there is none, or it cannot be read.
    """
    checkpoints = Checkpoints(directory, writable=False)
    try:
        if step is None:
            restored, why = checkpoints.restore_latest(shapes, set_aside=False), ""
        else:
            restored, why = checkpoints._try(step, _shapes_at(shapes, step))
    finally:
        checkpoints.close()
    if restored is not None:
        return restored
    if step is None:
        raise UserError(f"{directory} holds no checkpoint; train first.")
    raise UserError(
        f"Checkpoint {step} in {directory} is damaged ({why}); take another one, or train again."
    )


def _shapes_at(shapes: Shapes, step: int) -> TrainState:
    return shapes if isinstance(shapes, TrainState) else shapes(step)


def _of_first_process(steps: list[int]) -> list[int]:
    """Returns the steps that process 0 sees; a shared disk may show others something else."""
    return [int(step) for step in json.loads(hosts.gather("restore", json.dumps(steps))[0])]


@jax.jit
def _fingerprint(state: TrainState) -> jax.Array:
    """Returns a uint32 that depends on every bit of every array and on its place, on any mesh."""
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(state)):
        bits = _bits(leaf)
        places = jnp.zeros(bits.shape, jnp.uint32)
        for axis in range(bits.ndim):
            places = places * np.uint32(bits.shape[axis]) + jax.lax.broadcasted_iota(
                jnp.uint32, bits.shape, axis
            )
        mixed = (bits ^ (places * np.uint32(0x9E3779B9))) * (places * np.uint32(2) + np.uint32(1))
        of_leaf = mixed.sum(dtype=jnp.uint32) + np.uint32(number)
        total = total + of_leaf * np.uint32(2 * number + 1)
    return total


def _bits(x: jax.Array) -> jax.Array:
    """Returns the bits of an array as uint32, with a trailing axis for wider types."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    size = x.dtype.itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _crc(about: Mapping[str, Any]) -> int:
    """Returns the CRC of what a checkpoint says beside its arrays; a digit may flip there too."""
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"
