"""Compiles or counts the steps of a config's phases for chips that are not there.

The method and the shapes of a batch are made as `experiments.train` makes them, but that no dataset
has to be there.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jepa import methods
from jepa.data import outline
from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.methods.base import Method
from jepa.parallel import chips, topology
from jepa.parallel.mesh import AXES
from jepa.training import config as configs
from jepa.training import estimate, phases, video_features
from jepa.training.ahead import Ahead, compile_ahead
from jepa.training.prepare import Prepared, prepare

Entry = dict[str, Any]

# Of a config, what a compiled step does not depend on.
_OF_THE_RUN = ("seed", "evaluation", "probe", "phases")
_KEEPING = (
    *("eval_every", "log_every", "log_records", "save_every"),
    *("keep_last", "keep_best_metric", "keep_best_mode", "profile_steps"),
)
_READING = ("path", "mixture", "workers", "threads", "timeout", "max_bad_fraction", "split")


class Outline:
    """Methods and batches of phases, without data; see `jepa.training.parts.Outline`."""

    def method(self, phase: phases.Phase) -> Method:
        """Returns the method of the phase's config."""
        return methods.from_config(phase.config)

    def batch_spec(self, phase: phases.Phase, method: Method) -> Any:
        """Returns the spec of a global batch of token ids and frames."""
        video_features.check(phase.config.data, method)
        return outline.batch_spec(_data(phase.config), phase.config.train.global_batch)

    def step_spec(self, phase: phases.Phase, method: Method) -> Any:
        """Returns the spec of the batch that the step gets: features in the place of clips, where
        those of a frozen tower are computed once.
        """
        spec = self.batch_spec(phase, method)
        tower = video_features.tower_of(method)
        if tower is not None:
            rows = phase.config.train.global_batch
            params, _ = jax.eval_shape(lambda: method.init(jax.random.key(0), _zeros(spec)))
            one = outline.batch_spec(_data(phase.config), 1)["video"]
            tokens = jax.eval_shape(tower.encode, params[tower.part], one)
            features = jax.ShapeDtypeStruct((rows, *tokens.shape[1:]), np.dtype(tower.dtype))
            spec["video"] = {"features": features}
        return spec


def _data(config: ConfigDict) -> DataConfig:
    return dataclasses.replace(
        DataConfig.parse(config.data), cache="none", text_features=None, video_features=()
    )


def _zeros(spec: Any) -> Any:
    return jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), spec)


def parse_mesh(text: str) -> dict[str, int]:
    """Reads `data=4,fsdp=64`; axes that are not named have size one.

    Raises:
      UserError: it is not of that form.
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or not size.lstrip("-").isdecimal():
            raise UserError(
                f"--mesh={text!r}: {part!r} is no axis and its size; write such as data=4,fsdp=64 "
                f"with axes of {', '.join(AXES)}"
            )
        sizes[name] = int(size)
    return sizes


@dataclasses.dataclass(frozen=True)
class Job:
    """The phases of a config on one mesh, checked and ready to be compiled."""

    config: str
    topology: chips.Topology
    mesh: Any
    phases: Sequence[Prepared]


def make_job(
    name: str, config: ConfigDict, where: chips.Topology, sizes: Mapping[str, int] | None
) -> Job:
    """Prepares the phases of a config for a topology.

    Args:
      name: of the config, for the report.
      config: as loaded.
      where: the chips.
      sizes: of the mesh; None for the config's.

    Raises:
      UserError: the config is wrong, the mesh does not fit it or the chips, or libtpu is not there.
    """
    config = config.copy_and_resolve_references()
    if sizes is not None:
        config.mesh = ConfigDict(dict(sizes))
    config = configs.resolve(config)
    shape = configs.mesh_sizes(config, where.chips)
    mesh: Any = topology.tpu_mesh(where.name, shape) if where.tpu else estimate.mesh(where, shape)
    return Job(name, where, mesh, prepare(config, Outline(), mesh))


def run(job: Job, prepared: Prepared) -> Entry:
    """Compiles the step of a phase; returns what is known of it, as JSON."""
    spec = Outline().step_spec(prepared.phase, prepared.method)
    make = compile_ahead if job.topology.tpu else estimate.estimate
    return entry(job, prepared, make(prepared, job.mesh, job.topology, spec))


def entry(job: Job, prepared: Prepared, found: Ahead) -> Entry:
    """Returns what is known of a step, as JSON."""
    return {
        "config": job.config,
        "phase": prepared.phase.name,
        "topology": job.topology.name,
        "chips": job.mesh.size,
        **settings(prepared.phase.config, job.mesh.size),
        "digest": digest(prepared.phase.config),
        "parameters": found.parameters,
        "trained": found.trained,
        "memory": {**dataclasses.asdict(found.memory), "spare": found.memory.spare},
        "fits": found.fits,
        "estimated": not job.topology.tpu,
        "flops": {"useful": found.useful, "done_on_a_chip": found.done},
        "moved": found.moved,
        "collectives": [
            {"kind": kind, "axes": axes, "times": times, "bytes": size}
            for (kind, axes), (times, size) in sorted(found.collectives.items())
        ],
        "roofline": None if found.roofline is None else dataclasses.asdict(found.roofline),
        "seconds": dict(zip(("lower", "compile"), found.seconds, strict=True)),
        "versions": {"jax": jax.__version__, "libtpu": _libtpu()},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def settings(config: ConfigDict, devices: int) -> Entry:
    """Returns what of a phase's config is chosen for a pod, or decides how much there is to do."""
    sizes = configs.mesh_sizes(config, devices)
    return {
        "mesh": {axis: size for axis, size in sizes.items() if size > 1},
        "global_batch": config.train.global_batch,
        "accumulate": config.train.accumulate,
        "gradient_cache": config.train.gradient_cache,
        "frames": config.data.frames,
        "size": config.data.size,
        "remat": {
            name: part.remat for name, part in config.model.items() if hasattr(part, "remat")
        },
    }


def digest(config: ConfigDict) -> str:
    """Returns a hex digest of what of a resolved config a step is made of.

    A result is that of a config as long as this and `settings` agree. Left out is what no step
    knows: where data lie and how a host reads them, what is evaluated, when a run logs and saves.
    """
    parts: dict[str, Any] = json.loads(config.to_json())
    data = parts["data"]
    for section, apart in (
        (parts, _OF_THE_RUN),
        (parts["train"], _KEEPING),
        (data, _READING),
        (data["images"], _READING),
    ):
        for key in apart:
            section.pop(key, None)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _libtpu() -> str:
    """Version of libtpu, which may lie beside the packages of the environment."""
    paths = [*sys.path, str(Path(os.environ.get("TPU_LIBRARY_PATH", "")).parent.parent)]
    return next((d.version for d in metadata.distributions(name="libtpu", path=paths)), "unknown")
