"""The loop of a run: restore, then for each phase compile, step, evaluate, save, next batch.

`train` and `train_phases` are the whole of it. What they call is one file each: `phases` says what
a phase is and what crosses a border, `state` makes arrays, `step` the program, `checkpoints` the
saves, `report` the lines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jepa.data.prefetch import prefetch
from jepa.data.storage import storing
from jepa.errors import UserError
from jepa.methods.base import Method
from jepa.parallel import hosts
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import disk, flops, metrics, phases, workdir
from jepa.training.checkpoints import Checkpoints
from jepa.training.health import Health
from jepa.training.parts import Evaluator, Given, Parts, TrainLoader
from jepa.training.prepare import Prepared, make_step, prepare, shapes_at
from jepa.training.profiling import Profiler
from jepa.training.progress import Clock, Progress
from jepa.training.record_log import RecordLog
from jepa.training.report import Reporter
from jepa.training.state import TrainState
from jepa.training.step import compile_step, global_spec
from jepa.training.stopping import Stop

__all__ = ["Evaluator", "Result", "TrainLoader", "make_step", "train", "train_phases"]

log = logging.getLogger("jepa")


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


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the phases of a run share; `total` is its number of steps."""

    config: ConfigDict
    directory: Path
    mesh: Mesh
    total: int
    stop: Stop
    clock: Clock
    progress: Progress
    checkpoints: Checkpoints
    writer: metrics.MetricWriter
    profiler: Profiler
    peak: flops.Peak


def train(
    config: ConfigDict,
    directory: str | Path,
    *,
    method: Method,
    loader: TrainLoader,
    mesh: Mesh,
    evaluators: Mapping[str, Evaluator] | None = None,
) -> Result:
    """As `train_phases`, for a config without phases and parts that are there already.

    Args:
      config: resolved by `jepa.training.config.resolve`.
      directory: the workdir.
      method: what to train.
      loader: of host-local batches, at its beginning; closed at the end.
      mesh: where to train.
      evaluators: by name.

    Raises:
      UserError: as `train_phases`; or the config has phases.
    """
    if config.phases:
        raise UserError("The config has phases, each with a loader of its own; use train_phases.")
    parts = Given(method, loader, evaluators or {}, mesh)
    try:
        return train_phases(config, directory, parts=parts, mesh=mesh)
    finally:
        loader.close()


def train_phases(config: ConfigDict, directory: str | Path, *, parts: Parts, mesh: Mesh) -> Result:
    """Trains all phases until `config.train.steps`, going on from the latest checkpoint.

    Args:
      config: resolved by `jepa.training.config.resolve`.
      directory: the workdir; config.json, checkpoints/, metrics.jsonl, tensorboard/, profile/.
      parts: makes method, loader and evaluators of each phase.
      mesh: where to train.

    Raises:
      UserError: for a config that does not fit, a foreign workdir, a full disk, or too many
        steps that were not finite.
    """
    with Stop() as stop, disk.room_for(directory), contextlib.ExitStack() as held:
        return _train(config, Path(directory), parts, mesh, stop, held)


