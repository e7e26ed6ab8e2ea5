"""Trains the method of a config, or goes on with what the workdir holds.

    python -m experiments.train --config=configs/vl_jepa/quickstart.py --workdir=DIR \
        [--config.optimizer.learning_rate=3e-4] [--devices=2]

Run again with the same workdir, it goes on from the latest checkpoint; SIGTERM saves and exits 0,
or with --stopped_exit_code.
A config may list phases, which one command runs through; see docs/training.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict, config_flags

from experiments import cli
from jepa import methods
from jepa.data import config as data_configs
from jepa.data import dataset, loader, sources
from jepa.errors import UserError
from jepa.evaluation import held_out, online_knn, suite
from jepa.methods import Method
from jepa.parallel import hosts
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import costs, features, loop, phases, video_features, workdir
from jepa.training.step import global_spec

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "CPU devices to show JAX in each process; by default what the config's mesh asks for.",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a pod or cluster (jax.distributed)."
)
HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout",
    hosts.HEARTBEAT,
    "Seconds without a sign of life after which a process counts as dead, and the others end.",
    lower_bound=1,
)
BARRIER_TIMEOUT = flags.DEFINE_integer(
    "barrier_timeout",
    hosts.BARRIER,
    "Seconds to wait for the other processes: to join, and before restoring, evaluating or saving.",
    lower_bound=1,
)
STOPPED_EXIT_CODE = flags.DEFINE_integer(
    "stopped_exit_code",
    0,
    "Exit code of a run that was told to stop (SIGTERM) before its last step: not 0 where whoever "
    "started it is to start it again, e.g. 42 for xpk and experiments/launch.",
    lower_bound=0,
    upper_bound=255,
)
COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache",
    None,
    "Directory where compiled programs are kept between runs; not for several CPU devices.",
)


def setup(config: ConfigDict, *, devices: int | None = None) -> None:
    """Sets what JAX must know before its backend starts: float64, the number of CPU devices.

    Args:
      config: resolved.
      devices: CPU devices of this process; None for its part of what the mesh multiplies to, if
        it says so.
    """
    if config.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    sizes = list(config.mesh.values())
    if devices is None and all(size > 0 for size in sizes):
        # The mesh is over all processes; a remainder is for the check of the mesh to name.
        devices = max(math.prod(sizes) // hosts.count(), 1)
    if devices is not None:
        meshes.set_cpu_devices(devices)
    if not flags.FLAGS.is_parsed() or not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax tells every rename otherwise.
    log = logging.getLogger("jepa")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        log.addHandler(handler)
        # absl's, or one of a library, would say all that once more.
        for other in logging.getLogger().handlers:
            on_stderr = getattr(other, "stream", None) is sys.stderr
            if on_stderr or isinstance(other, absl_logging.ABSLHandler):
                other.addFilter(lambda record: record.name != log.name)


def distrust_cache(mesh: jax.sharding.Mesh) -> None:
    """Switches JAX's compilation cache off, with a warning, for a mesh of several CPU devices.

    There a program that comes back from the cache (jax 0.10.2) may run its parts in an order that
    was not compiled: losses differ from run to run, and collectives wait for each other for ever.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    directory = jax.config.values["jax_compilation_cache_dir"]
    if not (on_cpu and mesh.size > 1 and directory):
        return
    logging.getLogger("jepa").warning(
        "the compilation cache in %s is not used: with several CPU devices its programs give wrong "
        "results",
        directory,
    )
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()


def check_data(config: ConfigDict) -> None:
    """Raises UserError for an unknown key of `data`, or a dataset that is not there."""
    for phase in phases.plan(config):
        with phases.naming(phase.name):
            for path, _ in data_configs.DataConfig.parse(phase.config.data).sources:
                if sources.is_dataset(path):
                    dataset.Dataset.open(path)


