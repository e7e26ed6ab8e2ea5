"""The optimizer: an optax transformation without a rate, a schedule and factors by path.

The learning rate is applied by the step, not inside optax, so that it follows the step number
(which advances over skipped steps) and so that groups cost no optimizer memory.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
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
class Optimizer:
    """How gradients become new parameters.

    Attributes:
      transform: clips, rescales and adds weight decay; knows no learning rate.
      schedule: the learning rate by step.
      groups: (pattern, factor); the first match scales a parameter's rate, no match means 1.
      frozen: patterns of parameters that get no gradient and no memory.
    """

    transform: optax.GradientTransformation
    schedule: schedules.Schedule
    groups: tuple[tuple[str, float], ...] = ()
    frozen: tuple[str, ...] = ()

    def factor(self, path: str) -> float:
        """Returns the factor on the learning rate of the parameter at `path`."""
        return next((float(f) for pattern, f in self.groups if _matches(pattern, path)), 1.0)

    def updates(
        self, gradients: Tree, opt_state: Any, trainable: Tree, step: jax.Array
    ) -> tuple[dict[str, Any], Any]:
        """Returns what to add to the trainable parameters, and the new optimizer state."""
        directions, opt_state = self.transform.update(gradients, opt_state, trainable)
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


def make(
    config: Mapping[str, Any],
    *,
    steps: int,
    frozen: Sequence[str] = (),
    groups: Sequence[tuple[str, float]] = (),
) -> Optimizer:
    """Returns the optimizer of a config.

    Args:
      config: the section `optimizer`; see `jepa.training.config.default_optimizer_config`.
      steps: length of the run.
      frozen: patterns from the method's requirements.
      groups: learning-rate groups from the method's requirements.

    Raises:
      UserError: for an unknown optimizer or schedule.
    """
    name = config["name"]
    if name not in NAMES:
        raise UserError(f"optimizer.name is {name!r}; choose one of {', '.join(map(repr, NAMES))}.")
    no_decay = tuple(config["no_decay"])

    def mask(params: Tree) -> dict[str, Any]:
        flat = flatten(params)
        return unflatten({path: decays(path, leaf, no_decay) for path, leaf in flat.items()})

    def matrices(params: Tree) -> dict[str, Any]:
        flat = flatten(params)
        return unflatten({path: _matrix(path, config["muon_matrices"]) for path in flat})

    chain = []
    if config["clip_norm"] is not None:
        chain.append(optax.clip_by_global_norm(config["clip_norm"]))
    if name == "adamw":
        chain.append(optax.scale_by_adam(config["b1"], config["b2"], eps=config["eps"]))
    elif name == "muon":
        chain.append(
            optax.contrib.muon(
                learning_rate=-1.0,  # optax turns its sign; the step applies the rate
                beta=config["muon_momentum"],
                # Updates as large as Adam's, so that one rate serves both (2502.16982, eq. 4).
                consistent_rms=0.2,
                adam_b1=config["b1"],
                adam_b2=config["b2"],
                eps=config["eps"],
                muon_weight_dimension_numbers=matrices,
            )
        )
    elif name == "lion":
        chain.append(optax.scale_by_lion(config["b1"], config["b2"]))
    else:
        chain.append(optax.trace(decay=config["b1"]))
    if config["weight_decay"]:
        chain.append(optax.add_decayed_weights(config["weight_decay"], mask=mask))
    return Optimizer(
        transform=optax.chain(*chain),
        schedule=schedules.learning_rate(
            config["schedule"],
            peak=config["learning_rate"],
            steps=steps,
            warmup_steps=config["warmup_steps"],
            decay_steps=config["decay_steps"],
            final_factor=config["final_factor"],
        ),
        groups=tuple((pattern, float(factor)) for pattern, factor in groups),
        frozen=tuple(frozen),
    )
