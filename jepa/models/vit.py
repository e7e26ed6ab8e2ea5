"""The video vision transformer of the JEPAs: tubelets, rotary or fixed positions, pre-norm blocks.

B batch, T frames, H W pixels, C channels, N tokens, D width. Source: V-JEPA 2 (arXiv 2506.09985)
and 2.1 (arXiv 2603.14482); sizes from their released configs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.errors import UserError
from jepa.nn import rotary
from jepa.nn.attention import Attention
from jepa.nn.blocks import PreNormBlock
from jepa.nn.linear import matrix_init
from jepa.nn.mlp import GeluMlp
from jepa.nn.norms import LayerNorm
from jepa.nn.positions import POSITIONS, resized, sincos
from jepa.nn.stack import Stack
from jepa.parallel.attention import platform
from jepa.parallel.partition import Table, constrain, prefixed

ROPES = ("rotation", "tiled", "none")

# What 2.1 draws its embeddings of modalities with: so small that a model starts without them.
MODALITY_DEVIATION = 1e-6
# Rows of such an embedding.
VIDEO, IMAGE = 0, 1

# Fields of VideoTransformer by the name of a size. L, H and g are V-JEPA 2's, G is 2.1's.
VITS: Mapping[str, Mapping[str, Any]] = {
    "nano": {"width": 128, "depth": 4, "heads": 4},
    "micro": {"width": 192, "depth": 6, "heads": 4},
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
    "giant": {"width": 1408, "depth": 40, "heads": 22, "mlp_ratio": 48 / 11},
    "gigantic": {"width": 1664, "depth": 48, "heads": 26, "mlp_ratio": 64 / 13},
}


class PatchEmbedding(nn.Module):
    """A strided 3-D convolution, written as one matrix product (several times faster on CPU).

    Parameters: `kernel` `[tubelet, patch, patch, C, D]`, which is Flax's layout for convolutions
    (a torch kernel `[D, C, tubelet, patch, patch]` transposed by (2, 3, 4, 1, 0)); `bias` `[D]`.
    """

    width: int
    patch: int
    tubelet: int
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        """Maps `[B, T, H, W, C]` to tokens `[B, N, D]`, ordered by frame, row, column."""
        cell = (self.tubelet, self.patch, self.patch)
        shape = (*cell, video.shape[-1], self.width)
        kernel = self.param("kernel", matrix_init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), self.param_dtype)
        cubes = _cubes(video.astype(self.dtype), cell)
        matrix = kernel.reshape(-1, self.width).astype(self.dtype)
        x = jnp.matmul(cubes, matrix) + bias.astype(self.dtype)
        # Or the compiler gathers the pixels of all devices, and not the matrix.
        return constrain(x, "batch", "tokens", None)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return (("kernel", (None, None, None, None, "embed")), ("bias", ("embed",)))


def _cubes(video: jax.Array, cell: tuple[int, int, int]) -> jax.Array:
    """Cuts `[B, T, H, W, C]` into the cells of a grid, `[B, N, cell * C]`."""
    if platform() == "tpu":
        # Channel by channel, or three of them would each time fill up a tile's 128 lanes.
        planes = [_cut(video[..., channel], cell) for channel in range(video.shape[-1])]
        return jnp.stack(planes, axis=-1).reshape(*planes[0].shape[:2], -1)
    return _cut(video, cell)


def _cut(video: jax.Array, cell: tuple[int, int, int]) -> jax.Array:
    """The same of `[B, T, H, W]` or `[B, T, H, W, C]`."""
    sizes = ((n // side, side) for n, side in zip(video.shape[1:4], cell, strict=True))
    cubes = video.reshape(video.shape[0], *(n for pair in sizes for n in pair), *video.shape[4:])
    cubes = cubes.transpose(0, 1, 3, 5, 2, 4, 6, *range(7, cubes.ndim))
    return cubes.reshape(video.shape[0], math.prod(cubes.shape[1:4]), -1)


class VideoTransformer(nn.Module):
    """Encodes a video as one vector a tubelet.

    Parameters: `patches/{kernel,bias}`, `blocks/...` (stacked, see `nn.stack`),
    `norm/{scale,bias}`; with `taps` also `tap_norms_{i}/{scale,bias}`; with
    `image_tokenizer` `image_patches/{kernel,bias}` and `modality` `[2, D]`.

    Attributes:
      width: D.
      depth: number of blocks.
      heads: number of heads; D / heads must be even and at least 6.
      mlp_ratio: the hidden width of a block's MLP over D.
      patch: side of a patch, in pixels.
      tubelet: frames to a token.
      rope: "tiled" (V-JEPA 2's released form), "rotation" (V-JEPA 2.1; see `nn.rotary`) or "none".
      positions: what is added to the tokens: "none" (V-JEPA 2) or a fixed table, "sincos_2d"
        or "sincos_2d_columns" (I-JEPA), "sincos_uniform" (V-JEPA) or "sincos" (see `nn.positions`).
        Rotary positions are relative; a small model that trains for minutes learns where things
        are, and so where they go, much sooner from absolute ones.
      table_grid: tubelets, rows and columns that a fixed table was made for: it is interpolated for
        another grid, as published weights need it. Each grid has a table of its own when None.
      pretrain_grid: rows and columns to which positions are stretched (2.1: 16), or None.
      taps: numbers of layers, rising to `depth`, whose tokens `hierarchy` gives, each after a
        LayerNorm of its own (2.1 supervises four; its code numbers them from zero); () for none.
      image_tokenizer: whether single frames have an embedding of their own, of one frame, and both
        modalities a learned vector that is added (2.1). Otherwise a frame is repeated to fill the
        tubelet.
      gelu: "exact" or "tanh".
      remat: a policy of `nn.stack.REMAT`.
      scan: whether blocks run in a compiled loop; the parameters are the same.
      dtype: of the computation; param_dtype: of the parameters.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    patch: int = 16
    tubelet: int = 2
    rope: str = "rotation"
    positions: str = "none"
    table_grid: tuple[int, int, int] | None = None
    pretrain_grid: int | None = None
    taps: tuple[int, ...] = ()
    image_tokenizer: bool = False
    gelu: str = "exact"
    remat: str = "none"
    scan: bool = True
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    def setup(self) -> None:
        """Builds the parts."""
        types = self._types()
        self.patches = PatchEmbedding(self.width, self.patch, self.tubelet, **types)
        self.stack = self._stack()
        nn.share_scope(self, self.stack)
        self.norm = LayerNorm(**types)
        # The last level's is the one of the output.
        self.tap_norms = [LayerNorm(**types) for _ in self.taps[:-1]]
        if self.image_tokenizer:
            self.image_patches = PatchEmbedding(self.width, self.patch, 1, **types)
            init = nn.initializers.normal(MODALITY_DEVIATION)
            self.modality = self.param("modality", init, (2, self.width), self.param_dtype)

    def __call__(self, video: jax.Array, token_ids: jax.Array | None = None) -> jax.Array:
        """Encodes videos, or images as videos of one frame.

        Args:
          video: float `[B, T, H, W, 3]`, as from `nn.frames.to_float`. T a multiple of the tubelet
            or 1 (the frame is then repeated to fill it); H and W any multiples of the patch.
          token_ids: int `[B, K]`, the tokens to see, numbered by frame, row, column; all when
            absent.

        Returns:
          `[B, N, D]` (or `[B, K, D]`), after the last LayerNorm.

        Raises:
          UserError: on frames or pixels that the cells do not divide, or an unknown `rope`.
        """
        return self.levels(video, token_ids)[0]

    def levels(
        self,
        video: jax.Array,
        token_ids: jax.Array | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """As `__call__`, and also the tokens (before any norm) after `taps` numbers of layers."""
        grid = self.grid(*video.shape[1:4])
        x = self._embed(video)
        positions = rotary.grid_positions(
            grid,
            pretrain_grid=self.pretrain_grid,
            dtype=jnp.promote_types(self.dtype, jnp.float32),
        )
        if self.positions != "none":
            x = x + self._table(grid, positions).astype(x.dtype)
        if token_ids is not None:
            x = jnp.take_along_axis(x, token_ids[..., None], axis=1)
            positions = rotary.gather(positions, token_ids)
        x = constrain(x, "batch", "tokens", None)
        tables = None
        if self.rope != "none":
            head_dim = self.width // self.heads
            tables = rotary.rotary_3d(positions, head_dim, tiled=self.rope == "tiled")
        x, tapped = self.stack(x, taps=taps, rotary=tables)
        if self.is_initializing():
            for norm in self.tap_norms:
                norm(x)
        return self.norm(x), tapped

    def _table(self, grid: tuple[int, int, int], positions: jax.Array) -> jax.Array:
        """The fixed positions `[N, D]` of a grid."""
        if self.table_grid is None or self.table_grid == grid:
            return sincos(positions, self.width, self.positions)
        return resized(grid, self.table_grid, self.width, self.positions, positions.dtype)

    def hierarchy(self, video: jax.Array, token_ids: jax.Array | None = None) -> jax.Array:
        """As `__call__`, and before that the tokens of the other `taps`: `[B, N, levels * D]`.

        The last D numbers are those of `__call__`, which they are all without `taps`.
        """
        last, tapped = self.levels(video, token_ids, self.taps[:-1])
        norms = zip(self.tap_norms, tapped, strict=True)
        return jnp.concatenate([*(norm(x) for norm, x in norms), last], axis=-1)

    def _embed(self, video: jax.Array) -> jax.Array:
        """Tokens `[B, N, D]` of `[B, T, H, W, 3]`, without positions."""
        image = video.shape[1] == 1
        clip = jnp.repeat(video, self.tubelet, axis=1) if image else video
        if not self.image_tokenizer:
            return self.patches(clip)
        if self.is_initializing():
            self.patches(clip)
            self.image_patches(video[:, :1])
        x = self.image_patches(video) if image else self.patches(clip)
        return x + self.modality[IMAGE if image else VIDEO].astype(x.dtype)

    @nn.nowrap
    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the numbers of tubelets, rows and columns of a video of this size.

        Raises:
          UserError: when the tubelet or the patch does not divide them, or `rope` is unknown.
        """
        if self.rope not in ROPES:
            raise UserError(f"rope is {self.rope!r}; it can be one of {', '.join(ROPES)}")
        if self.positions not in POSITIONS:
            raise UserError(
                f"positions is {self.positions!r}; it can be one of {', '.join(POSITIONS)}"
            )
        frames = self.tubelet if frames == 1 else frames
        if frames % self.tubelet:
            raise UserError(f"a video has {frames} frames, which tubelet={self.tubelet} cannot cut")
        if height % self.patch or width % self.patch:
            raise UserError(f"frames are {height}x{width}, which patch={self.patch} cannot cut")
        return frames // self.tubelet, height // self.patch, width // self.patch

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        norm, patches = LayerNorm().partition_table(), PatchEmbedding(0, 1, 1).partition_table()
        images: Table = ()
        if self.image_tokenizer:
            images = (*prefixed("image_patches", patches), ("modality", (None, "embed")))
        return (
            *prefixed("patches", patches),
            *self._stack(parent=None).partition_table(),
            *prefixed("norm", norm),
            *(row for i in range(len(self.taps) - 1) for row in prefixed(f"tap_norms_{i}", norm)),
            *images,
        )

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
            norm=partial(LayerNorm, **types),
        )
        return Stack(block, self.depth, remat=self.remat, scan=self.scan, **options)
