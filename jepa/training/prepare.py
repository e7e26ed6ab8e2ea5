"""The phases of a run made ready: method, step and shapes of each, checked before any compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh
from ml_collections import ConfigDict

from jepa.methods.base import Method
from jepa.training import config as configs
from jepa.training import optimizer, phases
from jepa.training.parts import Outline
from jepa.training.phases import Phase
from jepa.training.state import Initializer, TrainState
from jepa.training.step import TrainStep


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A phase that has been checked: what to train in it, how, and the shapes of its states."""

    phase: Phase
    method: Method
    step: TrainStep
    initializer: Initializer


def make_step(
    config: ConfigDict, method: Method, *, first: int = 0, age: optimizer.Age | None = None
) -> TrainStep:
    """Returns the pure train step of a resolved config.

    Args:
      config: of the run, or of a phase.
      method: what to train.
      first: step of the run at which the phase begins.
      age: since when each parameter has been trained; None for a run that begins.
    """
    return TrainStep(
        method=method,
        optimizer=optimizer.make(
            config.optimizer,
            steps=config.train.steps,
            frozen=method.requirements.frozen,
            groups=method.requirements.learning_rate_groups,
            first=first,
            age=age,
        ),
        seed=config.seed,
        ema=configs.ema_schedule(config, first),
        accumulate=config.train.accumulate,
        gradient_cache=config.train.gradient_cache,
    )


def prepare(config: ConfigDict, parts: Outline, mesh: Mesh) -> list[Prepared]:
    """Returns the phases of a run, all of them checked; compiles and allocates nothing.

    Raises:
      UserError: a phase that does not fit its method, its data, the mesh or the phase before.
    """
    made: list[Prepared] = []
    plan = phases.plan(config)
    for phase in plan:
        with phases.naming(phase.name):
            method = parts.method(phase)
            configs.check_run(phase.config, method, mesh.size)
            age = phases.age(
                [before.step.optimizer for before in made],
                [each.config.optimizer.name for each in plan[: phase.index + 1]],
                method.requirements.frozen,
            )
            step = make_step(phase.config, method, first=phase.first, age=age)
            initializer = Initializer(
                method,
                step.optimizer,
                mesh,
                parts.batch_spec(phase, method),
                seed=config.seed,
                dtype=config.dtype,
            )
        made.append(Prepared(phase, method, step, initializer))
    phases.check_same_parameters(plan, [each.initializer for each in made])
    return made


def shapes_at(made: Sequence[Prepared], step: int) -> TrainState:
    """Returns shapes and shardings of the state in the checkpoint of a step."""
    return made[phases.at([each.phase for each in made], step).index].initializer.shapes
