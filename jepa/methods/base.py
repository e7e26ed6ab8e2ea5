"""What a method is: pure functions over a config, split where the arrays to be compared appear.

`represent` makes the arrays, `objective` compares them. Gradient caching, diagnostics, probes and
planning hang on that split; so does swapping the loss. Training knows a method only through this
protocol, and a config names it by import path: there is no registry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
from flax import struct

Params = Mapping[str, Any]
Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]
Table = Sequence[tuple[str, tuple[str | None, ...]]]


@struct.dataclass
class Outputs:
    """The arrays that an objective compares, by name.

    Rows are examples, in the order of the batch (or P rows an example, example by example): a
    gradient cache puts them together from micro-batches by that, and cannot see another order.
    Likewise some stream of a batch has exactly one row an example.

    Attributes:
      pooled: one vector an example, `[B, S]`.
      tokens: one vector a token, `[B, N, D]`.
      scalars: learnt numbers of the objective (such as the temperature), and data that only the
        objective needs (such as the hashes of the targets).
    """

    pooled: dict[str, jax.Array] = struct.field(default_factory=dict)
    tokens: dict[str, jax.Array] = struct.field(default_factory=dict)
    scalars: dict[str, jax.Array] = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Requirements:
    """What a method asks of the train step.

    Attributes:
      ema: whether the step keeps an exponential moving average of the parameters and hands it to
        `represent` as `target_params`.
      frozen: patterns (full match on the `/`-joined path) of parameters that get no gradient and
        no optimizer memory.
      learning_rate_groups: (pattern, factor) pairs; the first match scales a parameter's rate.
    """

    ema: bool = False
    frozen: tuple[str, ...] = ()
    learning_rate_groups: tuple[tuple[str, float], ...] = ()


class Method(Protocol):
    """Pure functions that define one way to learn; see the module's docstring."""

    requirements: Requirements
    partition_table: Table

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Params]:
        """Returns freshly drawn `(params, state)` for a batch of this structure."""

    def pretrained(self) -> Mapping[str, Any]:
        """Returns published weights as `{path prefix: nested tree}`.

        Leaves are NumPy arrays, or `jepa.interop.loading.Pending`: large ones, to be read when
        their place is known.
        """

    def represent(
        self,
        params: Params,
        target_params: Params | None,
        state: Params,
        batch: Batch,
        rng: jax.Array,
    ) -> tuple[Outputs, Params]:
        """Returns the arrays to be compared and the new mutable state (batch norm and the like)."""

    def objective(self, outputs: Outputs, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the scalar loss over the global batch and scalars to log."""

    def embed(self, params: Params, state: Params, batch: Batch) -> Outputs:
        """Returns the vectors that evaluation compares, for the streams present in the batch."""

    def flops(self, batch: Batch) -> float:
        """Returns the analytic FLOPs of one train step on a batch of this structure."""