def _train(
    config: ConfigDict,
    directory: Path,
    parts: Parts,
    mesh: Mesh,
    stop: Stop,
    held: contextlib.ExitStack,
) -> Result:
    clock, main, settings = Clock(), jax.process_index() == 0, config.train
    made = prepare(config, parts, mesh)
    evaluators = parts.evaluators(made[0].phase, made[0].method)
    configs.check_best(config, (f"{name}/" for name in evaluators))
    workdir.check(directory, config)
    total = made[-1].phase.last
    held.enter_context(workdir.locked(directory))
    checkpoints = Checkpoints(
        directory / "checkpoints",
        keep_last=settings.keep_last,
        keep_best_metric=settings.keep_best_metric,
        keep_best_mode=settings.keep_best_mode,
    )

    # Resume from the latest checkpoint, or start from pretrained or fresh parameters.
    restored = checkpoints.restore_latest(lambda step: shapes_at(made, step))
    if restored is not None:
        state, start, data = restored.state, restored.step, restored.data
        evaluated = restored.evaluated
    else:
        state, start, data, evaluated = made[0].initializer.create(), 0, None, True
    # Only now: weights to start from that are not there leave the directory to another try.
    if main:
        workdir.claim(directory, config)
    del restored  # or what the next phases drop would stay on the devices
    progress = Progress(start=start, steps=total, main=main)
    if start >= total:
        progress.line(f"finished already: {directory} holds step {start} of {total}")
        checkpoints.close()
        if main:
            workdir.finish(directory, start)
        return Result(state, start, True, {}, None)
    if main:
        workdir.forget_after(directory, start)
    progress.line(metrics.overview(state.params) if start == 0 else f"resuming at step {start}")
    peak = flops.peak(list(mesh.devices.flat))
    progress.line(f"MFU is relative to {peak.label}: {(peak.flops or 0) / 1e12:.2f} TFLOP/s")
    profiler = Profiler(directory / "profile", settings.profile_steps)
    if outside := profiler.outside(start, total):
        progress.line(outside)
    with storing(directory):
        writer = metrics.make_writer(directory, start=start, main=main)
    run = _Run(
        config, directory, mesh, total, stop, clock, progress, checkpoints, writer, profiler, peak
    )
    clock.add("start", clock.wall())

    now = phases.at([each.phase for each in made], start).index
    if now:
        evaluators = parts.evaluators(made[now].phase, made[now].method)
    evaluation: dict[str, float] = {}
    done, stopping = start, stop.requested(start)
    try:
        with disk.room_for(directory):
            # A run that was told to stop left its last evaluation to us.
            if data and not evaluated and not stopping and made[now].phase.evaluates(start):
                evaluation = _evaluate(run, evaluators, state, start)
                if checkpoints.is_best(evaluation) and len(checkpoints.steps()) > 1:
                    with clock.on("save"):
                        writer.flush()
                        plain = workdir.plain(config)
                        checkpoints.save(start, state, data, plain, evaluation)
            for index in range(now, len(made)):
                here = made[index]
                if stopping or done == here.phase.last:
                    continue
                with clock.on("start"):
                    if done == here.phase.first and index:
                        state = _cross(progress, state, made[index - 1], here)
                        evaluators = parts.evaluators(here.phase, here.method)
                        configs.check_best(config, (f"{name}/" for name in evaluators))
                    loader = parts.loader(here.phase, here.method, state.params, stop.told)
                    if loader is None:
                        stopping = True
                        continue
                    if data and index == now:
                        loader.restore(data)
                state, done, stopping, fresh = _train_phase(
                    run, here, loader, evaluators, state, done
                )
                evaluation = fresh or evaluation
            with clock.on("save"):
                checkpoints.wait()
                writer.flush()
                if main and done == total:
                    workdir.finish(directory, done)
    except UserError as error:
        raise type(error)(f"{error} {checkpoints.last_in_words()}") from error
    finally:
        _close(profiler, progress, writer, checkpoints)

    if done < total:
        saved = "saved, " if done else ""
        progress.line(f"stopped by {stop.signal} at step {done}; {saved}run again to go on")
    progress.line(clock.summary())
    return Result(state, done, done == total, evaluation, clock.goodput())


