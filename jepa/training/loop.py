"""The loop of a run: restore, compile, step, evaluate, save, and only then the next batch.

`train` is the whole of it. What it calls is one file each: `state` makes arrays, `step` the
program, `checkpoints` the saves, `report` the lines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jepa.data.prefetch import prefetch
from jepa.data.storage import storing
from jepa.errors import UserError
from jepa.methods.base import Method
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import disk, flops, metrics, optimizer, workdir
from jepa.training.checkpoints import Checkpoints
from jepa.training.profiling import Profiler
from jepa.training.progress import Clock, Progress
from jepa.training.report import Reporter
from jepa.training.state import Initializer, TrainState
from jepa.training.step import TrainStep, compile_step, global_spec
from jepa.training.stopping import Stop

log = logging.getLogger("jepa")

Evaluator = Callable[[TrainState], Mapping[str, float]]


class TrainLoader(Protocol):
    """What training asks of a loader; `jepa.data.loader` makes one.

    Attributes:
      element_spec: tree of ShapeDtypeStruct of a host-local batch.
    """

    element_spec: Any

    def __iter__(self) -> Iterator[Any]:
        """Iterates host-local batches of NumPy arrays, without end."""

    def state(self) -> Mapping[str, Any]:
        """Returns the position behind the last batch, as JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""

    def close(self) -> None:
        """Ends threads and processes."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      state: the last train state.
      step: number of steps done.
      finished: whether that is all of them; False after SIGTERM.
      evaluation: the last evaluation's numbers.
      goodput: share of the wall time spent in steps; None if there was nothing left to do.
    """

    state: TrainState
    step: int
    finished: bool
    evaluation: dict[str, float]
    goodput: float | None


def make_step(config: ConfigDict, method: Method) -> TrainStep:
    """Returns the pure train step of a resolved config."""
    return TrainStep(
        method=method,
        optimizer=optimizer.make(
            config.optimizer,
            steps=config.train.steps,
            frozen=method.requirements.frozen,
            groups=method.requirements.learning_rate_groups,
        ),
        seed=config.seed,
        ema=configs.ema_schedule(config),
        accumulate=config.train.accumulate,
        gradient_cache=config.train.gradient_cache,
    )


def train(
    config: ConfigDict,
    directory: str | Path,
    *,
    method: Method,
    loader: TrainLoader,
    mesh: Mesh,
    evaluators: Mapping[str, Evaluator] | None = None,
) -> Result:
    """Trains until `config.train.steps`, going on from the directory's latest checkpoint.

    Args:
      config: resolved by `jepa.training.config.resolve`.
      directory: the workdir; config.json, checkpoints/, metrics.jsonl, tensorboard/, profile/.
      method: what to train.
      loader: of host-local batches, at its beginning; closed at the end.
      mesh: where to train.
      evaluators: by name; their numbers are logged as `name/key`.

    Raises:
      UserError: for a config that does not fit, a foreign workdir, a full disk, or too many
        steps that were not finite.
    """
    with Stop() as stop, disk.room_for(directory), contextlib.ExitStack() as held:
        return _train(config, directory, method, loader, mesh, evaluators or {}, stop, held)


