"""Transformer blocks, made of the parts they are given.

A part is a module class with its options bound (`functools.partial`), so that one block serves
LayerNorm or RMSNorm, GELU or SwiGLU. The matrices that write into the residual stream are called
`out` in all of them; `nn.stack` scales their first values by depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jepa.nn.rotary import Rotary
from jepa.parallel.partition import Table, constrain, prefixed


class _Block(nn.Module):
    """What all blocks share: `attention`, `mlp` and two norms, `norm1` and `norm2`."""

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        norm = self.norm().partition_table()
        return (
            *prefixed("norm1", norm),
            *prefixed("attention", self.attention().partition_table()),
            *prefixed("norm2", norm),
            *prefixed("mlp", self.mlp().partition_table()),
        )


class PreNormBlock(_Block):
    """`x + attention(norm1(x))`, then `x + mlp(norm2(x))`."""

    @nn.compact
    def __call__(
        self, x: jax.Array, *, rotary: Rotary | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[B, N, D]` to `[B, N, D]`; `rotary` and `mask` as in `Attention`."""
        y = self.norm(name="norm1")(x)
        x = x + self.attention(name="attention")(y, rotary=rotary, mask=mask)
        x = x + self.mlp(name="mlp")(self.norm(name="norm2")(x))
        return constrain(x, "batch", "tokens", None)


class LayerScale(nn.Module):
    """Multiplies every channel by a learnt number (arXiv 2103.17239), which begins as one.

    Parameters: `scale` `[D]`.
    """

    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., D]` to `[..., D]`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        return x.astype(self.dtype) * scale.astype(self.dtype)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return (("scale", (None,)),)


class LayerScaleBlock(_Block):
    """DINOv2's: `x + scale1(attention(norm1(x)))`, then `x + scale2(mlp(norm2(x)))`.

    `scale` makes a `LayerScale`.
    """

    scale: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self, x: jax.Array, *, rotary: Rotary | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[B, N, D]` to `[B, N, D]`; `rotary` and `mask` as in `Attention`."""
        y = self.attention(name="attention")(self.norm(name="norm1")(x), rotary=rotary, mask=mask)
        x = x + self.scale(name="scale1")(y)
        y = self.mlp(name="mlp")(self.norm(name="norm2")(x))
        x = x + self.scale(name="scale2")(y)
        return constrain(x, "batch", "tokens", None)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        scale = self.scale().partition_table()
        return (
            *super().partition_table(),
            *prefixed("scale1", scale),
            *prefixed("scale2", scale),
        )


class PostNormBlock(_Block):
    """BERT's order: `norm1(x + attention(x))`, then `norm2(x + mlp(x))`."""

    @nn.compact
    def __call__(
        self, x: jax.Array, *, rotary: Rotary | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[B, N, D]` to `[B, N, D]`; `rotary` and `mask` as in `Attention`."""
        y = self.attention(name="attention")(x, rotary=rotary, mask=mask)
        x = self.norm(name="norm1")(x + y)
        x = self.norm(name="norm2")(x + self.mlp(name="mlp")(x))
        return constrain(x, "batch", "tokens", None)


class SandwichBlock(_Block):
    """Gemma's order: `x + norm3(attention(norm1(x)))`, then `x + norm4(mlp(norm2(x)))`.

    A part's result is normalised too before it is added.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, *, rotary: Rotary | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[B, N, D]` to `[B, N, D]`; `rotary` and `mask` as in `Attention`."""
        y = self.attention(name="attention")(self.norm(name="norm1")(x), rotary=rotary, mask=mask)
        x = x + self.norm(name="norm3")(y)
        y = self.mlp(name="mlp")(self.norm(name="norm2")(x))
        x = x + self.norm(name="norm4")(y)
        return constrain(x, "batch", "tokens", None)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        norm = self.norm().partition_table()
        return (
            *super().partition_table(),
            *prefixed("norm3", norm),
            *prefixed("norm4", norm),
        )
