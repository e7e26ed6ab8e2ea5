"""Normalisations whose statistics are taken in float32 at least, whatever the compute type.

D width, N rows of the global batch.
"""

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

    Parameters: `scale` `[D]`, from ones; of a `centred` one, whose factor is `1 + scale` as in
    Gemma, from zeros.
    """

    eps: float = 1e-5
    centred: bool = False
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., D]` to `[..., D]` in `dtype`."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = x.astype(wide)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        first = nn.initializers.zeros if self.centred else nn.initializers.ones
        scale = self.param("scale", first, (x.shape[-1],), self.param_dtype).astype(wide)
        return (y * (1 + scale if self.centred else scale)).astype(self.dtype)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return (("scale", (None,)),)


class BatchNorm(nn.Module):
    """Batch normalisation, over all axes but the last.

    `scale * (x - mean) / sqrt(var + eps) + bias`.

    Under `jit` the mean of an array that lies on many devices is that of the global batch, so value
    and gradient do not depend on the mesh (`[2, D]` cross devices, and as many backward). What it
    does see is one micro-batch at a time where a step accumulates.

    Parameters: `scale` `[D]` and `bias` `[D]`. State, in the collection `batch_stats`: `mean` and
    `variance` `[D]`, moving averages for use outside training.

    Attributes:
      momentum: share of the new batch in the averages (torch's convention and default).
      eps: as published (torch's default).
    """

    momentum: float = 0.1
    eps: float = 1e-5
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[..., D]` to `[..., D]` in `dtype`.

        Args:
          x: at least two rows when training.
          train: normalise by the batch and, where `batch_stats` is mutable, move the averages
            towards it (with the unbiased variance); otherwise normalise by the averages.
        """
        width = x.shape[-1]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (width,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (width,), self.param_dtype)
        means = self.variable("batch_stats", "mean", jnp.zeros, (width,), self.param_dtype)
        variances = self.variable("batch_stats", "variance", jnp.ones, (width,), self.param_dtype)
        y = x.astype(wide)
        if train:
            axes, rows = tuple(range(x.ndim - 1)), x.size // width
            mean = jnp.mean(y, axis=axes)
            variance = jnp.mean(jnp.square(y - mean), axis=axes)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                self._move(means, mean)
                self._move(variances, variance * (rows / max(rows - 1, 1)))
        else:
            mean, variance = means.value.astype(wide), variances.value.astype(wide)
        y = (y - mean) * jax.lax.rsqrt(variance + self.eps)
        return (y * scale.astype(wide) + bias.astype(wide)).astype(self.dtype)

    @nn.nowrap
    def _move(self, average: nn.Variable, new: jax.Array) -> None:
        old = average.value
        new = jax.lax.stop_gradient(new).astype(old.dtype)
        average.value = old + self.momentum * (new - old)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        return (("scale", (None,)), ("bias", (None,)))
