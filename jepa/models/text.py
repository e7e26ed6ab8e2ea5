"""A text transformer for the target side of VL-JEPA: small, from scratch, or as CLIP has it.

Perception Encoder's text towers (arXiv 2504.13181) are CLIP's: tokens look back only, the last one
is read, and a matrix follows. B batch, L text length, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.errors import UserError
from jepa.nn.attention import Attention
from jepa.nn.blocks import PreNormBlock
from jepa.nn.linear import Embedding, Linear
from jepa.nn.mlp import GeluMlp
from jepa.nn.norms import LayerNorm
from jepa.nn.pooling import l2_normalise, last_token, masked_mean
from jepa.nn.stack import Stack
from jepa.parallel.partition import Table, prefixed

POOLS = {"mean": masked_mean, "last": last_token}
_CLIP: Mapping[str, Any] = {
    "vocab": 49408,
    "causal": True,
    "pool": "last",
    "projection": True,
    "normalise": True,
    "eps": 1e-5,
}
# Fields of TextTransformer by the name of a published Perception Encoder.
PE_TEXTS: Mapping[str, Mapping[str, Any]] = {
    "pe_core_b16_224": {**_CLIP, "width": 1024, "depth": 24, "heads": 16, "max_length": 32},
    "pe_core_l14_336": {**_CLIP, "width": 1024, "depth": 24, "heads": 16, "max_length": 32},
    "pe_core_g14_448": {**_CLIP, "width": 1280, "depth": 24, "heads": 20, "max_length": 72},
}


class TextTransformer(nn.Module):
    """Encodes a text as one vector: tokens and learnt positions, pre-norm blocks, a pooling.

    Parameters: `table/embedding` `[vocab, D]`, `positions/embedding` `[max_length, D]`,
    `blocks/...` (stacked, see `nn.stack`), `norm/{scale,bias}`; with `projection` also
    `projection/kernel` `[D, D]`.

    Attributes:
      vocab: number of token ids.
      width: D.
      depth: number of blocks.
      heads: number of heads.
      max_length: longest text.
      causal: whether tokens see those before them only.
      pool: "mean" of all tokens, or the "last" one.
      projection: whether a matrix follows.
      normalise: whether vectors are scaled to unit length.
      eps: of the LayerNorms.
      mlp_ratio, gelu, remat, scan, dtype, param_dtype: as in `VideoTransformer`.
    """

    vocab: int
    width: int
    depth: int
    heads: int
    max_length: int = 128
    causal: bool = False
    pool: str = "mean"
    projection: bool = False
    normalise: bool = False
    eps: float = 1e-6
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
        self.norm = LayerNorm(eps=self.eps, **types)
        if self.projection:
            self.out = self._projection(name="projection")

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Encodes texts.

        Args:
          ids: int `[B, L]`, each below `vocab`.
          mask: bool `[B, L]`, false for pads, which come last.

        Returns:
          `[B, D]`, in float32 at least.

        Raises:
          UserError: when L is more than `max_length`.
        """
        x = POOLS[self.pool](self.hidden(ids, mask), mask)
        wide = x.dtype
        x = self.out(x).astype(wide) if self.projection else x
        return l2_normalise(x) if self.normalise else x

    def hidden(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the tokens `[B, L, D]` behind the last norm; arguments as in a call."""
        length = ids.shape[1]
        if length > self.max_length:
            raise UserError(f"texts have {length} tokens, more than max_length={self.max_length}")
        x = self.table(ids) + self.positions(jnp.arange(length))
        seen = mask[:, None, None, :]
        if self.causal:
            seen = seen & jnp.tril(jnp.ones((length, length), bool))
        x, _ = self.stack(x, mask=seen)
        return self.norm(x)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        rows = (
            *prefixed("table", Embedding(0, 0).partition_table()),
            *prefixed("positions", Embedding(0, 0).partition_table()),
            *self._stack(parent=None).partition_table(),
            *prefixed("norm", LayerNorm().partition_table()),
        )
        if not self.projection:
            return rows
        return (*rows, *prefixed("projection", self._projection(parent=None).partition_table()))

    @nn.nowrap
    def _projection(self, **options: Any) -> Linear:
        return Linear(self.width, bias=False, **self._types(), **options)

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
            norm=partial(LayerNorm, eps=self.eps, **types),
        )
        return Stack(block, self.depth, remat=self.remat, scan=self.scan, **options)
