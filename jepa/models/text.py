"""A small text transformer to train from scratch, for the target side of VL-JEPA.

B batch, L text length, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.errors import UserError
from jepa.nn.attention import Attention
from jepa.nn.blocks import PreNormBlock
from jepa.nn.linear import Embedding
from jepa.nn.mlp import GeluMlp
from jepa.nn.norms import LayerNorm
from jepa.nn.pooling import masked_mean
from jepa.nn.stack import Stack
from jepa.parallel.partition import Table, prefixed


class TextTransformer(nn.Module):
    """Encodes a text as one vector: tokens and learnt positions, pre-norm blocks, masked mean.

    Parameters: `table/embedding` `[vocab, D]`, `positions/embedding` `[max_length, D]`,
    `blocks/...` (stacked, see `nn.stack`), `norm/{scale,bias}`.

    Attributes:
      vocab: number of token ids.
      width: D.
      depth: number of blocks.
      heads: number of heads.
      max_length: longest text.
      mlp_ratio, gelu, remat, scan, dtype, param_dtype: as in `VideoTransformer`.
    """

    vocab: int
    width: int
    depth: int
    heads: int
    max_length: int = 128
    mlp_ratio: float = 4.0
    gelu: str = "exact"
    remat: str = "none"
    scan: bool = True
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    def setup(self) -> None:
        """Builds the parts."""
        types = self._types()
        self.table = Embedding(self.vocab, self.width, **types)
        self.positions = Embedding(self.max_length, self.width, **types)
        self.stack = self._stack()
        nn.share_scope(self, self.stack)
        self.norm = LayerNorm(**types)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Encodes texts.

        Args:
          ids: int `[B, L]`, each below `vocab`.
          mask: bool `[B, L]`, false for pads.

        Returns:
          `[B, D]`, in float32 at least.

        Raises:
          UserError: when L is more than `max_length`.
        """
        length = ids.shape[1]
        if length > self.max_length:
            raise UserError(f"texts have {length} tokens, more than max_length={self.max_length}")
        x = self.table(ids) + self.positions(jnp.arange(length))
        x, _ = self.stack(x, mask=mask[:, None, None, :])
        return masked_mean(self.norm(x), mask)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return (
            *prefixed("table", Embedding(0, 0).partition_table()),
            *prefixed("positions", Embedding(0, 0).partition_table()),
            *self._stack(parent=None).partition_table(),
            *prefixed("norm", LayerNorm().partition_table()),
        )

    @nn.nowrap
    def mlp_width(self) -> int:
        """Returns the hidden width of a block's MLP."""
        return round(self.width * self.mlp_ratio)

    @nn.nowrap
    def _types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @nn.nowrap
    def _stack(self, **options: Any) -> Stack:
        types = self._types()
        block = partial(
            PreNormBlock,
            attention=partial(Attention, heads=self.heads, **types),
            mlp=partial(GeluMlp, hidden=self.mlp_width(), gelu=self.gelu, **types),
            norm=partial(LayerNorm, **types),
        )
        return Stack(block, self.depth, remat=self.remat, scan=self.scan, **options)
