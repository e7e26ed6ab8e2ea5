"""The feed-forward layers of the transformers here."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jepa.nn.linear import Linear, gelu, matrix_init
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


class _Gated(nn.Module):
    """`out(activation(gate(x)) * in(x))`, without biases.

    Parameters: `gate/kernel` and `in/kernel` `[D, hidden]`, `out/kernel` `[hidden, D]`.
    """

    hidden: int
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., D]` to `[..., D]`."""
        options = {"bias": False, "dtype": self.dtype, "param_dtype": self.param_dtype}
        gate = self._activation(Linear(self.hidden, name="gate", **options)(x))
        return Linear(x.shape[-1], name="out", **options)(
            gate * Linear(self.hidden, name="in", **options)(x)
        )

    @nn.nowrap
    def _activation(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

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


class SwiGlu(_Gated):
    """`out(silu(gate(x)) * in(x))`, without biases, as in Llama.

    Parameters: `gate/kernel` and `in/kernel` `[D, hidden]`, `out/kernel` `[hidden, D]`.
    """

    @nn.nowrap
    def _activation(self, x: jax.Array) -> jax.Array:
        return nn.silu(x)


class GeGlu(_Gated):
    """`out(gelu(gate(x)) * in(x))`, without biases, with the tanh form, as in Gemma.

    Parameters: `gate/kernel` and `in/kernel` `[D, hidden]`, `out/kernel` `[hidden, D]`.
    """

    @nn.nowrap
    def _activation(self, x: jax.Array) -> jax.Array:
        return gelu(x, "tanh")


class FusedSwiGlu(nn.Module):
    """`out(silu(gate(x)) * in(x))`, with biases, as in DINOv2's giant.

    Both inward matrices are one parameter, the gate's first, since published weights have them as
    one; a tensor axis cuts each of them alike.

    Parameters: `in/kernel` `[D, hidden, 2]`, `in/bias` `[hidden, 2]`, `out/kernel` `[hidden, D]`,
    `out/bias`.
    """

    hidden: int
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., D]` to `[..., D]`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        both = nn.DenseGeneral((self.hidden, 2), kernel_init=matrix_init, name="in", **types)(x)
        return Linear(x.shape[-1], name="out", **types)(nn.silu(both[..., 0]) * both[..., 1])

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return (
            ("in/kernel", ("embed", "mlp", None)),
            ("in/bias", ("mlp", None)),
            *prefixed("out", Linear(0, axes=("mlp", "embed")).partition_table()),
        )
