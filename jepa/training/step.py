"""The train step: one pure function, compiled once and ahead of time.

Non-finite steps are skipped inside the program (`jnp.where` on every array), so that no step waits
for the host to look at its loss.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from jepa.methods.base import Batch, Method, Metrics, Outputs
from jepa.parallel import hosts
from jepa.parallel import mesh as meshes
from jepa.training.gradients import Differentiated, accumulated, cached, whole
from jepa.training.optimizer import Optimizer, merge, split
from jepa.training.schedules import Schedule
from jepa.training.state import TrainState


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _average(target: Any, params: Any, momentum: jax.Array) -> Any:
    """Moves the target towards the parameters; integers are taken over."""

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return new
        return old + (1 - momentum).astype(old.dtype) * (new - old)

    return jax.tree.map(move, target, params)


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """What happens to a state when it meets a batch.

    Attributes:
      method: whose loss is followed.
      optimizer: how the gradient becomes an update.
      seed: of the run; the key of a step is folded from (seed, step) alone.
      ema: momentum of the target by step; None when the method needs no target.
      accumulate: micro-batches a step, for a batch whose activations do not fit into memory. See
        `jepa.training.microbatches` for which examples each one holds.
      gradient_cache: what they mean. If False, the losses and gradients of micro-batches are
        averaged: a loss that compares examples, such as InfoNCE, sees the negatives of its own
        micro-batch only. If True, loss and gradient are those of the whole batch, for one more
        forward pass; see `jepa.training.gradients.cached`.
    """

    method: Method
    optimizer: Optimizer
    seed: int
    ema: Schedule | None = None
    accumulate: int = 1
    gradient_cache: bool = False

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Returns the next state, and scalars: loss, norms, schedules, the method's own."""
        scheduled = {
            "learning_rate": self.optimizer.schedule(state.step),
            "weight_decay": self.optimizer.weight_decay(state.step),
        }
        rng = jax.random.fold_in(jax.random.key(self.seed), state.step)
        trainable, frozen = split(state.params, self.optimizer.frozen)
        loss, metrics, method_state, gradients = self._differentiate(
            trainable, frozen, state, batch, rng
        )
        gradient_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        updates, opt_state = self.optimizer.updates(
            gradients, state.opt_state, trainable, state.step
        )
        trainable = _where(finite, optax.apply_updates(trainable, updates), trainable)
        params, target = merge(trainable, frozen), state.target_params
        if self.ema is not None:
            scheduled["ema_momentum"] = self.ema(state.step)
            target = _average(target, params, scheduled["ema_momentum"])
        state = TrainState(
            step=state.step + 1,
            params=params,
            target_params=_where(finite, target, state.target_params),
            opt_state=_where(finite, opt_state, state.opt_state),
            method_state=_where(finite, method_state, state.method_state),
            skipped=state.skipped + (1 - finite.astype(jnp.int32)),
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        return state, {
            **metrics,
            "loss": loss,
            "gradient_norm": gradient_norm,
            "update_norm": optax.tree.norm(updates),
            **scheduled,
            "skipped": state.skipped,
            "skipped_in_a_row": state.skipped_in_a_row,
        }

    def _differentiate(
        self, trainable: Any, frozen: Any, state: TrainState, batch: Batch, rng: jax.Array
    ) -> Differentiated:
        def represent(trainable: Any, method_state: Any, batch: Batch, rng: jax.Array):
            params = merge(trainable, frozen)
            return self.method.represent(params, state.target_params, method_state, batch, rng)

        def objective(outputs: Outputs) -> tuple[jax.Array, Metrics]:
            return self.method.objective(outputs, state.step)

        if self.gradient_cache:
            gradient = cached(represent, objective, self.accumulate)
        elif self.accumulate > 1:
            gradient = accumulated(represent, objective, self.accumulate)
        else:
            gradient = whole(represent, objective)
        return gradient(trainable, state.method_state, batch, rng)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The program of a step; a batch of another shape is an error, never a second compilation.

    Attributes:
      program: the loaded executable; donates the state it is given.
      seconds: what tracing, lowering and compiling took.
      memory: bytes a device holds while it runs (arguments, outputs and temporaries less what is
        donated), as the compiler counts them; None where it does not tell.
    """

    program: Any
    seconds: float
    memory: int | None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Runs the step; `state` is consumed."""
        return self.program(state, batch)


def trace(step: TrainStep, mesh: Mesh | AbstractMesh, state: TrainState, batch_spec: Any) -> Any:
    """Returns the step traced for a mesh, which may be one that is only described.

    Args:
      step: the pure step.
      mesh: where it runs.
      state: tree of ShapeDtypeStruct with shardings (`Initializer.shapes`).
      batch_spec: tree of ShapeDtypeStruct of the global batch.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return step(state, batch)

    of_state = jax.tree.map(lambda x: x.sharding, state)
    of_batch = jax.tree.map(lambda _: meshes.batch_sharding(mesh), batch_spec)
    with meshes.using(mesh):
        jitted = jax.jit(
            train_step,
            in_shardings=(of_state, of_batch),
            out_shardings=(of_state, meshes.replicated(mesh)),
            donate_argnums=0,
        )
        return jitted.trace(state, batch_spec)


def lower(step: TrainStep, mesh: Mesh, state: TrainState, batch_spec: Any) -> Any:
    """Returns the step lowered for a mesh; arguments as for `trace`."""
    traced = trace(step, mesh, state, batch_spec)
    with jax.set_mesh(mesh):
        return traced.lower()


def compile_step(step: TrainStep, mesh: Mesh, state: TrainState, batch_spec: Any) -> Compiled:
    """Returns the compiled step when all processes have theirs; arguments as for `lower`."""
    start = time.perf_counter()
    program = lower(step, mesh, state, batch_spec).compile()
    compiled = Compiled(program, time.perf_counter() - start, _memory(program))
    # Gloo, which connects CPUs when a program first runs, gives up on who still compiles.
    hosts.barrier("run what it compiled")
    return compiled


def _memory(program: Any) -> int | None:
    analysis = program.memory_analysis()
    if analysis is None:
        return None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def global_spec(element_spec: Any, process_count: int = 1) -> Any:
    """Returns shapes of the global batch for those of the batch one host loads."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((s.shape[0] * process_count, *s.shape[1:]), s.dtype),
        element_spec,
    )
