"""The predictor of the masked JEPAs: from the tokens that are seen to those that are not.

B batch, Kc context tokens, Kt target tokens, D predictor width, F width of what is predicted.
Source: I-JEPA (arXiv 2301.08243), V-JEPA (2404.08471), V-JEPA 2 (2506.09985), 2.1 (2603.14482).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.errors import UserError
from jepa.models.vit import MODALITY_DEVIATION, ROPES, VIDEO
from jepa.nn import rotary
from jepa.nn.attention import Attention
from jepa.nn.blocks import PreNormBlock
from jepa.nn.linear import Linear, gelu
from jepa.nn.mlp import GeluMlp
from jepa.nn.norms import LayerNorm
from jepa.nn.positions import POSITIONS, sincos
from jepa.nn.stack import Stack
from jepa.parallel.partition import Table, constrain, prefixed

MASK_TOKEN_INITS = {"zeros": nn.initializers.zeros, "normal": nn.initializers.normal(0.02)}


class MaskPredictor(nn.Module):
    """Predicts target tokens from context tokens and the places of both.

    Context tokens are embedded, a mask token stands at every target's place, and blocks over all of
    them make the mask tokens into predictions. The published code sorts tokens by place first; that
    changes nothing here, since every token carries its place with it.

    Parameters: `embed/{kernel,bias}` (and `embed_in/...` where `embed_hidden` is set),
    `mask_tokens` `[count, D]`, `blocks/...`, `norm/{scale,bias}`, `out/{kernel,bias}` (and
    `context_out/...` where `predicts_context` is set, `modality` `[2, D]` where `modalities` is).

    Attributes:
      features: F, the encoder's width, or that times the levels it is supervised at.
      width: D.
      depth, heads, mlp_ratio, rope, positions, gelu, remat, scan, dtype, param_dtype: as in
        `VideoTransformer`.
      mask_tokens: how many there are to choose from (V-JEPA has one a kind of mask).
      mask_token_init: "zeros" (V-JEPA) or "normal" with deviation 0.02 (I-JEPA).
      embed_hidden: hidden width of an embedding with one GELU in it (2.1); one matrix when None.
      predicts_context: whether context tokens get predictions too, by a head of their own (2.1).
      modalities: whether videos and images have a learned vector each that is added to all tokens,
        as in the encoder (2.1).
    """

    features: int
    width: int = 384
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    rope: str = "rotation"
    positions: str = "none"
    gelu: str = "exact"
    mask_tokens: int = 1
    mask_token_init: str = "zeros"
    embed_hidden: int | None = None
    predicts_context: bool = False
    modalities: bool = False
    remat: str = "none"
    scan: bool = True
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    def setup(self) -> None:
        """Builds the parts.

        Raises:
          UserError: an unknown `rope`, `positions` or `mask_token_init`.
        """
        choices = {"rope": ROPES, "positions": POSITIONS, "mask_token_init": MASK_TOKEN_INITS}
        for key, known in choices.items():
            if (value := getattr(self, key)) not in known:
                raise UserError(f"{key} is {value!r}; it can be one of {', '.join(known)}")
        for name, part in self._parts().items():
            setattr(self, name, part)
        self.stack = self._stack()
        nn.share_scope(self, self.stack)
        init = MASK_TOKEN_INITS[self.mask_token_init]
        shape = (self.mask_tokens, self.width)
        self.tokens = self.param("mask_tokens", init, shape, self.param_dtype)
        if self.modalities:
            init = nn.initializers.normal(MODALITY_DEVIATION)
            self.modality = self.param("modality", init, (2, self.width), self.param_dtype)

    def __call__(
        self,
        context: jax.Array,
        context_ids: jax.Array,
        target_ids: jax.Array,
        places: jax.Array,
        *,
        mask_token: int = 0,
        modality: int = VIDEO,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Predicts.

        Args:
          context: `[B, Kc, any]`, the context encoder's tokens.
          context_ids: int `[B, Kc]`, their places, numbered by frame, row, column.
          target_ids: int `[B, Kt]`, the places to predict.
          places: `[3, N]`, frame, row and column of all N tokens (`nn.rotary.grid_positions`).
          mask_token: which mask token to use.
          modality: `models.vit.VIDEO` or `IMAGE`; without `modalities` they are the same.

        Returns:
          Predictions `[B, Kt, F]`, and those of the context `[B, Kc, F]` or None.

        Raises:
          UserError: a mask token that does not exist.
        """
        if not 0 <= mask_token < self.mask_tokens:
            raise UserError(f"mask token {mask_token} is asked of {self.mask_tokens}")
        seen = context_ids.shape[1]
        x = context
        if self.embed_hidden is not None:
            x = gelu(self.embed_in(x), self.gelu)
        x = self.embed(x)
        blank = jnp.broadcast_to(
            self.tokens[mask_token].astype(x.dtype), (*target_ids.shape, self.width)
        )
        x = jnp.concatenate([x, blank], axis=1)
        if self.modalities:
            x = x + self.modality[modality].astype(x.dtype)
        places = rotary.gather(places, jnp.concatenate([context_ids, target_ids], axis=1))
        if self.positions != "none":
            x = x + sincos(places, self.width, self.positions).astype(x.dtype)
        x = constrain(x, "batch", "tokens", None)
        tables = None
        if self.rope != "none":
            head_dim = self.width // self.heads
            tables = rotary.rotary_3d(places, head_dim, tiled=self.rope == "tiled")
        x, _ = self.stack(x, rotary=tables)
        x = self.norm(x)
        predicted = self.out(x[:, seen:])
        return predicted, self.context_out(x[:, :seen]) if self.predicts_context else None

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        parts = self._parts(parent=None)
        return (
            *(r for name, part in parts.items() for r in prefixed(name, part.partition_table())),
            ("mask_tokens", (None, "embed")),
            *([("modality", (None, "embed"))] if self.modalities else []),
            *self._stack(parent=None).partition_table(),
        )

    @nn.nowrap
    def mlp_width(self) -> int:
        """Returns the hidden width of a block's MLP."""
        return round(self.width * self.mlp_ratio)

    @nn.nowrap
    def _types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @nn.nowrap
    def _parts(self, **options: Any) -> dict[str, Any]:
        options = {**self._types(), **options}
        parts: dict[str, Any] = {}
        if self.embed_hidden is not None:
            parts["embed_in"] = Linear(self.embed_hidden, axes=("embed", None), **options)
        parts["embed"] = Linear(self.width, axes=("embed", None), **options)
        parts["norm"] = LayerNorm(**options)
        parts["out"] = Linear(self.features, axes=("embed", None), **options)
        if self.predicts_context:
            parts["context_out"] = Linear(self.features, axes=("embed", None), **options)
        return parts

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
