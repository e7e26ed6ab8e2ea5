"""Phases: the parts of a run that differ in data, batch, frozen parts or schedule.

`config.phases` lists them. Each is a mapping with a `name`, a number of `steps`, and what it says
otherwise than the rest of the config, by dotted key or nested:

    {"name": "cooldown", "steps": 12_000, "data.frames": 64, "optimizer": {"schedule": "linear"}}

A mapping as a value is merged into the section that it names; a key of `data` is replaced whole.
Steps count on over phases, a checkpoint's step says which phase it is of, and schedules run over
the phase's own steps. `cross` is what happens at a border.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.tree_util import DictKey, SequenceKey
from ml_collections import ConfigDict

from jepa.errors import UserError, check_known
from jepa.parallel import partition
from jepa.training import config as configs
from jepa.training.optimizer import Age, Optimizer, flatten, split
from jepa.training.state import Initializer, TrainState

SECTIONS = ("data", "model", "loss", "optimizer", "ema", "train")
# Of the section `train`, what belongs to the whole run.
_OF_THE_RUN = ("keep_last", "keep_best_metric", "keep_best_mode", "profile_steps")


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
      index: from 0.
      name: empty for a run without phases.
      first: steps of the run that lie before it.
      config: resolved; that of a run which has only this phase.
    """

    index: int
    name: str
    first: int
    config: ConfigDict

    @property
    def last(self) -> int:
        """Steps of the run that are done when the phase is."""
        return self.first + self.config.train.steps

    def evaluates(self, step: int) -> bool:
        """Returns whether an evaluation is due after a step: now and then, and where it ends."""
        every = self.config.train.eval_every
        return every > 0 and (step % every == 0 or step == self.last)

    @property
    def data_seed(self) -> int:
        """Seed of the order of the data and of every random choice in it.

        A phase reads its data from the beginning, since it may be other data; with a seed of its
        own, so that it does not repeat the beginning of the phase before.
        """
        if self.index == 0:
            return self.config.seed
        drawn = np.random.SeedSequence((self.config.seed, self.index)).generate_state(1)
        return int(drawn[0] >> 1)


def plan(config: ConfigDict) -> tuple[Phase, ...]:
    """Returns the phases of a resolved config; one without a name where it lists none.

    Raises:
      UserError: a phase that is not well formed, or a value in it that the config may not have.
    """
    made: list[Phase] = []
    for index, (name, own) in enumerate(expand(config.to_dict())):
        first = made[-1].last if made else 0
        with naming(name):
            made.append(Phase(index, name, first, configs.resolve(ConfigDict(own))))
    total = made[-1].last
    if config.train.steps != total:
        raise UserError(
            f"The config key 'train.steps' is {config.train.steps}, but the steps of its phases "
            f"add up to {total}; set it to that."
        )
    return tuple(made)


def at(phases: Sequence[Phase], step: int) -> Phase:
    """Returns the phase that a checkpoint of this step is of: at a border the one that ends."""
    return next((phase for phase in phases if step <= phase.last), phases[-1])


def batch_at(config: ConfigDict) -> Callable[[int], int]:
    """Returns what gives the clips of a step, which differ from phase to phase."""
    phases = plan(config)
    return lambda step: int(at(phases, step).config.train.global_batch)


