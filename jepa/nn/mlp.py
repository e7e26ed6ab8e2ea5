"""The two feed-forward layers of the transformers here."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jepa.nn.linear import Linear, gelu
from jepa.parallel.partition import Table, prefixed


class GeluMlp(nn.Module):
    """`out(gelu(in(x)))`.

    Parameters: `in/kernel` `[D, hidden]`, `in/bias`, `out/kernel` `[hidden, D]`, `out/bias`.
    """

    hidden: int
    gelu: str = "exact"
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., D]` to `[..., D]`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = gelu(Linear(self.hidden, name="in", **types)(x), self.gelu)
        return Linear(x.shape[-1], name="out", **types)(y)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return (
            *prefixed("in", Linear(0, axes=("embed", "mlp")).partition_table()),
            *prefixed("out", Linear(0, axes=("mlp", "embed")).partition_table()),
        )


class SwiGlu(nn.Module):
    """`out(silu(gate(x)) * in(x))`, without biases.

    Parameters: `gate/kernel` and `in/kernel` `[D, hidden]`, `out/kernel` `[hidden, D]`.
    """

    hidden: int
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., D]` to `[..., D]`."""
        options = {"bias": False, "dtype": self.dtype, "param_dtype": self.param_dtype}
        gate = nn.silu(Linear(self.hidden, name="gate", **options)(x))
        return Linear(x.shape[-1], name="out", **options)(
            gate * Linear(self.hidden, name="in", **options)(x)
        )

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        inward = Linear(0, bias=False, axes=("embed", "mlp")).partition_table()
        outward = Linear(0, bias=False, axes=("mlp", "embed")).partition_table()
        return (
            *prefixed("gate", inward),
            *prefixed("in", inward),
            *prefixed("out", outward),
        )
