"""EmbeddingGemma: Gemma 3's text blocks looking both ways, as a sentence embedding.

Sources: arXiv 2503.19786 (Gemma 3) and 2509.20354 (EmbeddingGemma). The default fields are those
of EmbeddingGemma-300M. B batch, L text length, D width, R reach of a layer that sees near tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.errors import UserError
from jepa.nn.attention import Attention
from jepa.nn.blocks import SandwichBlock
from jepa.nn.linear import Embedding, Linear
from jepa.nn.mlp import GeGlu
from jepa.nn.norms import RMSNorm
from jepa.nn.pooling import l2_normalise, masked_mean
from jepa.nn.rotary import Rotary, rotary_1d
from jepa.nn.stack import Stack
from jepa.parallel.partition import Table, prefixed

# Kinds of layers, by their place in the arrays that `Stack` chooses from.
_NEAR, _FULL = 0, 1


class EmbeddingGemma(nn.Module):
    """Encodes a text as one vector: Gemma's blocks, the mean of tokens, two linear maps.

    Five layers of six see tokens at most R = `window // 2` away, the sixth sees all; the two kinds
    turn queries and keys by frequencies of different bases.

    Parameters: `table/embedding` `[vocab, D]`, `blocks/...` (stacked, see `nn.stack`; scales of
    norms are centred), `norm/scale`, and with a `dense_width` `widen/kernel` `[D, dense_width]` and
    `narrow/kernel` `[dense_width, D]`.

    Attributes:
      vocab: number of token ids.
      width: D.
      depth: number of blocks.
      heads: number of query heads.
      kv_heads: number of key and value heads.
      head_dim: channels of a head.
      mlp_width: hidden width of the GeGLU.
      window: tokens that a near-sighted layer sees, itself in the middle.
      full_every: every how manyth layer sees all tokens.
      theta: base of the rotary frequencies of layers that see all.
      near_theta: and of those that do not.
      query_scalar: products of queries and keys are divided by its root.
      max_length: longest text.
      dense_width: hidden width of the two maps behind the mean; None leaves them out.
      normalise: whether vectors are scaled to unit length.
      eps: of the norms.
      remat, scan, dtype, param_dtype: as in `VideoTransformer`.
    """

    vocab: int = 262144
    width: int = 768
    depth: int = 24
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 256
    mlp_width: int = 1152
    window: int = 512
    full_every: int = 6
    theta: float = 1e6
    near_theta: float = 1e4
    query_scalar: float = 256.0
    max_length: int = 2048
    dense_width: int | None = 3072
    normalise: bool = True
    eps: float = 1e-6
    remat: str = "none"
    scan: bool = True
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    def setup(self) -> None:
        """Builds the parts."""
        self.stack = self._stack()
        nn.share_scope(self, self.stack)
        for name, part in self._parts().items():
            setattr(self, name, part)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Encodes texts.

        Args:
          ids: int `[B, L]`, with the <bos> and <eos> of its tokenizer and behind its prompt.
          mask: bool `[B, L]`, false for pads, which come last.

        Returns:
          `[B, D]`, in float32 at least.

        Raises:
          UserError: when L is more than `max_length`.
        """
        pooled = masked_mean(self.hidden(ids, mask), mask)
        wide = pooled.dtype
        if self.dense_width is not None:
            pooled = self.narrow(self.widen(pooled)).astype(wide)
        return l2_normalise(pooled) if self.normalise else pooled

    def hidden(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the tokens `[B, L, D]` behind the last norm; arguments as in a call."""
        length = ids.shape[1]
        if length > self.max_length:
            raise UserError(f"texts have {length} tokens, more than max_length={self.max_length}")
        x = self.table(ids)
        x = x * jnp.asarray(self.width**0.5, x.dtype)
        kinds = tuple(
            _NEAR if (layer + 1) % self.full_every else _FULL for layer in range(self.depth)
        )
        x, _ = self.stack(x, kinds=kinds, rotary=self._rotary(length), mask=self._masks(mask))
        return self.norm(x)

    @nn.nowrap
    def _rotary(self, length: int) -> Rotary:
        """Tables of both kinds, with a leading axis for the kind."""
        positions = jnp.arange(length, dtype=jnp.promote_types(self.dtype, jnp.float32))
        near = rotary_1d(positions, self.head_dim, theta=self.near_theta)
        full = rotary_1d(positions, self.head_dim, theta=self.theta)
        return jax.tree.map(lambda *tables: jnp.stack(tables), near, full)

    @nn.nowrap
    def _masks(self, mask: jax.Array) -> jax.Array:
        """Who sees whom, `[kinds, B, 1, L, L]`."""
        places = jnp.arange(mask.shape[1])
        near = jnp.abs(places[:, None] - places[None, :]) <= self.window // 2
        seen = mask[:, None, None, :]
        return jnp.stack([seen & near, seen & jnp.ones_like(near)])

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return [
            *self._stack(parent=None).partition_table(),
            *(
                row
                for name, part in self._parts(parent=None).items()
                for row in prefixed(name, part.partition_table())
            ),
        ]

    @nn.nowrap
    def _parts(self, **options: Any) -> dict[str, Any]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype, **options}
        parts: dict[str, Any] = {
            "table": Embedding(self.vocab, self.width, **types),
            "norm": RMSNorm(eps=self.eps, centred=True, **types),
        }
        if self.dense_width is not None:
            parts["widen"] = Linear(self.dense_width, bias=False, axes=("embed", "mlp"), **types)
            parts["narrow"] = Linear(self.width, bias=False, axes=("mlp", "embed"), **types)
        return parts

    @nn.nowrap
    def _stack(self, **options: Any) -> Stack:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = partial(RMSNorm, eps=self.eps, centred=True, **types)
        block = partial(
            SandwichBlock,
            attention=partial(
                Attention,
                heads=self.heads,
                kv_heads=self.kv_heads,
                head_dim=self.head_dim,
                bias=False,
                head_norm=norm,
                scale=self.query_scalar**-0.5,
                **types,
            ),
            mlp=partial(GeGlu, hidden=self.mlp_width, **types),
            norm=norm,
        )
        return Stack(block, self.depth, remat=self.remat, scan=self.scan, **options)
