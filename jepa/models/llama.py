"""Llama (Llama 3, arXiv 2407.21783): its blocks, causal or looking both ways, and the whole model.

VL-JEPA makes its predictor of the last eight of Llama-3.2-1B with the causal mask off. Qwen 3's
blocks are the same with normalised queries and keys. B batch, N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.nn.attention import Attention
from jepa.nn.blocks import PreNormBlock
from jepa.nn.linear import Embedding, Linear
from jepa.nn.mlp import SwiGlu
from jepa.nn.norms import RMSNorm
from jepa.nn.rotary import LongContext, rotary_1d
from jepa.nn.stack import Stack
from jepa.parallel.partition import Table, prefixed

# Token ids of Llama 3.
VOCAB = 128256

# Fields of LlamaStack by the name of a published model; `depth` is the whole model's. The models of
# 1B and 3B use their token table for the output too, that of 8B has a matrix of its own.
LLAMAS: Mapping[str, Mapping[str, Any]] = {
    "llama-3.2-1b": {
        "width": 2048,
        "depth": 16,
        "heads": 32,
        "kv_heads": 8,
        "head_dim": 64,
        "mlp_width": 8192,
        "theta": 500000.0,
        "scaling": LongContext(),
    },
    "llama-3.2-3b": {
        "width": 3072,
        "depth": 28,
        "heads": 24,
        "kv_heads": 8,
        "head_dim": 128,
        "mlp_width": 8192,
        "theta": 500000.0,
        "scaling": LongContext(),
    },
    "llama-3.1-8b": {
        "width": 4096,
        "depth": 32,
        "heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "mlp_width": 14336,
        "theta": 500000.0,
        "scaling": LongContext(factor=8.0),
    },
}


class LlamaStack(nn.Module):
    """Pre-norm blocks of RMSNorm, grouped attention with 1-D rotary positions and SwiGLU.

    Parameters: `blocks/...` (stacked, see `nn.stack`), `norm/scale`.

    Attributes:
      width: D.
      depth: number of blocks.
      heads: number of query heads.
      mlp_width: hidden width of the SwiGLU.
      kv_heads: number of key and value heads; as many as `heads` when None.
      head_dim: D / heads when None.
      causal: whether a token sees only itself and those before it.
      theta: the base of the rotary frequencies.
      scaling: Llama 3's rescaling of slow frequencies, if any.
      normalise_heads: whether each query and key is normalised before it turns (Qwen 3).
      eps: of the norms.
      remat, scan, dtype, param_dtype: as in `VideoTransformer`.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    kv_heads: int | None = None
    head_dim: int | None = None
    causal: bool = False
    theta: float = 10000.0
    scaling: LongContext | None = None
    normalise_heads: bool = False
    eps: float = 1e-5
    remat: str = "none"
    scan: bool = True
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    def setup(self) -> None:
        """Builds the parts."""
        self.stack = self._stack()
        nn.share_scope(self, self.stack)
        self.norm = RMSNorm(eps=self.eps, **self._types())

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Applies the blocks and the last norm.

        Args:
          x: `[B, N, D]`.
          mask: bool `[B, N]`, false for pads, which nobody looks at (their own outputs mean
            nothing); none are pads when absent.
          positions: `[N]` or `[B, N]`; 0..N-1 when absent.

        Returns:
          `[B, N, D]`.
        """
        tokens = x.shape[1]
        if positions is None:
            positions = jnp.arange(tokens, dtype=jnp.promote_types(self.dtype, jnp.float32))
        head_dim = self.head_dim or self.width // self.heads
        tables = rotary_1d(positions, head_dim, theta=self.theta, scaling=self.scaling)
        seen = None if mask is None else mask[:, None, None, :]
        if self.causal:
            past = jnp.tril(jnp.ones((1, 1, tokens, tokens), bool))
            seen = past if seen is None else past & seen
        return self.norm(self.stack(x, rotary=tables, mask=seen)[0])

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return (
            *self._stack(parent=None).partition_table(),
            *prefixed("norm", RMSNorm().partition_table()),
        )

    @nn.nowrap
    def _types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @nn.nowrap
    def _stack(self, **options: Any) -> Stack:
        types = self._types()
        norm = partial(RMSNorm, eps=self.eps, **types)
        attention = partial(
            Attention,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            bias=False,
            head_norm=norm if self.normalise_heads else None,
            **types,
        )
        block = partial(
            PreNormBlock,
            attention=attention,
            mlp=partial(SwiGlu, hidden=self.mlp_width, **types),
            norm=norm,
        )
        return Stack(block, self.depth, remat=self.remat, scan=self.scan, **options)


class Llama(nn.Module):
    """The whole language model: token table, blocks, and the logits of the next token.

    Parameters: `table/embedding` `[V, D]`, `llama/...` (see `LlamaStack`), and unless `tied`
    `head/kernel` `[D, V]`.

    Attributes:
      vocab: V.
      stack: makes the blocks, a `LlamaStack` with its sizes bound.
      tied: whether the token table is the matrix of the logits as well.
      dtype, param_dtype: as in `VideoTransformer`.
    """

    vocab: int
    stack: Callable[..., LlamaStack]
    tied: bool = True
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    def setup(self) -> None:
        """Builds the parts."""
        for name, part in self._parts().items():
            setattr(self, name, part)

    def __call__(
        self,
        ids: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the logits of the token after each.

        Args:
          ids: int `[B, N]`, each below `vocab`.
          mask: bool `[B, N]`, false for pads.
          positions: as in `LlamaStack`.

        Returns:
          `[B, N, V]`, in `dtype`.
        """
        x = self.hidden(ids, mask=mask, positions=positions)
        if not self.tied:
            return self.head(x)
        table = self.table.variables["params"]["embedding"]
        return jnp.matmul(x, table.astype(self.dtype).T)

    def hidden(
        self,
        ids: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the tokens `[B, N, D]` behind the last norm; arguments as in a call."""
        return self.llama(self.table(ids), mask=mask, positions=positions)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return [
            row
            for name, part in self._parts(parent=None).items()
            for row in prefixed(name, part.partition_table())
        ]

    @nn.nowrap
    def _parts(self, **options: Any) -> dict[str, Any]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype, **options}
        llama = self.stack(**types)
        parts = {"table": Embedding(self.vocab, llama.width, **types), "llama": llama}
        if not self.tied:
            parts["head"] = Linear(self.vocab, bias=False, axes=("embed", None), **types)
        return parts
