"""Schedules of the learning rate, the weight decay and the EMA momentum as functions of the step.

A schedule maps a zero-based step (Python int or traced int32) to a float32 scalar. Durations are
in steps. The value of step `s` is the one its update uses, so warm-up ends with the peak at
`s = warmup_steps - 1`, what falls or rises after it begins at its start value, and its final value
is that of `s = steps`, one beyond the last step: no step is spent at rate zero. (The published code
of V-JEPA counts one step further where the rate falls and the decay rises.)

A schedule can be stretched: computed for `scale * steps` and cut at `steps`, as the published
configs do with `ipe_scale`. What counts is then where it is cut, not its final value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jepa.errors import UserError

Schedule = Callable[[Any], jax.Array]

NAMES = ("constant", "cosine", "linear", "wsd")


def _progress(step: Any, start: int, duration: int) -> jax.Array:
    """Returns how much of `[start, start + duration)` lies behind `step`, within [0, 1]."""
    step = jnp.asarray(step, jnp.float32)
    return jnp.clip((step - start) / max(duration, 1), 0.0, 1.0)


def stretched(steps: int, scale: float) -> int:
    """Returns the length of a schedule that is computed for `scale` times the steps."""
    return round(scale * steps)


def shifted(schedule: Schedule, first: int) -> Schedule:
    """Returns the schedule as it runs from step `first` of a run on."""
    if not first:
        return schedule
    return lambda step: schedule(step - first)


def learning_rate(
    name: str,
    *,
    peak: float,
    steps: int,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    start_factor: float = 0.0,
    final_factor: float = 0.0,
) -> Schedule:
    """Returns a learning-rate schedule.

    Args:
      name: `constant`; `cosine` or `linear` decay after the warm-up; `wsd` (warm-up, stable,
        linear decay over the last `decay_steps`).
      peak: the highest rate.
      steps: length of the run, from which missing durations follow.
      warmup_steps: length of the linear warm-up.
      decay_steps: length of the decay. None: the rest of the run after the warm-up for `cosine`
        and `linear`, a tenth of the run for `wsd`.
      start_factor: what the warm-up rises from, over the peak.
      final_factor: the rate after the decay over the peak.

    Raises:
      UserError: for an unknown name or durations that do not fit.
    """
    if name not in NAMES:
        raise UserError(
            f"optimizer.schedule is {name!r}; choose one of {', '.join(map(repr, NAMES))}."
        )
    if warmup_steps < 0 or (decay_steps is not None and decay_steps < 1):
        raise UserError(
            f"optimizer.warmup_steps is {warmup_steps} and optimizer.decay_steps {decay_steps}; "
            "give a warm-up of at least 0 and a decay of at least 1 step, or None."
        )
    if name == "wsd":
        decay_steps = max(steps // 10, 1) if decay_steps is None else decay_steps
        start = steps - decay_steps
        if start < warmup_steps:
            raise UserError(
                f"optimizer.warmup_steps ({warmup_steps}) and decay_steps ({decay_steps}) exceed "
                f"train.steps ({steps}); shorten one of them."
            )
    else:
        start = warmup_steps
        decay_steps = max(steps - warmup_steps, 1) if decay_steps is None else decay_steps

    def rate(step: Any) -> jax.Array:
        ahead = _progress(jnp.asarray(step, jnp.float32) + 1, 0, warmup_steps)
        warmup = start_factor + (1 - start_factor) * ahead if warmup_steps else 1.0
        behind = _progress(step, start, decay_steps)
        if name == "constant":
            decay: Any = 1.0
        elif name == "cosine":
            decay = final_factor + (1 - final_factor) * 0.5 * (1 + jnp.cos(jnp.pi * behind))
        else:
            decay = 1 - (1 - final_factor) * behind
        return jnp.asarray(peak * warmup * decay, jnp.float32)

    return rate


def weight_decay(start: float, final: float | None, *, steps: int) -> Schedule:
    """Returns the weight decay: `start` throughout, or along a half cosine to `final` at `steps`.

    The half cosine from .04 to .4 is I-JEPA's and V-JEPA's.
    """

    def value(step: Any) -> jax.Array:
        if final is None:
            return jnp.asarray(start, jnp.float32)
        behind = 0.5 * (1 - jnp.cos(jnp.pi * _progress(step, 0, steps)))
        return jnp.asarray(start + (final - start) * behind, jnp.float32)

    return value


def momentum(name: str, *, start: float, final: float, steps: int) -> Schedule:
    """Returns the EMA momentum as a function of the step: from `start` to `final` over `steps`.

    Args:
      name: `constant` (always `start`), `linear` (V-JEPA) or `cosine` (BYOL).
      start: momentum of the first step.
      final: momentum at `steps` and after.
      steps: length of the rise.

    Raises:
      UserError: for an unknown name or a momentum outside [0, 1].
    """
    if name not in ("constant", "linear", "cosine"):
        raise UserError(f"ema.schedule is {name!r}; choose one of 'constant', 'linear', 'cosine'.")
    for key, given in (("momentum", start), ("final_momentum", final)):
        if not 0 <= given <= 1:
            raise UserError(f"ema.{key} is {given}; give a number between 0 and 1.")

    def value(step: Any) -> jax.Array:
        behind = _progress(step, 0, steps)
        if name == "constant":
            behind = jnp.zeros_like(behind)
        elif name == "cosine":
            behind = 0.5 * (1 - jnp.cos(jnp.pi * behind))
        return jnp.asarray(start + (final - start) * behind, jnp.float32)

    return value
