"""The attentive probe of V-JEPA and V-JEPA 2: a learnt query that reads a clip's tokens.

V-JEPA 2 (arXiv 2506.09985, section 4): three blocks of self-attention, then one of cross-attention
with a single query, then a linear layer. V-JEPA (arXiv 2404.08471): the cross-attention alone,
`depth` 1. The cross-attention has no output projection; what it gives is added to the query.

Letters: B clips, N tokens, D width, H heads, C classes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.nn.attention import Attention
from jepa.nn.blocks import PreNormBlock
from jepa.nn.linear import Linear, matrix_init, table_init
from jepa.nn.mlp import GeluMlp
from jepa.nn.norms import LayerNorm
from jepa.nn.stack import Stack
from jepa.parallel.attention import attend

_LEAST_HEAD = 16


def fitting_heads(width: int, most: int = 16) -> int:
    """The most heads, up to `most`, that divide a width and leave each at least 16 numbers."""
    fitting = [h for h in range(1, most + 1) if width % h == 0 and width // h >= _LEAST_HEAD]
    return max(fitting, default=1)


class CrossAttention(nn.Module):
    """One query reads many tokens; without an output projection.

    Parameters: `query/{kernel [D, H, D/H], bias}`, `keys/...` and `values/...` alike.
    """

    heads: int
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, query: jax.Array, tokens: jax.Array) -> jax.Array:
        """Maps a query `[B, 1, D]` and tokens `[B, N, D]` to `[B, 1, D]`."""
        width = tokens.shape[-1]

        def heads_of(x: jax.Array, name: str) -> jax.Array:
            made = nn.DenseGeneral(
                (self.heads, width // self.heads),
                kernel_init=matrix_init,
                name=name,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )(x)
            return jnp.swapaxes(made, 1, 2)

        q, k, v = heads_of(query, "query"), heads_of(tokens, "keys"), heads_of(tokens, "values")
        mixed = attend(q, k, v, dtype=self.dtype)
        return jnp.swapaxes(mixed, 1, 2).reshape(query.shape)


class AttentiveProbe(nn.Module):
    """Classifies clips from an encoder's tokens.

    Parameters: `blocks/...` (depth - 1 blocks, stacked, see `nn.stack`; none at depth 1), `query`
    `[1, D]`, `norm1/{scale,bias}` of the tokens, `cross/{query,keys,values}/{kernel,bias}`,
    `norm2/{scale,bias}` of the query, `mlp/{in,out}/{kernel,bias}`, `head/{kernel [D, C],bias}`.
    At D = 1024, H = 16, depth 4 and MLPs of 4 D that is 49 million and C * 1025.

    Attributes:
      classes: C.
      depth: blocks, the cross-attention included.
      heads: H, of every block; divides D.
      mlp_ratio: hidden width of the MLPs over D.
      eps: of the LayerNorms; the probes that Meta published have 1e-5.
      dtype: of the computation; param_dtype: of the parameters.
    """

    classes: int
    depth: int = 4
    heads: int = 16
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens `[B, N, D]` to logits `[B, C]`, float32 at least."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = tokens.shape[-1]
        hidden = round(width * self.mlp_ratio)
        norm = partial(LayerNorm, eps=self.eps, **types)
        x = tokens.astype(self.dtype)
        if self.depth > 1:
            block = partial(
                PreNormBlock,
                attention=partial(Attention, heads=self.heads, **types),
                mlp=partial(GeluMlp, hidden=hidden, **types),
                norm=norm,
            )
            stack = Stack(block, self.depth - 1)
            nn.share_scope(self, stack)
            x, _ = stack(x)
        start = self.param("query", table_init, (1, width), self.param_dtype)
        query = jnp.broadcast_to(start.astype(self.dtype), (x.shape[0], 1, width))
        seen = norm(name="norm1")(x)
        query = query + CrossAttention(self.heads, name="cross", **types)(query, seen)
        query = query + GeluMlp(hidden, name="mlp", **types)(norm(name="norm2")(query))
        logits = Linear(self.classes, name="head", **types)(query[:, 0])
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
