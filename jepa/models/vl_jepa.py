"""VL-JEPA's predictor and the heads into the shared space (arXiv 2512.10942, section 3).

B batch, N visual tokens, K query length, D predictor width, S shared dimension.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.errors import UserError
from jepa.models.llama import LlamaStack
from jepa.nn.linear import Embedding, Linear
from jepa.nn.pooling import masked_mean
from jepa.nn.rotary import LongContext
from jepa.parallel.partition import Table, constrain, prefixed

POOLS = ("all", "query")


class SharedHead(nn.Module):
    """A linear map into the shared space.

    Parameters: `projection/kernel` `[D, S]` and `projection/bias` `[S]`.
    """

    features: int
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    def setup(self) -> None:
        """Builds the part."""
        self.projection = self._linear()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., D]` to `[..., S]`."""
        return self.projection(x)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return prefixed("projection", self._linear(parent=None).partition_table())

    @nn.nowrap
    def _linear(self, **options: Any) -> Linear:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Linear(self.features, axes=("embed", "shared"), **types, **options)


class Predictor(nn.Module):
    """Predicts the embedding of the answer from visual tokens and a query.

    Visual tokens, then query tokens, through Llama blocks that look both ways; the mean over the
    tokens that are no pads; a linear map to the shared space.

    Parameters: `visual_projection/{kernel,bias}`, `table/embedding` `[vocab, table_width]`,
    `table_projection/kernel` (only when `table_width` differs from the width), `llama/...` (see
    `LlamaStack`), `out_projection/{kernel,bias}`.

    Attributes:
      width: D.
      depth: number of blocks.
      heads: number of query heads.
      mlp_width: hidden width of the SwiGLU.
      features: S.
      vocab: number of token ids.
      table_width: width of the token table, such as a published one's; D when None.
      pool: "all" averages visual and query tokens, "query" the query's only (an empty query
        then gives zeros).
      kv_heads, head_dim, causal, theta, scaling, eps, remat, scan, dtype, param_dtype: as in
        `LlamaStack`.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    features: int
    vocab: int
    table_width: int | None = None
    pool: str = "all"
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
        for name, part in self._parts().items():
            setattr(self, name, part)

    def __call__(self, visual: jax.Array, query_ids: jax.Array, query_mask: jax.Array) -> jax.Array:
        """Predicts.

        Args:
          visual: `[B, N, any]`, the X-encoder's tokens.
          query_ids: int `[B, K]`, each below `vocab`.
          query_mask: bool `[B, K]`, false for pads.

        Returns:
          `[B, S]`, not normalised.

        Raises:
          UserError: when `pool` is unknown.
        """
        if self.pool not in POOLS:
            raise UserError(f"pool is {self.pool!r}; it can be one of {', '.join(POOLS)}")
        words = self.table(query_ids)
        if self._projects_table():
            words = self.table_projection(words)
        x = jnp.concatenate([self.visual_projection(visual), words], axis=1)
        x = constrain(x, "batch", "tokens", None)
        everything = jnp.ones(visual.shape[:2], bool)
        mask = jnp.concatenate([everything, query_mask], axis=1)
        x = self.llama(x, mask=mask)
        counted = mask if self.pool == "all" else mask & (jnp.arange(x.shape[1]) >= visual.shape[1])
        return self.out_projection(masked_mean(x, counted))

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        parts = self._parts(parent=None)
        return [
            row for name, part in parts.items() for row in prefixed(name, part.partition_table())
        ]

    @nn.nowrap
    def _projects_table(self) -> bool:
        return self.table_width is not None and self.table_width != self.width

    @nn.nowrap
    def _parts(self, **options: Any) -> dict[str, Any]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype, **options}
        parts: dict[str, Any] = {
            "visual_projection": Linear(self.width, axes=(None, "embed"), **types),
            "table": Embedding(self.vocab, self.table_width or self.width, **types),
        }
        if self._projects_table():
            parts["table_projection"] = Linear(
                self.width, bias=False, axes=(None, "embed"), **types
            )
        parts["llama"] = LlamaStack(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_width=self.mlp_width,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            causal=self.causal,
            theta=self.theta,
            scaling=self.scaling,
            eps=self.eps,
            remat=self.remat,
            scan=self.scan,
            **types,
        )
        parts["out_projection"] = Linear(self.features, axes=("embed", "shared"), **types)
        return parts
