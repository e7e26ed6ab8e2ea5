"""Llama's blocks (Llama 3, arXiv 2407.21783), causal or looking both ways.

VL-JEPA makes its predictor of the last eight of Llama-3.2-1B with the causal mask off. B batch, N
tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.nn.attention import Attention
from jepa.nn.blocks import PreNormBlock
from jepa.nn.mlp import SwiGlu
from jepa.nn.norms import RMSNorm
from jepa.nn.rotary import LongContext, rotary_1d
from jepa.nn.stack import Stack
from jepa.parallel.partition import Table, prefixed

# Fields of LlamaStack by the name of a published model; `depth` is the whole model's.
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
        attention = partial(
            Attention,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            bias=False,
            **types,
        )
        block = partial(
            PreNormBlock,
            attention=attention,
            mlp=partial(SwiGlu, hidden=self.mlp_width, **types),
            norm=partial(RMSNorm, eps=self.eps, **types),
        )
        return Stack(block, self.depth, remat=self.remat, scan=self.scan, **options)
