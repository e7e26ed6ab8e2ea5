"""MiniLM, a six-layer BERT whose mean of tokens is a sentence embedding (arXiv 2002.10957).

The default fields are all-MiniLM-L6-v2's; `jepa.interop.minilm` reads its published weights. B
batch, L text length, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.errors import UserError
from jepa.nn.attention import Attention
from jepa.nn.blocks import PostNormBlock
from jepa.nn.linear import Embedding
from jepa.nn.mlp import GeluMlp
from jepa.nn.norms import LayerNorm
from jepa.nn.pooling import l2_normalise, masked_mean
from jepa.nn.stack import Stack
from jepa.parallel.partition import Table, prefixed


class MiniLM(nn.Module):
    """Encodes a text as one vector: BERT, then the mean over tokens that are no pads.

    Parameters: `table/embedding` `[vocab, D]`, `positions/embedding` `[max_length, D]`,
    `segments/embedding` `[segments, D]`, `norm/{scale,bias}` (of the embeddings), `blocks/...`
    (stacked, see `nn.stack`).

    Attributes:
      normalise: whether vectors are scaled to unit length.
      segments: entries of BERT's table of segments; only the first is used.
      others: as in `TextTransformer`; `mlp_width` is the hidden width of a block's MLP.
    """

    vocab: int = 30522
    width: int = 384
    depth: int = 6
    heads: int = 12
    mlp_width: int = 1536
    max_length: int = 512
    segments: int = 2
    eps: float = 1e-12
    gelu: str = "exact"
    normalise: bool = True
    remat: str = "none"
    scan: bool = True
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    def setup(self) -> None:
        """Builds the parts."""
        types = self._types()
        self.table = Embedding(self.vocab, self.width, **types)
        self.positions = Embedding(self.max_length, self.width, **types)
        self.segment_table = Embedding(self.segments, self.width, name="segments", **types)
        self.norm = LayerNorm(eps=self.eps, **types)
        self.stack = self._stack()
        nn.share_scope(self, self.stack)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Encodes texts.

        Args:
          ids: int `[B, L]`, with the [CLS] and [SEP] of its tokenizer.
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
        x = self.norm(x + self.segment_table(jnp.zeros((), jnp.int32)))
        x, _ = self.stack(x, mask=mask[:, None, None, :])
        pooled = masked_mean(x, mask)
        return l2_normalise(pooled) if self.normalise else pooled

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        table = Embedding(0, 0).partition_table()
        return (
            *prefixed("table", table),
            *prefixed("positions", table),
            *prefixed("segments", table),
            *prefixed("norm", LayerNorm().partition_table()),
            *self._stack(parent=None).partition_table(),
        )

    @nn.nowrap
    def _types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @nn.nowrap
    def _stack(self, **options: Any) -> Stack:
        types = self._types()
        block = partial(
            PostNormBlock,
            attention=partial(Attention, heads=self.heads, **types),
            mlp=partial(GeluMlp, hidden=self.mlp_width, gelu=self.gelu, **types),
            norm=partial(LayerNorm, eps=self.eps, **types),
        )
        return Stack(block, self.depth, remat=self.remat, scan=self.scan, **options)
