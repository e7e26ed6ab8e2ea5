"""Watches a run's representations for collapse: measures now and then, logs, and says so.

What is measured is a program of its own, compiled once beside the train step, which it leaves as
it is. It makes the arrays that the method compares (`Method.represent`), on up to 512 examples of
the batch that was just trained on, and reduces them on the device to a few dozen scalars; the host
fetches these once they are ready and waits for nothing.

The cost is one forward pass on those examples and some singular values, every `train.health_every`
steps: at 100, about 0.3 % of the time of a step that runs forward and backward.

Letters: B examples, N tokens, D width. Names of what is logged: `health/ARRAY/ROWS/MEASURE`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jepa.losses.health import embedding_health, gaussianity, rankme
from jepa.methods.base import Batch, Method, Outputs
from jepa.parallel import mesh as meshes
from jepa.training import collapse, metrics
from jepa.training.microbatches import MicroBatches
from jepa.training.progress import Progress
from jepa.training.state import TrainState

log = logging.getLogger("jepa")

# A rank is that of the sample where this is too few, and costs its cube where it is too many.
EXAMPLES = 512
# Tokens are compared within a clip, and a few clips tell.
CLIPS, TOKENS = 8, 128
# Keeping no activations, a forward pass has room for some of the step's micro-batches.
_MICRO_BATCHES = 4
# Of token arrays: guesses are no representation, and places of a clip shall not look alike (while
# views of an image, say, shall).
_GUESSES, _PLACES = "copy/", ("prediction/", "target/")
_COPY = "prediction_over_copy"


def measure(outputs: Outputs, key: jax.Array) -> dict[str, jax.Array]:
    """Returns scalars by `ARRAY/ROWS/MEASURE`.

    ROWS `examples`: over the batch, tokens averaged; what collapses when all clips look alike.
    MEASURE is `std`, `mean_cosine`, `effective_rank`, `rankme` or `gaussianity`, see
    `jepa.losses.health`. ROWS `tokens`, of `prediction/...` and `target/...`: over the tokens of an
    example, averaged over a few examples; what collapses when all places of a clip look alike.
    MEASURE is one of the first three.

    Args:
      outputs: pooled arrays `[B, D]`, token arrays `[B, N, D]`; guesses (`copy/...`) are left out.
      key: of the random slices of `gaussianity`.
    """
    pooled = dict(outputs.pooled)
    found: dict[str, jax.Array] = {}
    for name, tokens in outputs.tokens.items():
        if name.startswith(_GUESSES):
            continue
        pooled[name] = jnp.mean(tokens, axis=1, dtype=jnp.promote_types(tokens.dtype, jnp.float32))
        if name.startswith(_PLACES) and tokens.shape[1] > 1:
            few = _spread(_spread(tokens, CLIPS), TOKENS, axis=1)
            # One after the other: jaxlib's CPU kernel for a batch of matrices waits, in a thread of
            # its pool, for other threads of the pool. With a device for each thread all wait.
            within = jax.lax.map(embedding_health, few)
            found |= {f"{name}/tokens/{which}": jnp.mean(x) for which, x in within.items()}
    for name, rows in pooled.items():
        rows = _spread(rows, EXAMPLES)
        values = embedding_health(rows)
        values |= {"rankme": rankme(rows), "gaussianity": gaussianity(rows, key)}
        found |= {f"{name}/examples/{which}": x for which, x in values.items()}
    return found


def _spread(x: jax.Array, most: int, axis: int = 0) -> jax.Array:
    """Takes at most `most` slices along an axis, evenly spread."""
    count = x.shape[axis]
    if count <= most:
        return x
    return jnp.take(x, np.linspace(0, count - 1, most).round().astype(np.int32), axis=axis)


def parts_of(examples: int, shards: int, accumulate: int) -> int:
    """Returns into how many parts, one of which is measured, a batch is cut.

    Args:
      examples: of the global batch.
      shards: its parts on devices, which hold equally many.
      accumulate: micro-batches of the step, whose size says what fits into memory.

    Raises:
      ValueError: fewer than two examples.
    """
    if examples < 2:
        raise ValueError(f"{examples} example has nothing to be compared with")
    each = examples // shards
    most = max(2, min(EXAMPLES, examples * _MICRO_BATCHES // accumulate))
    fitting = [p for p in range(1, each + 1) if each % p == 0 and examples // p >= 2]
    return next((p for p in fitting if examples // p <= most), fitting[-1])


def lower(
    method: Method, mesh: Mesh, state: TrainState, batch_spec: Any, *, seed: int, accumulate: int
) -> Any:
    """Returns the measuring program `(state without optimizer, batch) -> scalars`, lowered.

    Args:
      method: whose arrays are measured.
      mesh: where the run trains.
      state: tree of ShapeDtypeStruct with shardings (`Initializer.shapes`).
      batch_spec: tree of ShapeDtypeStruct of the global batch.
      seed: of the run.
      accumulate: micro-batches of the step.
    """
    rows = [x.shape[0] for x in jax.tree.leaves(batch_spec)]
    # A batch of clips and of images, so many of each, stays whole.
    even = all(count % min(rows) == 0 for count in rows)
    parts = parts_of(min(rows), meshes.batch_shards(mesh), accumulate) if even else 1
    cut = MicroBatches.of(batch_spec, parts) if parts > 1 else None

    def health(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        # Not the step's own numbers: it has drawn with those of step - 1.
        rng = jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 2))
        first, second = jax.random.split(jax.random.fold_in(rng, state.step))
        part = cut.take(cut.fold(batch), jnp.zeros((), jnp.int32)) if cut else batch
        outputs, _ = method.represent(
            state.params, state.target_params, state.method_state, part, first
        )
        found = measure(outputs, second)
        compared = method.objective(outputs, state.step)[1]
        return found | {name: compared[name] for name in (_COPY,) if name in compared}

    state = watched(state)
    of_state = jax.tree.map(lambda x: x.sharding, state)
    of_batch = jax.tree.map(lambda _: meshes.batch_sharding(mesh), batch_spec)
    with jax.set_mesh(mesh):
        jitted = jax.jit(
            health, in_shardings=(of_state, of_batch), out_shardings=meshes.replicated(mesh)
        )
        return jitted.lower(state, batch_spec)


def watched(state: TrainState) -> TrainState:
    """Returns the part of a state that representations depend on."""
    return dataclasses.replace(state, opt_state=None)


class Health:
    """Measures after the run's first step and then every so many, one fetch behind.

    Nothing here waits for the devices but `flush`, and a second measurement while the first is
    still on its way.
    """

    def __init__(
        self,
        program: Any,
        *,
        writer: metrics.MetricWriter,
        progress: Progress,
        every: int,
        first: int,
        past: collapse.History,
        main: bool,
    ):
        """Begins; `start` makes one.

        Args:
          program: the compiled one of `lower`; None for a run that measures nothing.
          writer: where the numbers go.
          progress: where good news goes; bad news, a note included, is a warning in the log.
          every: steps between measurements.
          first: a step to measure besides.
          past: what the run measured before, if it was interrupted.
          main: whether this process is the one that tells.
        """
        self._program, self._writer, self._progress = program, writer, progress
        self._every, self._first, self._main = every, first, main
        self._history = list(past)
        self._said = _gist(collapse.judge(self._history))
        self._held: tuple[int, dict[str, Any]] | None = None

    @classmethod
    def start(
        cls,
        method: Method,
        mesh: Mesh,
        state: TrainState,
        batch_spec: Any,
        *,
        every: int,
        seed: int,
        accumulate: int,
        start: int,
        steps: int,
        directory: str | Path,
        writer: metrics.MetricWriter,
        progress: Progress,
    ) -> Health:
        """Compiles what the steps `start + 1` to `steps` need, if any of them is due.

        Args:
          method, mesh, state, batch_spec, seed, accumulate: as for `lower`.
          every: `train.health_every`; 0 measures nothing.
          start: steps done.
          steps: of the run.
          directory: the workdir, whose metrics.jsonl holds what was measured before.
          writer, progress: where the numbers and words go.
        """
        main = jax.process_index() == 0
        past = collapse.read(directory, until=start) if main and start else []
        program = None
        examples = min(x.shape[0] for x in jax.tree.leaves(batch_spec))
        if every and steps // every > start // every:
            if examples < 2:
                progress.line("no health is measured: a batch of one has nothing to compare")
            else:
                began = time.perf_counter()
                lowered = lower(method, mesh, state, batch_spec, seed=seed, accumulate=accumulate)
                program = lowered.compile()
                seconds = time.perf_counter() - began
                progress.line(f"health every {every} steps; compiled in {seconds:.1f}s")
        first = start + 1 if start == 0 else 0
        return cls(
            program,
            writer=writer,
            progress=progress,
            every=every,
            first=first,
            past=past,
            main=main,
        )

    def after(self, step: int, state: TrainState, batch: Batch) -> None:
        """Measures if `step`, which gave this state from this batch, is due."""
        if self._program is None:
            return
        due = step == self._first or step % self._every == 0
        self._finish(wait=due)
        if due:
            self._held = (step, self._program(watched(state), batch))

    def flush(self) -> None:
        """Waits for what is on its way, and logs it."""
        self._finish(wait=True)

    def _finish(self, *, wait: bool) -> None:
        if self._held is None:
            return
        step, scalars = self._held
        if not wait and not all(x.is_ready() for x in scalars.values()):
            return
        self._held = None
        if self._main:
            self._tell(step, {name: float(x) for name, x in jax.device_get(scalars).items()})

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        self._history.append((step, values))
        verdict = collapse.judge(self._history)
        logged = {f"{collapse.PREFIX}{name}": value for name, value in values.items()}
        logged[collapse.VERDICT] = float(collapse.STATES.index(verdict.state))
        self._writer.write_scalars(step, logged)
        if _gist(verdict) == self._said:
            return
        self._said = _gist(verdict)
        words = f"step {step}: the representations are {verdict}"
        if verdict == collapse.Verdict(collapse.HEALTHY):
            self._progress.line(words)
        else:
            log.warning("%s (docs/collapse.md says what to do)", words)


def _gist(verdict: collapse.Verdict) -> tuple[str, bool]:
    """What of a verdict is news when it changes: its numbers always do."""
    return verdict.state, bool(verdict.note)
