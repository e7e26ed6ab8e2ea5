"""Multi-head self-attention with rotary positions and grouped keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.errors import UserError
from jepa.nn.linear import matrix_init
from jepa.nn.rotary import Rotary, rotate
from jepa.parallel.attention import attend
from jepa.parallel.partition import Table, constrain, prefixed


class Attention(nn.Module):
    """Self-attention; queries, keys and values come from one matrix product.

    Heads are laid out by group: G groups of keys and values, each with R = heads / G queries, so
    that a tensor axis that divides G splits every matrix without moving data. A single group is
    whole on every device. K head dimension.

    Parameters:
      `qkv/kernel` `[D, G, R + 2, K]` and `qkv/bias` `[G, R + 2, K]`: R queries, the key, the value.
      `out/kernel` `[G * R, K, D]` and `out/bias` `[D]`.
      `q_norm/...` and `k_norm/...`, those of `head_norm` over K.

    Attributes:
      heads: number of query heads, G * R.
      kv_heads: G; as many as `heads` when None.
      head_dim: K; D / heads when None.
      bias: whether the products have biases.
      head_norm: makes the normalisation of each query and key before it turns (Gemma 3, Qwen 3).
      scale: what products of queries and keys are multiplied by; K ** -0.5 when None.
      dtype, param_dtype: as in `VideoTransformer`.
    """

    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    bias: bool = True
    head_norm: Callable[..., nn.Module] | None = None
    scale: float | None = None
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, rotary: Rotary | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Mixes tokens.

        Args:
          x: `[B, N, D]`.
          rotary: tables for N tokens and K channels.
          mask: bool, broadcastable to `[B, 1, N, N]`; true where a query may look.

        Returns:
          `[B, N, D]` in `dtype`.

        Raises:
          UserError: when the heads do not divide the width or the groups the heads.
        """
        batch, tokens, width = x.shape
        groups, queries, head_dim = self._sizes(width)
        types = {"use_bias": self.bias, "dtype": self.dtype, "param_dtype": self.param_dtype}
        qkv = nn.DenseGeneral(
            (groups, queries + 2, head_dim), kernel_init=matrix_init, name="qkv", **types
        )(x)
        qkv = jnp.transpose(qkv, (3, 0, 2, 1, 4))
        q = jnp.moveaxis(qkv[:queries], 0, 2).reshape(batch, self.heads, tokens, head_dim)
        k, v = qkv[queries], qkv[queries + 1]
        if self.head_norm is not None:
            q, k = self.head_norm(name="q_norm")(q), self.head_norm(name="k_norm")(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if self.scale is not None:
            q = q * (self.scale * head_dim**0.5)
        axis = self._axis()
        q, k, v = (constrain(x, "batch", axis, "tokens", None) for x in (q, k, v))
        y = attend(q, k, v, mask=mask, dtype=self.dtype)
        return nn.DenseGeneral(width, axis=(1, 3), kernel_init=matrix_init, name="out", **types)(y)

    @nn.nowrap
    def _axis(self) -> str | None:
        """Returns the name of the axis that heads are cut by: none where all share one key."""
        return "heads" if (self.kv_heads or self.heads) > 1 else None

    @nn.nowrap
    def _sizes(self, width: int) -> tuple[int, int, int]:
        """Returns groups G, queries a group R and head dimension K."""
        groups = self.kv_heads or self.heads
        if self.heads % groups:
            raise UserError(f"heads is {self.heads}, which kv_heads={groups} does not divide")
        if self.head_dim is None and width % self.heads:
            raise UserError(f"width is {width}, which heads={self.heads} does not divide")
        return groups, self.heads // groups, self.head_dim or width // self.heads

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        axis = self._axis()
        rows: Table = (
            ("qkv/kernel", ("embed", axis, None, None)),
            ("out/kernel", (axis, None, "embed")),
        )
        if self.bias:
            rows = (*rows, ("qkv/bias", (axis, None, None)), ("out/bias", ("embed",)))
        if self.head_norm is None:
            return rows
        norm = self.head_norm(parent=None).partition_table()
        return (*rows, *prefixed("q_norm", norm), *prefixed("k_norm", norm))
