"""The image transformers that others publish: ViT, DINOv2 and SigLIP 2, over the frames of a clip.

B clips, T frames, H W pixels, N patches of a frame, P tokens before them (class token, registers),
D width. Sources: ViT (arXiv 2010.11929), DINOv2 (2304.07193), registers (2309.16588), SigLIP 2
(2502.14786); sizes from their released configs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.errors import UserError
from jepa.models.vit import PatchEmbedding
from jepa.nn.attention import Attention
from jepa.nn.blocks import LayerScale, LayerScaleBlock, PreNormBlock
from jepa.nn.linear import matrix_init, table_init
from jepa.nn.mlp import FusedSwiGlu, GeluMlp
from jepa.nn.norms import LayerNorm
from jepa.nn.positions import METHODS, sincos_1d, stretched
from jepa.nn.stack import Stack
from jepa.parallel.attention import attend
from jepa.parallel.partition import Table, constrain, prefixed

TEMPORAL = ("none", "sincos")

_BASE = {"width": 768, "depth": 12, "heads": 12}
_LARGE = {"width": 1024, "depth": 24, "heads": 16}
_VIT = {"patch": 16, "class_token": True, "eps": 1e-12, "normalisation": "half"}
_DINO = {"patch": 14, "class_token": True, "layer_scale": True, "table_grid": (1, 37, 37)}
_DINO_SIZES: Mapping[str, Mapping[str, Any]] = {
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": _BASE,
    "large": _LARGE,
    "giant": {"width": 1536, "depth": 40, "heads": 24, "mlp_ratio": 8 / 3, "gated": True},
}
_REGISTERS = {"registers": 4, "resize": "cubic_antialiased"}
_SIGLIP = {"patch": 16, "gelu": "tanh", "normalisation": "half"}
_SO400M = {"width": 1152, "depth": 27, "heads": 16, "mlp_ratio": 4304 / 1152}

# Fields of ImageTower by the name of a published size.
IMAGE_TOWERS: Mapping[str, Mapping[str, Any]] = {
    "vit_base_patch16_224": {**_VIT, **_BASE, "table_grid": (1, 14, 14)},
    "vit_large_patch16_224": {**_VIT, **_LARGE, "table_grid": (1, 14, 14)},
    **{f"dinov2_{name}": {**_DINO, **of} for name, of in _DINO_SIZES.items()},
    **{
        f"dinov2_with_registers_{name}": {**_DINO, **_REGISTERS, **of}
        for name, of in _DINO_SIZES.items()
    },
    "siglip2_base_patch16_224": {**_SIGLIP, **_BASE, "table_grid": (1, 14, 14)},
    "siglip2_base_patch16_naflex": {
        **_SIGLIP,
        **_BASE,
        "table_grid": (1, 16, 16),
        "resize": "linear_antialiased",
    },
    "siglip2_large_patch16_256": {**_SIGLIP, **_LARGE, "table_grid": (1, 16, 16)},
    "siglip2_so400m_patch14_384": {**_SIGLIP, **_SO400M, "patch": 14, "table_grid": (1, 27, 27)},
}


class ImageTower(nn.Module):
    """Encodes every frame of a clip as an image of its own.

    Parameters: `patches/{kernel,bias}`, `class_token` `[1, D]`, `registers` `[registers, D]`,
    `positions` `[rows * columns, D]` with one more row, the first, for a class token,
    `blocks/...` (stacked, see `nn.stack`), `norm/{scale,bias}`.

    Attributes:
      width: D.
      depth: number of blocks.
      heads: number of heads, which divide D.
      table_grid: 1, and rows and columns that the learnt table of positions is made for; it is
        stretched over another grid.
      mlp_ratio: the hidden width of a block's MLP over D.
      patch: side of a patch, in pixels.
      gelu: "exact" or "tanh".
      class_token: whether a learnt token is read with the patches, and has a position (ViT,
        DINOv2).
      registers: number of further learnt tokens, which have none (DINOv2 with registers).
      layer_scale: whether what blocks add is scaled by learnt numbers (DINOv2).
      gated: whether MLPs are SwiGLUs (DINOv2's giant).
      eps: of all LayerNorms.
      resize: how the table is stretched, a name in `nn.positions.METHODS`: each tower's own code
        has a kind of its own.
      normalisation: of the pixels that it takes, a name in `nn.frames.NORMALISATIONS`.
      temporal: what of the frame's number is added to the tokens that leave: "none", so that they
        are the published network's, or "sincos", a fixed table. VL-JEPA's predictor numbers its
        tokens frame by frame (its rotary positions), so it can tell frames without.
      remat: a policy of `nn.stack.REMAT`.
      scan: whether blocks run in a compiled loop; the parameters are the same.
      dtype: of the computation; param_dtype: of the parameters.
    """

    width: int
    depth: int
    heads: int
    table_grid: tuple[int, int, int]
    mlp_ratio: float = 4.0
    patch: int = 16
    gelu: str = "exact"
    class_token: bool = False
    registers: int = 0
    layer_scale: bool = False
    gated: bool = False
    eps: float = 1e-6
    resize: str = "cubic"
    normalisation: str = "imagenet"
    temporal: str = "none"
    remat: str = "none"
    scan: bool = True
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    def setup(self) -> None:
        """Builds the parts."""
        types = self._types()
        self.patches = PatchEmbedding(self.width, self.patch, 1, **types)
        self.stack = self._stack()
        nn.share_scope(self, self.stack)
        self.norm = LayerNorm(eps=self.eps, **types)
        _, rows, columns = self.table_grid
        entries = rows * columns + self.class_token
        self.table = self._learnt("positions", entries)
        self.first = self._learnt("class_token", 1) if self.class_token else None
        self.spare = self._learnt("registers", self.registers) if self.registers else None

    def __call__(self, video: jax.Array) -> jax.Array:
        """Encodes clips.

        Args:
          video: float `[B, T, H, W, 3]`, as from `nn.frames.to_float` with `normalisation`; H and W
            any multiples of the patch.

        Returns:
          `[B, T * N, D]`, the patches of a frame row by row, frame after frame, after the last
          LayerNorm.

        Raises:
          UserError: on pixels that the patches do not divide, or an unknown option.
        """
        batch, frames = video.shape[:2]
        self.grid(*video.shape[1:4])
        tokens, _ = self.levels(video.reshape(batch * frames, *video.shape[2:]))
        tokens = tokens[:, self.prefix() :].reshape(batch, frames, -1, self.width)
        if self.temporal == "sincos":
            wide = jnp.promote_types(self.dtype, jnp.float32)
            table = sincos_1d(jnp.arange(frames, dtype=wide), self.width)
            tokens = tokens + table[None, :, None].astype(tokens.dtype)
        return constrain(tokens.reshape(batch, -1, self.width), "batch", "tokens", None)

    def levels(
        self, images: jax.Array, taps: tuple[int, ...] = ()
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Encodes images `[B, H, W, 3]`.

        Returns:
          `[B, P + N, D]`: class token, registers, patches, after the last LayerNorm; and the same
          (before any norm) after `taps` numbers of layers, 0 being what the blocks are given.
        """
        _, rows, columns = self.grid(1, *images.shape[1:3])
        x = self.patches(images[:, None])
        before = self.table[: int(self.class_token)]
        places = self.table[int(self.class_token) :]
        x = x + stretched(places, (rows, columns), self.table_grid[1:], self.resize).astype(x.dtype)
        learnt = [] if self.first is None else [self.first + before]
        learnt += [] if self.spare is None else [self.spare]
        first = [jnp.broadcast_to(t.astype(x.dtype), (len(x), *t.shape)) for t in learnt]
        x = constrain(jnp.concatenate([*first, x], axis=1), "batch", "tokens", None)
        x, tapped = self.stack(x, taps=taps)
        return self.norm(x), tapped

    @nn.nowrap
    def prefix(self) -> int:
        """Returns P, how many tokens stand before the patches of a frame."""
        return int(self.class_token) + self.registers

    @nn.nowrap
    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the numbers of frames, rows and columns of a clip of this size.

        Raises:
          UserError: when the patch does not divide them, or an option is unknown.
        """
        for name, known in (("resize", METHODS), ("temporal", TEMPORAL)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}; it can be one of {', '.join(known)}"
                )
        if height % self.patch or width % self.patch:
            raise UserError(f"frames are {height}x{width}, which patch={self.patch} cannot cut")
        return frames, height // self.patch, width // self.patch

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        learnt: Table = (("positions", (None, "embed")),)
        if self.class_token:
            learnt = (*learnt, ("class_token", (None, "embed")))
        if self.registers:
            learnt = (*learnt, ("registers", (None, "embed")))
        return (
            *prefixed("patches", PatchEmbedding(0, 1, 1).partition_table()),
            *self._stack(parent=None).partition_table(),
            *prefixed("norm", LayerNorm().partition_table()),
            *learnt,
        )

    @nn.nowrap
    def mlp_width(self) -> int:
        """Returns the hidden width of a block's MLP."""
        return round(self.width * self.mlp_ratio)

    @nn.nowrap
    def _learnt(self, name: str, rows: int) -> jax.Array:
        found: jax.Array = self.param(name, table_init, (rows, self.width), self.param_dtype)
        return found

    @nn.nowrap
    def _types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @nn.nowrap
    def _stack(self, **options: Any) -> Stack:
        types, hidden = self._types(), self.mlp_width()
        gelu = partial(GeluMlp, hidden=hidden, gelu=self.gelu, **types)
        mlp = partial(FusedSwiGlu, hidden=hidden, **types) if self.gated else gelu
        made: Any = PreNormBlock
        if self.layer_scale:
            made = partial(LayerScaleBlock, scale=partial(LayerScale, **types))
        block = partial(
            made,
            attention=partial(Attention, heads=self.heads, **types),
            mlp=mlp,
            norm=partial(LayerNorm, eps=self.eps, **types),
        )
        return Stack(block, self.depth, remat=self.remat, scan=self.scan, **options)


class AttentionPooling(nn.Module):
    """SigLIP's head: a learnt query reads an image's tokens, and an MLP adds to what it read.

    Parameters: `query` `[1, D]`, `qkv/{kernel [D, heads, 3, D / heads], bias}` (of the query, the
    keys and the values), `out/{kernel [D, D], bias}`, `norm/{scale,bias}`, `mlp/{in,out}/...`.

    Attributes:
      heads: number of heads, which divide D.
      hidden: hidden width of the MLP.
      gelu, eps, dtype, param_dtype: as in `ImageTower`.
    """

    heads: int
    hidden: int
    gelu: str = "tanh"
    eps: float = 1e-6
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens `[B, N, D]`, as they leave the tower, to an image's vector `[B, D]`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, _, width = tokens.shape
        size = width // self.heads
        query = self.param("query", table_init, (1, width), self.param_dtype)
        qkv = nn.DenseGeneral((self.heads, 3, size), kernel_init=matrix_init, name="qkv", **types)
        first = jnp.broadcast_to(query.astype(self.dtype), (batch, 1, width))
        # The query's own keys and values, and the tokens' queries, are cut away again.
        made = jnp.swapaxes(qkv(jnp.concatenate([first, tokens.astype(self.dtype)], axis=1)), 1, 2)
        q, k, v = made[:, :, :1, 0], made[:, :, 1:, 1], made[:, :, 1:, 2]
        read = jnp.swapaxes(attend(q, k, v, dtype=self.dtype), 1, 2).reshape(batch, width)
        x = nn.Dense(width, kernel_init=matrix_init, name="out", **types)(read)
        y = LayerNorm(eps=self.eps, name="norm", **types)(x)
        return x + GeluMlp(self.hidden, gelu=self.gelu, name="mlp", **types)(y)