def _train_phase(
    run: _Run,
    here: Prepared,
    loader: TrainLoader,
    evaluators: Mapping[str, Evaluator],
    state: TrainState,
    start: int,
) -> tuple[TrainState, int, bool, dict[str, float]]:
    """Trains a phase from step `start` to its end; closes the loader.

    Returns the last state, its step, whether the run was told to stop, and the last evaluation.
    """
    phase, settings, clock = here.phase, here.phase.config.train, run.clock
    parts: list[Any] = [loader]
    records: RecordLog | None = None

    def save(fresh: Mapping[str, float] | None = None) -> None:
        reporter.flush()
        with clock.on("save"):
            reporter.check(int(state.skipped_in_a_row), done)
            run.writer.flush()
            if records is not None:
                records.sync()
            run.checkpoints.save(done, state, stream.state(), workdir.plain(run.config), fresh)

    def save_what_is_left() -> None:
        if done > start and done not in run.checkpoints.steps():
            save()

    try:
        with clock.on("start"):
            spec = global_spec(loader.element_spec, meshes.batch_part(run.mesh).shares)
            if phase.name:
                run.progress.line(f"phase {phase.name}: steps {start + 1} to {phase.last}")
            frozen = here.step.optimizer.frozen
            run.progress.line(metrics.trainable(state.params, frozen))
            # Compile once; from here on a batch of another shape is an error.
            program = compile_step(here.step, run.mesh, here.initializer.shapes, spec)
            memory = (
                "" if program.memory is None else f", {program.memory / 2**20:.0f} MiB a device"
            )
            run.progress.line(
                f"mesh {meshes.describe(run.mesh)}; compiled in {program.seconds:.1f}s{memory}"
            )
            health = Health.start(
                here.method,
                run.mesh,
                here.initializer.shapes,
                spec,
                every=settings.health_every,
                seed=run.config.seed,
                accumulate=settings.accumulate,
                start=start,
                steps=phase.last,
                directory=run.directory,
                writer=run.writer,
                progress=run.progress,
            )
            reporter = Reporter(
                writer=run.writer,
                progress=run.progress,
                clock=clock,
                start=start,
                steps=phase.last,
                total=run.total,
                phase=phase.name,
                log_every=settings.log_every,
                global_batch=settings.global_batch,
                flops=here.method.flops(spec),
                peak=run.peak,
                max_consecutive_skipped=settings.max_consecutive_skipped,
            )
            run.checkpoints.warm(state)
            stream = prefetch(loader, meshes.batch_sharding(run.mesh))
            parts.insert(0, stream)
            if settings.log_records:
                part = meshes.batch_part(run.mesh)
                parts.append(records := RecordLog(run.directory, jax.process_index(), part))

        evaluation: dict[str, float] = {}
        done, stopping = start, run.stop.requested(start)
        while done < phase.last and not stopping:
            begin = time.perf_counter()
            try:
                batch = stream.unless(run.stop.told)
            except UserError:
                # The steps so far are sound; but of several processes, one cannot save alone.
                if jax.process_count() == 1:
                    save_what_is_left()
                raise
            if stopping := batch is None:
                save_what_is_left()
                break
            done += 1
            run.profiler.before(done)
            if records is not None:
                records.write(done, stream.record_keys())
            # Waiting costs nothing while the devices are still at the step before.
            clock.add("step" if reporter.busy() else "data", time.perf_counter() - begin)

            hosts.at(f"step {done}")
            with clock.on("step"), jax.transfer_guard("disallow"):
                state, values = program(state, batch)
                reporter.after(done, values)
                health.after(done, state, batch)
            run.profiler.after(done, values)

            last, stopping = done == phase.last, run.stop.requested(done)
            evaluate_now = phase.evaluates(done)
            due = settings.save_every > 0 and done % settings.save_every == 0
            save_now = last or stopping or due
            fresh, unknown = dict[str, float](), False
            if evaluate_now or save_now:
                with clock.on("step"):
                    reporter.flush()
                    health.flush()
            if evaluate_now and (done == run.total or not stopping):
                fresh = _evaluate(run, evaluators, state, done)
                evaluation = fresh or evaluation
                best = settings.keep_best_metric
                unknown = best is not None and best not in fresh
                save_now = save_now or unknown or run.checkpoints.is_best(fresh)
            if save_now:
                save(fresh)
            if unknown:
                configs.check_best(run.config, fresh)
    finally:
        _close(*parts)
    return state, done, stopping, evaluation


def _cross(progress: Progress, state: TrainState, before: Prepared, after: Prepared) -> TrainState:
    """Carries the state into the next phase, and says what did not come along."""
    state, anew = phases.cross(state, before.step.optimizer, after.initializer)
    if anew:
        progress.line(f"phase {after.phase.name}: {phases.fresh_in_words(anew)}")
    return state


def _evaluate(
    run: _Run, evaluators: Mapping[str, Evaluator], state: TrainState, done: int
) -> dict[str, float]:
    with run.clock.on("evaluate"):
        hosts.barrier(f"evaluate at step {done}")
        values = {
            f"{name}/{key}": float(value)
            for name, evaluator in evaluators.items()
            for key, value in evaluator(state).items()
        }
    if values:
        run.writer.write_scalars(done, values)
        told = [f"{key} {value:.4g}" for key, value in values.items()]
        run.progress.line("  ".join([f"step {done}/{run.total}", *told]))
    return values


def _close(*parts: Any) -> None:
    """Closes everything; what mattered was waited for before, and an error may be on its way."""
    for part in parts:
        try:
            part.close()
        except Exception as error:
            log.warning("could not close %s: %s", type(part).__name__, error)
