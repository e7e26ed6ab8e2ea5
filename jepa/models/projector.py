"""The projector of LeJEPA and its kin: from an encoder's pooled vector to where the loss lives.

N rows, D width of the encoder, S width of the projections. Source: LeJEPA (arXiv 2511.08544), whose
code takes two hidden layers of 2048 with batch norm and ReLU, and S from 16 to 512.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jepa.errors import UserError
from jepa.models.flops import linear
from jepa.nn.linear import Linear
from jepa.nn.norms import BatchNorm, LayerNorm
from jepa.parallel.partition import Table, prefixed

NORMS = ("batch", "layer", "none")


class Projector(nn.Module):
    """Hidden layers of matrix, norm and ReLU, then one matrix more.

    Parameters: `linear_I/kernel` (and `bias`, unless a batch norm follows, which would subtract it
    again), `norm_I/{scale,bias}`. State, with batch norm: `norm_I/{mean,variance}` in the
    collection `batch_stats`.

    Attributes:
      features: S.
      hidden: widths of the hidden layers.
      norm: "batch" (the published one), "layer" or "none".
      momentum: of batch norm's averages; see `nn.norms.BatchNorm`.
    """

    features: int
    hidden: tuple[int, ...] = (2048, 2048)
    norm: str = "batch"
    momentum: float = 0.1
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[N, D]` to `[N, S]`; `train` is batch norm's.

        Raises:
          UserError: an unknown norm.
        """
        for i, width in enumerate(self.hidden):
            x = self._linear(i, width, name=f"linear_{i}")(x)
            x = self._normalise(x, f"norm_{i}", train)
            x = nn.relu(x)
        last = len(self.hidden)
        return self._linear(last, self.features, name=f"linear_{last}")(x)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        rows: list[Any] = []
        for i, _ in enumerate(self.hidden):
            rows += prefixed(f"linear_{i}", self._linear(i, 0, parent=None).partition_table())
            if self.norm != "none":
                # The rows of both norms are the same.
                rows += prefixed(f"norm_{i}", BatchNorm().partition_table())
        last = len(self.hidden)
        rows += prefixed(f"linear_{last}", self._linear(last, 0, parent=None).partition_table())
        return tuple(rows)

    @nn.nowrap
    def flops(self, rows: int, inputs: int) -> float:
        """Returns the operations of a forward pass of `[rows, inputs]`; see `models.flops`."""
        widths = (inputs, *self.hidden, self.features)
        return sum(linear(rows, a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    @nn.nowrap
    def _linear(self, index: int, width: int, **options: Any) -> Linear:
        """Layer `index`; hidden widths are cut over the tensor axis, turn about with the other."""
        last = index == len(self.hidden)
        inward = "embed" if index % 2 == 0 else "mlp"
        outward = "shared" if last else "mlp" if index % 2 == 0 else "embed"
        return Linear(
            width,
            bias=last or self.norm != "batch",
            axes=(inward, outward),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            **options,
        )

    @nn.nowrap
    def _normalise(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.norm == "batch":
            return BatchNorm(momentum=self.momentum, name=name, **types)(x, train=train)
        if self.norm == "layer":
            return LayerNorm(name=name, **types)(x)
        if self.norm == "none":
            return x
        raise UserError(f"norm is {self.norm!r}; it can be one of {', '.join(NORMS)}")
