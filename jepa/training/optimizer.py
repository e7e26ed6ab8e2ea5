"""The optimizer: an optax transformation without a rate, a schedule and factors by path.

The learning rate is applied by the step, not inside optax, so that it follows the step number
(which advances over skipped steps) and so that groups cost no optimizer memory. Weight decay and
clipping follow the step number too, and have no memory.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import traverse_util

from jepa.errors import UserError
from jepa.training import schedules

Tree = Mapping[str, Any]

NAMES = ("adamw", "muon", "lion", "sgd")


def flatten(tree: Tree) -> dict[str, Any]:
    """Returns nested dicts as `{"a/b": leaf}`."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{"a/b": leaf}` as nested dicts."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def _matches(pattern: str, path: str) -> bool:
    return re.fullmatch(pattern, path) is not None


def check_patterns(kind: str, patterns: Sequence[str], tree: Tree) -> None:
    """Raises UserError if a pattern matches no parameter of `tree`: then it is a typing error."""
    paths = list(flatten(tree))
    for pattern in patterns:
        if not any(_matches(pattern, path) for path in paths):
            raise UserError(
                f"The {kind} pattern {pattern!r} matches no parameter; the first path is "
                f"{paths[0]!r}, and a pattern has to match a whole path."
            )


def split(params: Tree, frozen: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns `(trainable, frozen)` nested dicts; `frozen` patterns match whole `/`-paths."""
    flat = flatten(params)
    held = {path for path in flat if any(_matches(pattern, path) for pattern in frozen)}
    return (
        unflatten({path: leaf for path, leaf in flat.items() if path not in held}),
        unflatten({path: leaf for path, leaf in flat.items() if path in held}),
    )


def merge(trainable: Tree, frozen: Tree) -> dict[str, Any]:
    """Returns the tree that `split` took apart."""
    return unflatten({**flatten(trainable), **flatten(frozen)})


@dataclasses.dataclass(frozen=True)
class Age:
    """Since which phase of a run each parameter has been trained without a break.

    Parameters that join later have moments, and a count for their bias correction, of their own: at
    the count of the others, zero moments would pass for well-known ones, and Adam's first updates
    would be several times too large.

    Attributes:
      history: (label, frozen patterns) of the phases whose moments can still be there, the present
        one last; a phase with the patterns of the one before is left out.
    """

    history: tuple[tuple[str, tuple[str, ...]], ...] = (("phase_0", ()),)

    def __call__(self, path: str) -> str:
        """Returns the label of the phase since which the parameter at `path` has been trained."""
        label = self.history[-1][0]
        for earlier, frozen in reversed(self.history):
            if any(_matches(pattern, path) for pattern in frozen):
                break
            label = earlier
        return label

    def several(self) -> bool:
        """Returns whether parameters can differ in age."""
        return len(self.history) > 1

    def apart(self, transform: optax.GradientTransformation) -> optax.GradientTransformation:
        """Returns `transform` with a state for each age, by label; itself where all are equal."""
        if not self.several():
            return transform

        def parts(tree: Tree) -> dict[str, dict[str, Any]]:
            flat: dict[str, dict[str, Any]] = {}
            for path, leaf in flatten(tree).items():
                flat.setdefault(self(path), {})[path] = leaf
            return {label: unflatten(part) for label, part in flat.items()}

        def init(params: Tree) -> dict[str, Any]:
            return {label: transform.init(part) for label, part in parts(params).items()}

        def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Any, Any]:
            assert params is not None
            of_updates, of_params = parts(updates), parts(params)
            done = {
                label: transform.update(of_updates[label], state[label], of_params[label])
                for label in state
            }
            merged = {k: v for part, _ in done.values() for k, v in flatten(part).items()}
            return unflatten(merged), {label: after for label, (_, after) in done.items()}

        return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How gradients become new parameters.

    Attributes:
      transform: clips, rescales and adds weight decay; knows no learning rate. Its update takes the
        step number as `step`.
      schedule: the learning rate by step.
      weight_decay: by step, before the learning rate multiplies it.
      age: since when each parameter has been trained.
      groups: (pattern, factor); the first match scales a parameter's rate, no match means 1.
      frozen: patterns of parameters that get no gradient and no memory.
    """

    transform: optax.GradientTransformationExtraArgs
    schedule: schedules.Schedule
    weight_decay: schedules.Schedule
    age: Age
    groups: tuple[tuple[str, float], ...] = ()
    frozen: tuple[str, ...] = ()

    def factor(self, path: str) -> float:
        """Returns the factor on the learning rate of the parameter at `path`."""
        return next((float(f) for pattern, f in self.groups if _matches(pattern, path)), 1.0)

    def updates(
        self, gradients: Tree, opt_state: Any, trainable: Tree, step: jax.Array
    ) -> tuple[dict[str, Any], Any]:
        """Returns what to add to the trainable parameters, and the new optimizer state."""
        directions, opt_state = self.transform.update(gradients, opt_state, trainable, step=step)
        rate = self.schedule(step)
        scaled = {
            path: (-rate * self.factor(path)).astype(leaf.dtype) * leaf
            for path, leaf in flatten(directions).items()
        }
        return unflatten(scaled), opt_state

    def check(self, params: Tree) -> None:
        """Raises UserError for a pattern without a parameter, or if nothing is left to train."""
        check_patterns("frozen", self.frozen, params)
        check_patterns("learning-rate group", [pattern for pattern, _ in self.groups], params)
        if not flatten(split(params, self.frozen)[0]):
            raise UserError("Every parameter is frozen; leave something to train.")


def decays(path: str, leaf: Any, no_decay: Sequence[str]) -> bool:
    """Returns whether weight decay applies: never to vectors, scalars and `no_decay` paths.

    The patterns matter beside the rank because a scanned stack holds biases as `[layers, width]`.
    """
    return leaf.ndim > 1 and not any(_matches(pattern, path) for pattern in no_decay)


def _matrix(
    path: str, table: Sequence[tuple[str, Sequence[int], Sequence[int]]]
) -> optax.contrib.MuonDimensionNumbers | None:
    for pattern, inputs, outputs in table:
        if _matches(pattern, path):
            return optax.contrib.MuonDimensionNumbers(tuple(inputs), tuple(outputs))
    return None


def _clip(norm: float, start: int) -> optax.GradientTransformation:
    """Returns clipping by the global norm from step `start` on."""
    clip = optax.clip_by_global_norm(norm)
    if not start:
        return clip

    def update(
        updates: Any, state: Any, params: Any = None, *, step: jax.Array, **other: Any
    ) -> tuple[Any, Any]:
        del params, other
        clipped, state = clip.update(updates, state)
        return jax.tree.map(lambda c, u: jnp.where(step >= start, c, u), clipped, updates), state

    return optax.GradientTransformationExtraArgs(clip.init, update)


def _decay(schedule: schedules.Schedule) -> optax.GradientTransformation:
    """Returns decoupled weight decay by step; like optax's constant one it has no memory."""

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: Any, state: Any, params: Any = None, *, step: jax.Array, **other: Any
    ) -> tuple[Any, Any]:
        del other
        rate = schedule(step)
        return jax.tree.map(lambda u, p: u + rate.astype(p.dtype) * p, updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False


def _is_row(row: Any) -> bool:
    if not isinstance(row, tuple | list) or len(row) != 3 or not _is_pattern(row[0]):
        return False
    return all(
        isinstance(axes, tuple | list) and axes and all(isinstance(axis, int) for axis in axes)
        for axes in row[1:]
    )


def _check_tables(config: Mapping[str, Any]) -> None:
    for pattern in config["no_decay"]:
        if not _is_pattern(pattern):
            raise UserError(f"optimizer.no_decay has {pattern!r}; give a regular expression.")
    for row in config["muon_matrices"]:
        if not _is_row(row):
            raise UserError(
                f"optimizer.muon_matrices has {row!r}; give (regular expression, "
                "(input axis, ...), (output axis, ...))."
            )


def make(
    config: Mapping[str, Any],
    *,
    steps: int,
    frozen: Sequence[str] = (),
    groups: Sequence[tuple[str, float]] = (),
    first: int = 0,
    age: Age | None = None,
) -> Optimizer:
    """Returns the optimizer of a config.

    Args:
      config: the section `optimizer`; see `jepa.training.config.default_optimizer_config`.
      steps: length of the run, or of the phase.
      frozen: patterns from the method's requirements.
      groups: learning-rate groups from the method's requirements.
      first: step of the run at which the schedules begin.
      age: since when each parameter has been trained; None for a run that begins.

    Raises:
      UserError: for an unknown optimizer or schedule, or patterns that are none.
    """
    name = config["name"]
    if name not in NAMES:
        raise UserError(f"optimizer.name is {name!r}; choose one of {', '.join(map(repr, NAMES))}.")
    _check_tables(config)
    no_decay = tuple(config["no_decay"])

    def mask(params: Tree) -> dict[str, Any]:
        flat = flatten(params)
        return unflatten({path: decays(path, leaf, no_decay) for path, leaf in flat.items()})

    age = Age((("phase_0", tuple(frozen)),)) if age is None else age
    length = schedules.stretched(steps, config["schedule_scale"])
    weight_decay = schedules.shifted(
        schedules.weight_decay(config["weight_decay"], config["final_weight_decay"], steps=length),
        first,
    )
    chain = []
    if config["clip_norm"] is not None:
        start = first + config["clip_from"] if config["clip_from"] else 0
        chain.append(_clip(config["clip_norm"], start))
    chain.append(age.apart(_rescale(config)))
    if config["final_weight_decay"] is not None:
        chain.append(optax.masked(_decay(weight_decay), mask))
    elif config["weight_decay"]:
        chain.append(optax.add_decayed_weights(config["weight_decay"], mask=mask))
    rate = schedules.learning_rate(
        config["schedule"],
        peak=config["learning_rate"],
        steps=length,
        warmup_steps=config["warmup_steps"],
        decay_steps=config["decay_steps"],
        start_factor=config["start_factor"],
        final_factor=config["final_factor"],
    )
    return Optimizer(
        transform=optax.chain(*chain),
        schedule=schedules.shifted(rate, first),
        weight_decay=weight_decay,
        age=age,
        groups=tuple((pattern, float(factor)) for pattern, factor in groups),
        frozen=tuple(frozen),
    )


def _rescale(config: Mapping[str, Any]) -> optax.GradientTransformation:
    """Returns what turns gradients into directions: the part that has moments."""
    name = config["name"]
    if name == "adamw":
        return optax.scale_by_adam(config["b1"], config["b2"], eps=config["eps"])
    if name == "lion":
        return optax.scale_by_lion(config["b1"], config["b2"])
    if name == "sgd":
        return optax.trace(decay=config["b1"])

    def matrices(params: Tree) -> dict[str, Any]:
        flat = flatten(params)
        return unflatten({path: _matrix(path, config["muon_matrices"]) for path in flat})

    return optax.contrib.muon(
        learning_rate=-1.0,  # optax turns its sign; the step applies the rate
        beta=config["muon_momentum"],
        # Updates as large as Adam's, so that one rate serves both (2502.16982, eq. 4).
        consistent_rms=0.2,
        adam_b1=config["b1"],
        adam_b2=config["b2"],
        eps=config["eps"],
        muon_weight_dimension_numbers=matrices,
    )
