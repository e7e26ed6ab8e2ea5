"""Normalisations whose statistics are taken in float32 at least, whatever the compute type."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.parallel.partition import Table


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis: `scale * (x - mean) / sqrt(var + eps) + bias`.

    Parameters: `scale` `[D]` and `bias` `[D]`; none when not `affine`.
    """

    eps: float = 1e-6
    affine: bool = True
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., D]` to `[..., D]` in `dtype`."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = x.astype(wide)
        mean = jnp.mean(y, axis=-1, keepdims=True)
        centred = y - mean
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
            y = y * scale.astype(wide) + bias.astype(wide)
        return y.astype(self.dtype)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return (("scale", (None,)), ("bias", (None,))) if self.affine else ()


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis: `scale * x / sqrt(mean(x^2) + eps)`.

    Parameters: `scale` `[D]`.
    """

    eps: float = 1e-5
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., D]` to `[..., D]` in `dtype`."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = x.astype(wide)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        return (y * scale.astype(wide)).astype(self.dtype)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return (("scale", (None,)),)
