"""Micro-batches of a global batch: which example goes where, and back.

Letters: B examples, M micro-batches, P rows an example (such as query-answer pairs a clip).
Micro-batch `i` holds the examples `i, i + M, i + 2 * M, ...` in this order, so that every device
splits what it already has and nothing crosses devices.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jepa.parallel import partition


@dataclasses.dataclass(frozen=True)
class MicroBatches:
    """A batch cut by example; `of` makes it.

    Attributes:
      examples: B, the smallest leading dimension of the streams. A stream with P rows an example
        has B * P of them, example by example, and an example's rows are never torn apart.
      parts: M, which divides B.
    """

    examples: int
    parts: int

    @classmethod
    def of(cls, batch: Any, parts: int) -> MicroBatches:
        """Finds the examples of a batch, a tree of arrays whose leading dimensions are B * P.

        Raises:
          ValueError: an array without dimensions, a leading dimension that is no multiple of the
            smallest one, or a number of examples that `parts` does not divide.
        """
        streams = {partition.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(batch)}
        for name, x in streams.items():
            if not x.ndim:
                raise ValueError(f"stream {name} is a scalar; micro-batches need rows of examples.")
        examples = min(x.shape[0] for x in streams.values())
        for name, x in streams.items():
            if x.shape[0] % examples:
                raise ValueError(
                    f"stream {name} has {x.shape[0]} rows, no multiple of the {examples} examples "
                    "of the batch (its smallest leading dimension)."
                )
        if examples % parts:
            raise ValueError(f"{examples} examples do not split into {parts} micro-batches.")
        return cls(examples, parts)

    def fold(self, rows: Any) -> Any:
        """Turns arrays `[B * P, ...]` into `[B / M, M * P, ...]`, which moves nothing."""
        size = self.examples // self.parts
        return jax.tree.map(lambda x: on_batch_axes(x.reshape(size, -1, *x.shape[1:])), rows)

    def unfold(self, folded: Any) -> Any:
        """Turns arrays `[B / M, M * P, ...]` back into `[B * P, ...]`, in the first order."""
        return jax.tree.map(lambda x: on_batch_axes(x.reshape(-1, *x.shape[2:])), folded)

    def take(self, folded: Any, index: jax.Array) -> Any:
        """Returns micro-batch `index`: arrays `[B / M * P, ...]` of folded ones."""

        def one(x: jax.Array) -> jax.Array:
            pairs = x.shape[1] // self.parts
            part = jax.lax.dynamic_slice_in_dim(x, index * pairs, pairs, axis=1)
            return on_batch_axes(part.reshape(-1, *x.shape[2:]))

        return jax.tree.map(one, folded)

    def put(self, folded: Any, part: Any, index: jax.Array) -> Any:
        """Returns the folded arrays with micro-batch `index` set to `part`; see `take`."""

        def one(x: jax.Array, rows: jax.Array) -> jax.Array:
            pairs = x.shape[1] // self.parts
            rows = on_batch_axes(rows).reshape(x.shape[0], pairs, *x.shape[2:])
            return jax.lax.dynamic_update_slice_in_dim(x, rows, index * pairs, axis=1)

        return jax.tree.map(one, folded, part)

    def zeros(self, rows: Any) -> Any:
        """Returns folded zeros for the shapes `[B * P, ...]` of arrays."""
        return self.fold(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rows))


def on_batch_axes(x: jax.Array) -> jax.Array:
    """Lays the leading dimension of an array over the batch axes of the mesh."""
    return partition.constrain(x, "batch", *(None,) * (x.ndim - 1))