def expand(config: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns (name, whole config) of each phase of a config given as nested dicts.

    Raises:
      UserError: a phase that is not well formed.
    """
    base = {key: value for key, value in config.items() if key != "phases"}
    given = config.get("phases") or ()
    if not given:
        return [("", base)]
    made: list[tuple[str, dict[str, Any]]] = []
    for index, phase in enumerate(given):
        where = f"phases[{index}]"
        if not hasattr(phase, "items"):
            raise UserError(f"The config key {where!r} is {phase!r}; give a mapping.")
        name, steps = phase.get("name"), phase.get("steps")
        if not isinstance(name, str) or not name or name in dict(made):
            raise UserError(f"The config key '{where}.name' is {name!r}; give a name of its own.")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise UserError(f"The config key '{where}.steps' is {steps!r}; make it at least 1.")
        own = copy.deepcopy(base)
        with naming(name):
            for path, value in _overrides(phase):
                _set(own, path, value)
        own["train"]["steps"] = steps
        made.append((name, own))
    return made


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Lets a UserError say which phase it is about; not in a run without phases."""
    try:
        yield
    except UserError as error:
        if not name:
            raise
        raise UserError(f"In the phase {name!r}: {error}") from error


def _overrides(phase: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of all that a phase says otherwise."""
    for key, value in phase.items():
        if key in ("name", "steps"):
            continue
        check_known("phases", [key.partition(".")[0]], SECTIONS)
        yield from _leaves(key, value)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    # Below a key of `data` a mapping is one value: weights of tasks, options of a sampler.
    if not hasattr(value, "items") or path.startswith("data."):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(f"{path}.{key}", inner)


def _set(config: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    if parents == ["train"] and last in ("steps", *_OF_THE_RUN):
        mend = "say `steps`" if last == "steps" else "set it outside of `phases`"
        raise UserError(f"a phase cannot set {path!r}; {mend}.")
    inside: Any = config
    for parent in parents:
        inside = inside.get(parent)
        if not isinstance(inside, dict):
            raise UserError(f"{path!r} is set, but the config has no section {parent!r}.")
    if not parents:
        raise UserError(f"{path!r} is {value!r}; a section needs a mapping.")
    inside[last] = copy.deepcopy(value)


def age(before: Sequence[Optimizer], names: Sequence[str], frozen: Sequence[str]) -> Age:
    """Returns since when the parameters of a phase have been trained.

    Args:
      before: the optimizers of all phases before it.
      names: `optimizer.name` of those, and of the phase: another one begins anew.
      frozen: the phase's patterns.
    """
    patterns = [made.frozen for made in before] + [tuple(frozen)]
    start = next((i + 1 for i in reversed(range(len(before))) if names[i] != names[-1]), 0)
    return Age(
        tuple(
            (f"phase_{index}", patterns[index])
            for index in range(start, len(patterns))
            if index == start or patterns[index] != patterns[index - 1]
        )
    )


def check_same_parameters(phases: Sequence[Phase], made: Sequence[Initializer]) -> None:
    """Checks that no phase adds, drops or reshapes what the first one has.

    Raises:
      UserError: one does; it names the first such parameter.
    """
    first = _carried(made[0])
    for phase, initializer in zip(phases, made, strict=True):
        own = _carried(initializer)
        for path in sorted({*first, *own}):
            had, has = first.get(path, "absent"), own.get(path, "absent")
            if had != has:
                raise UserError(
                    f"Phase {phase.name!r}: {path} is {has}, and {had} in phase "
                    f"{phases[0].name!r}; a phase may freeze parameters, not add or reshape them."
                )


def _carried(initializer: Initializer) -> dict[str, str]:
    """(path, shape and type) of all that crosses a border as it is."""
    shapes = initializer.shapes
    parts = {
        "parameter": shapes.params,
        "target parameter": shapes.target_params,
        "method state": shapes.method_state,
    }
    return {
        f"{kind} {partition.path_name(path)}": f"{x.dtype}{list(x.shape)}"
        for kind, tree in parts.items()
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def cross(state: TrainState, before: Optimizer, after: Initializer) -> tuple[TrainState, list[str]]:
    """Carries a state over the border between two phases.

    Parameters, their moving average, the method's state, the step and the counts of skipped steps
    go on as they are. So do the moments of parameters that both phases train with the same kind of
    optimizer, and the count for their bias correction. Every other parameter gets fresh moments
    and a count that starts at 0 (see `optimizer.Age`); moments of what is frozen now are dropped.

    Args:
      state: at the end of the phase before; `check_same_parameters` holds.
      before: that phase's optimizer.
      after: makes the states of the next phase.

    Returns:
      The first state of the next phase, and the trained parameters whose moments are fresh.
    """
    had = dict(_moments(before, state.opt_state))
    wanted = _moments(after.optimizer, after.shapes.opt_state)
    kept = {name for name, x in wanted if name in had and had[name].shape == x.shape}
    fresh = {name: x.sharding for name, x in wanted if name not in kept}

    def fresh_moments(trainable: Any) -> dict[str, jax.Array]:
        made = _moments(after.optimizer, after.optimizer.transform.init(trainable))
        return {name: leaf for name, leaf in made if name in fresh}

    trainable, _ = split(state.params, after.optimizer.frozen)
    drawn = jax.jit(fresh_moments, out_shardings=fresh)(trainable) if fresh else {}
    leaves = [
        jax.device_put(had[name], x.sharding) if name in kept else drawn[name] for name, x in wanted
    ]
    structure = jax.tree.structure(after.shapes.opt_state)
    paths = flatten(trainable)
    anew = {path for name in fresh if (path := _parameter(name, paths))}
    return dataclasses.replace(state, opt_state=jax.tree.unflatten(structure, leaves)), sorted(anew)


def fresh_in_words(anew: list[str]) -> str:
    """Returns what to say of the parameters with fresh moments that `cross` names."""
    more = ", ..." if len(anew) > 3 else ""
    return f"fresh optimizer moments for {len(anew)} parameters ({', '.join(anew[:3])}{more})"


def _moments(optimizer: Optimizer, opt_state: Any) -> list[tuple[str, Any]]:
    """(name, leaf) of an optimizer's state, in order.

    A name says since when, what and of which parameter: `phase_0/mu/head/kernel`. It does not say
    where in the chain: another phase may clip, or decay weights, where this one does not.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        parts = [_key(key) for key in path if not isinstance(key, SequenceKey)]
        if not optimizer.age.several():
            parts.insert(0, optimizer.age.history[-1][0])
        found.append(("/".join(parts), leaf))
    assert len(dict(found)) == len(found), "two leaves of an optimizer state have one name"
    return found


def _key(key: Any) -> str:
    return str(key.key) if isinstance(key, DictKey) else str(key.name)


def _parameter(name: str, paths: Mapping[str, Any]) -> str:
    """Returns the path that the name of a moment ends with; empty for a count."""
    while name and name not in paths:
        name = name.partition("/")[2]
    return name
