"""Qwen3-Embedding (arXiv 2506.05176): a causal decoder whose last token is a sentence embedding.

The default fields are those of Qwen3-Embedding-0.6B. B batch, L text length, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jepa.errors import UserError
from jepa.models.llama import LlamaStack
from jepa.nn.linear import Embedding
from jepa.nn.pooling import l2_normalise, last_token
from jepa.parallel.partition import Table, prefixed

# Fields of QwenEmbedding by the name of a published model.
QWENS: Mapping[str, Mapping[str, Any]] = {
    "qwen3-embedding-0.6b": {},
    "qwen3-embedding-4b": {
        "vocab": 151665,
        "width": 2560,
        "depth": 36,
        "heads": 32,
        "mlp_width": 9728,
        "max_length": 40960,
    },
    "qwen3-embedding-8b": {
        "vocab": 151665,
        "width": 4096,
        "depth": 36,
        "heads": 32,
        "mlp_width": 12288,
        "max_length": 40960,
    },
}


class QwenEmbedding(nn.Module):
    """Encodes a text as one vector: Llama's blocks with normalised heads, then the last token.

    Its tokenizer ends every text with an end-of-text token, which is the one that is read.

    Parameters: `table/embedding` `[vocab, D]`, `llama/...` (see `LlamaStack`).

    Attributes:
      vocab: number of token ids.
      max_length: longest text.
      normalise: whether vectors are scaled to unit length.
      others: as in `LlamaStack`.
    """

    vocab: int = 151669
    width: int = 1024
    depth: int = 28
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    mlp_width: int = 3072
    theta: float = 1e6
    max_length: int = 32768
    normalise: bool = True
    eps: float = 1e-6
    remat: str = "none"
    scan: bool = True
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    def setup(self) -> None:
        """Builds the parts."""
        self.table, self.llama = self._parts()

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Encodes texts.

        Args:
          ids: int `[B, L]`.
          mask: bool `[B, L]`, false for pads, which come last.

        Returns:
          `[B, D]`, in float32 at least; zeros for a text without tokens.

        Raises:
          UserError: when L is more than `max_length`.
        """
        x = last_token(self.hidden(ids, mask), mask)
        return l2_normalise(x) if self.normalise else x

    def hidden(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the tokens `[B, L, D]` behind the last norm; arguments as in a call."""
        length = ids.shape[1]
        if length > self.max_length:
            raise UserError(f"texts have {length} tokens, more than max_length={self.max_length}")
        return self.llama(self.table(ids), mask=mask)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        table, llama = self._parts(parent=None)
        return (
            *prefixed("table", table.partition_table()),
            *prefixed("llama", llama.partition_table()),
        )

    @nn.nowrap
    def _parts(self, **options: Any) -> tuple[Embedding, LlamaStack]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype, **options}
        llama = LlamaStack(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            mlp_width=self.mlp_width,
            causal=True,
            theta=self.theta,
            normalise_heads=True,
            eps=self.eps,
            remat=self.remat,
            scan=self.scan,
            **types,
        )
        return Embedding(self.vocab, self.width, **types), llama