def batch_spec(config: ConfigDict) -> Any:
    """Returns a tree of ShapeDtypeStruct of a global batch, for shapes of parameters to follow.

    No data is read for that. Where texts or clips will come as cached features, these are token ids
    and frames.
    """
    data = dataclasses.replace(
        data_configs.DataConfig.parse(config.data),
        cache="none",
        workers=0,
        text_features=None,
        video_features=(),
    )
    batches = loader.make_train_loader(
        data, global_batch=config.train.global_batch, seed=config.seed
    )
    with contextlib.closing(batches):
        return global_spec(batches.element_spec, 1)


class Parts:
    """What the phases of a run are made of; see `jepa.training.parts.Parts`."""

    def __init__(self, mesh: jax.sharding.Mesh, directory: str | Path | None = None):
        """Notes where the run trains, and its workdir if it has one; makes nothing."""
        self._mesh, self._directory = mesh, directory
        self._part = meshes.batch_part(mesh)
        self._only: loop.TrainLoader | None = None

    def method(self, phase: phases.Phase) -> Method:
        """Returns the method of the phase's config."""
        return methods.from_config(phase.config)

    def batch_spec(self, phase: phases.Phase, method: Method) -> Any:
        """Returns the spec of a global batch; the loader of an only phase is opened once."""
        if phase.name or video_features.tower_of(method) is not None:
            video_features.check(phase.config.data, method)
            return batch_spec(phase.config)
        self._only = self._open(phase.config.data, phase, method)
        return global_spec(self._only.element_spec, self._part.shares)

    def loader(
        self,
        phase: phases.Phase,
        method: Method,
        params: Mapping[str, Any],
        stopped: Callable[[], bool],
    ) -> loop.TrainLoader | None:
        """Returns the loader, at its beginning, having computed the features of frozen towers."""
        if self._only is not None:
            return self._only
        try:
            data = video_features.cache_video_features(
                phase.config.data, method, params, self._mesh, stopped=stopped
            )
        except video_features.Stopped:
            return None
        if self._directory is not None and jax.process_index() == 0:
            costs.note(self._directory, phase, video_features.spent(data))
        return self._open(data, phase, method)

    def _open(self, data: ConfigDict, phase: phases.Phase, method: Method) -> loop.TrainLoader:
        batches = loader.make_train_loader(
            features.cache_text_features(data, method),
            global_batch=phase.config.train.global_batch,
            seed=phase.data_seed,
            part=self._part,
        )
        check_vocabulary = getattr(method, "check_vocabulary", None)
        if check_vocabulary is not None:
            check_vocabulary(batches.vocabulary)
        return batches

    def evaluators(self, phase: phases.Phase, method: Method) -> dict[str, loop.Evaluator]:
        """Returns what `train.eval_every` asks for as callbacks on the train state.

        The suite and the k-NN probe read the moving average of the parameters where there is one.
        The held-out loss reads both, on batches of the size that training takes the loss over.

        Raises:
          UserError: the data has no such split or label, or `train.keep_best_metric` names a number
            of the probe that it does not give.
        """
        config = phase.config
        settings, sections = config.train, config.evaluation
        made: dict[str, loop.Evaluator] = {}
        if not settings.eval_every:
            return made
        if _of_suite(config):
            evaluator = suite.Evaluator(method, config.data, sections, self._mesh)
            made["evaluation"] = lambda state: evaluator.quick(state.averaged, state.method_state)
        elif _wants_loss(config):
            made["held_out"] = self._held_out(phase, method)
        if sections.get("knn") is not None:
            probe = online_knn.OnlineKnn(method, config.data, sections.knn, self._mesh)
            made["knn"] = lambda state: probe(state.averaged, state.method_state)
            others = [f"{name}/" for name in made if name != "knn"]
            configs.check_best(config, [*others, *(f"knn/{key}" for key in probe.keys)])
        return made

    def _held_out(self, phase: phases.Phase, method: Method) -> loop.Evaluator:
        config, settings = phase.config, phase.config.train
        section = held_out.default_held_out(**config.evaluation.get("held_out", {}))
        parts = 1 if settings.gradient_cache else settings.accumulate
        batch = settings.global_batch // parts
        measure = held_out.HeldOut(
            method,
            config.data,
            split=section.split,
            batch_size=batch,
            mesh=self._mesh,
            seed=config.seed,
            limit=section.batches * batch,
            step=phase.last,
        )
        return lambda state: measure(state.params, state.target_params, state.method_state)