def _train(
    config: ConfigDict,
    directory: str | Path,
    method: Method,
    loader: TrainLoader,
    mesh: Mesh,
    evaluators: Mapping[str, Evaluator],
    stop: Stop,
    held: contextlib.ExitStack,
) -> Result:
    clock, main = Clock(), jax.process_index() == 0
    configs.check_run(config, method, mesh.size)
    configs.check_best(config, (f"{name}/" for name in evaluators))
    workdir.check(directory, config)
    steps, settings = config.train.steps, config.train
    step = make_step(config, method)
    spec = global_spec(loader.element_spec, meshes.batch_slice(mesh)[1])
    initializer = Initializer(
        method, step.optimizer, mesh, spec, seed=config.seed, dtype=config.dtype
    )
    if main:
        held.enter_context(workdir.locked(directory))
        workdir.claim(directory, config)
    checkpoints = Checkpoints(
        Path(directory) / "checkpoints",
        keep_last=settings.keep_last,
        keep_best_metric=settings.keep_best_metric,
        keep_best_mode=settings.keep_best_mode,
    )

    # Resume from the latest checkpoint, or start from pretrained or fresh parameters.
    restored = checkpoints.restore_latest(initializer.shapes)
    if restored is not None:
        state, start = restored.state, restored.step
        loader.restore(restored.data)
    else:
        state, start = initializer.create(), 0
    progress = Progress(start=start, steps=steps, main=main)
    if start >= steps:
        progress.line(f"finished already: {directory} holds step {start} of {steps}")
        loader.close()
        checkpoints.close()
        if main:
            workdir.finish(directory, start)
        return Result(state, start, True, {}, None)
    if main:
        workdir.forget_after(directory, start)
    progress.line(metrics.overview(state.params) if start == 0 else f"resuming at step {start}")

    # Compile once; from here on a batch of another shape is an error.
    program = compile_step(step, mesh, initializer.shapes, spec)
    memory = "" if program.memory is None else f", {program.memory / 2**20:.0f} MiB a device"
    progress.line(f"mesh {meshes.describe(mesh)}; compiled in {program.seconds:.1f}s{memory}")
    peak = flops.peak(list(mesh.devices.flat))
    progress.line(f"MFU is relative to {peak.label}: {(peak.flops or 0) / 1e12:.2f} TFLOP/s")

    with storing(Path(directory)):
        writer = metrics.make_writer(directory, start=start, main=main)
    stream = prefetch(loader, meshes.batch_sharding(mesh))
    profiler = Profiler(Path(directory) / "profile", settings.profile_steps)
    if profiler.outside(start, steps):
        progress.line(
            f"train.profile_steps={tuple(settings.profile_steps)} are none of the steps "
            f"{start + 1} to {steps} that are left: there will be no profile"
        )
    clock.add("start", clock.wall())
    reporter = Reporter(
        writer=writer,
        progress=progress,
        clock=clock,
        start=start,
        steps=steps,
        log_every=settings.log_every,
        global_batch=settings.global_batch,
        flops=method.flops(spec),
        peak=peak,
        max_consecutive_skipped=settings.max_consecutive_skipped,
    )

    def evaluate(done: int) -> dict[str, float]:
        values = {
            f"{name}/{key}": float(value)
            for name, evaluator in evaluators.items()
            for key, value in evaluator(state).items()
        }
        if values:
            writer.write_scalars(done, values)
            progress.line(
                "  ".join(
                    [f"step {done}/{steps}"]
                    + [f"{key} {value:.4g}" for key, value in values.items()]
                )
            )
        return values

    def save(done: int, evaluation: Mapping[str, float]) -> None:
        reporter.check(int(state.skipped_in_a_row), done)
        writer.flush()
        checkpoints.save(done, state, stream.state(), workdir.plain(config), evaluation)

    evaluation: dict[str, float] = {}
    done, stopping = start, stop.requested(start)
    try:
        with disk.room_for(directory):
            # A run that was told to stop left its last evaluation to us.
            due = restored and not restored.evaluated and _due(start, settings.eval_every)
            if due and not stopping:
                with clock.on("evaluate"):
                    evaluation = evaluate(start)
                    replace = checkpoints.is_best(evaluation) and len(checkpoints.steps()) > 1
                if replace:
                    with clock.on("save"):
                        save(start, evaluation)
            while done < steps and not stopping:
                done += 1
                profiler.before(done)
                begin = time.perf_counter()
                batch = next(stream)
                waited = time.perf_counter() - begin
                # Waiting costs nothing while the devices are still at the step before.
                clock.add("step" if reporter.busy() else "data", waited)

                with clock.on("step"), jax.transfer_guard("disallow"):
                    state, values = program(state, batch)
                    reporter.after(done, values)
                profiler.after(done, values)

                last, stopping = done == steps, stop.requested(done)
                evaluate_now = _due(done, settings.eval_every) or (last and settings.eval_every > 0)
                save_now = last or stopping or _due(done, settings.save_every)
                fresh: dict[str, float] = {}
                unknown = False
                if evaluate_now or save_now:
                    with clock.on("step"):
                        reporter.flush()
                if evaluate_now and (last or not stopping):
                    with clock.on("evaluate"):
                        fresh = evaluate(done)
                        evaluation = fresh or evaluation
                        best = settings.keep_best_metric
                        unknown = best is not None and best not in fresh
                        save_now = save_now or unknown or checkpoints.is_best(fresh)
                if save_now:
                    with clock.on("save"):
                        save(done, fresh)
                if unknown:
                    configs.check_best(config, fresh)
            with clock.on("save"):
                checkpoints.wait()
                writer.flush()
                if main and done == steps:
                    workdir.finish(directory, done)
    except UserError as error:
        raise UserError(f"{error} {_last_checkpoint(checkpoints)}") from error
    finally:
        _close(profiler, progress, stream, loader, writer, checkpoints)

    if done < steps:
        saved = "saved, " if done else ""
        progress.line(f"stopped by {stop.signal} at step {done}; {saved}run again to go on")
    progress.line(clock.summary())
    return Result(state, done, done == steps, evaluation, clock.goodput())


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _close(*parts: Any) -> None:
    """Closes everything; what mattered was waited for before, and an error may be on its way."""
    for part in parts:
        try:
            part.close()
        except Exception as error:
            log.warning("could not close %s: %s", type(part).__name__, error)


def _last_checkpoint(checkpoints: Checkpoints) -> str:
    steps = checkpoints.steps()
    return f"The last checkpoint is step {steps[-1]}." if steps else "There is no checkpoint yet."
