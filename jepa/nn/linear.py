"""Matrix products and token tables, with the initial values every model here shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.errors import UserError
from jepa.parallel.partition import Table

_PUBLISHED_DEVIATION = 0.02
_PUBLISHED_WIDTH = 1024


table_init = nn.initializers.normal(_PUBLISHED_DEVIATION)


def matrix_init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Draws a kernel whose last axis is its output from a normal distribution.

    The published encoders take a deviation of 0.02 (truncated at +-2, that is at 100 deviations, so
    never). They have at least 1024 inputs to a matrix. With fewer inputs the same deviation makes
    activations that vanish and attention that starts out uniform, from which a small model takes
    thousands of steps to recover; so below 1024 inputs it grows to keep the outputs' deviation.
    """
    narrow = max(1.0, _PUBLISHED_WIDTH / math.prod(shape[:-1]))
    return _PUBLISHED_DEVIATION * math.sqrt(narrow) * jax.random.normal(key, shape, dtype)


_GELUS = {"exact": False, "tanh": True}


def gelu(x: jax.Array, form: str) -> jax.Array:
    """The Gaussian error linear unit: `"exact"` (erf, as in V-JEPA and BERT) or `"tanh"`."""
    if form not in _GELUS:
        raise UserError(f"gelu is {form!r}; it can be 'exact' or 'tanh'")
    return nn.gelu(x, approximate=_GELUS[form])


class Linear(nn.Module):
    """`x @ kernel + bias`, with a kernel `[D, features]` and a bias `[features]`.

    `axes` are the logical names of the kernel's two dimensions.
    """

    features: int
    bias: bool = True
    axes: tuple[str | None, str | None] = ("embed", None)
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., D]` to `[..., features]` in `dtype`."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", matrix_init, shape, self.param_dtype)
        y = jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            y = y + bias.astype(self.dtype)
        return y

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        rows: Table = (("kernel", self.axes),)
        return (*rows, ("bias", self.axes[1:])) if self.bias else rows


class Embedding(nn.Module):
    """A table of vectors, one an id.

    Parameters: `embedding` `[entries, width]`. It is sharded over its width only: published
    vocabularies seldom divide a mesh axis.
    """

    entries: int
    width: int
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """Looks up int `[...]`, giving `[..., width]` in `dtype`; an id out of range gives NaN."""
        shape = (self.entries, self.width)
        table = self.param("embedding", table_init, shape, self.param_dtype)
        # Gather, then cast: a cast of the whole table would cost more than the rest of a step.
        return jnp.take(table, ids, axis=0).astype(self.dtype)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return (("embedding", (None, "embed")),)