def _of_suite(config: ConfigDict) -> bool:
    """Whether `evaluation` is the section of `suite`, beside which `knn` may stand."""
    return not set(config.evaluation) <= {"held_out", "knn"}


def _wants_loss(config: ConfigDict) -> bool:
    """Whether the held-out loss is asked for: by its name, or as what there is besides a suite."""
    given = config.evaluation
    return given.get("held_out") is not None if "held_out" in given else given.get("knn") is None


def check_evaluation(config: ConfigDict) -> None:
    """Checks the section `evaluation`: that of `suite`, or `held_out`, or nothing; with `knn`.

    Args:
      config: of a run, resolved.

    Raises:
      UserError: a key that does not exist, or a value out of range.
    """
    sections = config.evaluation
    if _of_suite(config):
        suite.check(sections)
    elif sections.get("held_out") is not None:
        held_out.check(sections.held_out)
    if sections.get("knn") is not None:
        online_knn.Settings.parse(sections.knn)


def check_labels(config: ConfigDict) -> None:
    """Checks the clips of `evaluation.knn` in phases on data of their own, which begin late.

    Raises:
      UserError: see `online_knn.draw`.
    """
    section = config.evaluation.get("knn")
    known: list[Any] = []
    for phase in phases.plan(config) if section is not None else ():
        data = data_configs.DataConfig.parse(phase.config.data)
        if not phase.config.train.eval_every or (data.sources, data.label) in known:
            continue
        known.append((data.sources, data.label))
        if phase.index:  # Those of the first are drawn before anything is compiled.
            with phases.naming(phase.name):
                online_knn.draw(online_knn.Settings.parse(section), data)


def main(
    config: ConfigDict,
    directory: str | Path,
    *,
    devices: int | None = None,
) -> loop.Result:
    """Trains in this process.

    Args:
      config: of the run; see configs/.
      directory: the workdir.
      devices: CPU devices to show JAX, if its backend has not started.

    Raises:
      UserError: before anything is written, if the config is wrong.
    """
    config = configs.resolve(config)
    workdir.check(directory, config)
    # A mistake there would otherwise show only when training is over.
    check_evaluation(config)
    check_data(config)
    check_labels(config)
    setup(config, devices=devices)
    mesh = meshes.make_mesh(config.mesh)
    distrust_cache(mesh)
    return loop.train_phases(config, directory, parts=Parts(mesh, directory), mesh=mesh)


def from_flags(*, preemption: bool = False) -> tuple[ConfigDict, str]:
    """Returns the config and the workdir of the command line; this process is set up as it says.

    Args:
      preemption: of several processes, whether SIGTERM is to stop them all at one step.

    Raises:
      UserError: one of them is not given, or the workdir is no path.
    """
    if CONFIG.value is None or WORKDIR.value is None:
        raise UserError("--config=FILE and --workdir=DIR are both needed (see --help)")
    check_path(WORKDIR.value)
    if COMPILE_CACHE.value:
        jax.config.update("jax_compilation_cache_dir", COMPILE_CACHE.value)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    if DISTRIBUTED.value:
        hosts.join(
            heartbeat=HEARTBEAT_TIMEOUT.value,
            timeout=BARRIER_TIMEOUT.value,
            preemption=preemption,
        )
    return CONFIG.value, WORKDIR.value


def check_path(directory: str) -> None:
    """Raises UserError for the address of a bucket, which would become a directory of that name."""
    if "://" in directory:
        raise UserError(
            f"--workdir={directory}: give a path; mount a bucket first (gcsfuse, see BUILD.md)"
        )


def _from_flags() -> int:
    config, directory = from_flags(preemption=True)
    with hosts.together():
        result = main(config, directory, devices=DEVICES.value)
    return 0 if result.finished else STOPPED_EXIT_CODE.value


if __name__ == "__main__":
    cli.run_absl(_from_flags)
