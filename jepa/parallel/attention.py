"""Scaled dot-product attention, by platform.

Two implementations, chosen while tracing:

* `einsum` on CPU and TPU, and wherever cuDNN's conditions fail. On `[B, heads, N, head_dim]` it
  runs, on CPU, about 2.5 times as fast as `jax.nn.dot_product_attention` on
  `[B, N, heads, head_dim]`.
* `cudnn` (fused; never forms the `[N, M]` matrix) on NVIDIA GPUs where `cudnn_fits` holds.

The platform is that of the mesh of `jax.set_mesh`, and JAX's default backend where no mesh is set.
A mesh knows its platform even when a program is compiled ahead of time for devices that are not
there, which the default backend does not. `lax.platform_dependent` would decide later still, but
it traces all branches (the cuDNN one fails on a host without CUDA), and differentiates them all,
so the residuals of the branch not taken are carried from the forward to the backward pass.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

IMPLEMENTATIONS = ("einsum", "cudnn")


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    dtype: DTypeLike,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of N queries over M keys, `softmax(q k' / sqrt(head_dim)) v`.

    Args:
      q: `[B, heads, N, head_dim]`.
      k: `[B, kv_heads, M, head_dim]`; `heads` must be a multiple of `kv_heads` (grouped
        attention: query head `h` uses key head `h // (heads // kv_heads)`).
      v: as `k`.
      mask: bool, broadcastable to `[B, 1, N, M]`, true where the key may be seen. A query that
        may see no key gets the mean of all values, not NaN; its output means nothing.
      dtype: of the matrix products and of the result. Softmax runs in float32 or wider.
      implementation: "einsum" or "cudnn" to insist; None chooses as the module says.

    Returns:
      `[B, heads, N, head_dim]` in `dtype`.

    Raises:
      ValueError: shapes that do not fit, or an unknown implementation.
    """
    _check(q, k, v, mask)
    dtype = jnp.dtype(dtype)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    if implementation is None:
        implementation = "cudnn" if _cudnn_here(q, mask) else "einsum"
    if implementation == "einsum":
        return _einsum(q, k, v, mask)
    if implementation == "cudnn":
        return _cudnn(q, k, v, mask)
    raise ValueError(f"attention {implementation!r} is none of {IMPLEMENTATIONS}")


def platform() -> str:
    """The platform that the program being traced is for: "cpu", "gpu", "tpu"."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    name = getattr(device, "platform", None) or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def cudnn_fits(dtype: DTypeLike, head_dim: int, mask: jax.Array | None) -> bool:
    """Whether cuDNN's fused attention takes these arguments.

    Its conditions: 16-bit floats; head_dim a multiple of 8, at most 128 (256 only on Hopper and
    later, which is not relied on). Calls with a mask are left to einsum: cuDNN turns a mask into
    an additive bias of `[B, heads, N, M]`, which has odd-length and broadcasting limits
    (jax issue 28974) and costs the memory that fusing saves.
    """
    halves = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    return jnp.dtype(dtype) in halves and head_dim % 8 == 0 and head_dim <= 128 and mask is None


def _cudnn_here(q: jax.Array, mask: jax.Array | None) -> bool:
    if platform() != "gpu" or not cudnn_fits(q.dtype, q.shape[-1], mask):
        return False
    # Fused attention needs Ampere (8.0). AMD devices name their architecture otherwise ("gfx...").
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    return capability.replace(".", "", 1).isdigit() and float(capability) >= 8.0


def _einsum(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    batch, heads, queries, head_dim = q.shape
    kv_heads = k.shape[1]
    if heads == kv_heads:
        return _softmax_product("bhnd,bhmd->bhnm", "bhnm,bhmd->bhnd", q, k, v, mask)
    q = q.reshape(batch, kv_heads, heads // kv_heads, queries, head_dim)
    mask = None if mask is None else mask[:, :, None]
    out = _softmax_product("bhgnd,bhmd->bhgnm", "bhgnm,bhmd->bhgnd", q, k, v, mask)
    return out.reshape(batch, heads, queries, head_dim)


def _softmax_product(
    scores: str, mix: str, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
) -> jax.Array:
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum(scores, q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    if mask is not None:
        # Finite, so that a row without any true entry gives a mean and not 0 / 0.
        logits = jnp.where(mask, logits, 0.7 * jnp.finfo(wide).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum(mix, weights, v)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is not None:
        mask = jnp.broadcast_to(mask, (q.shape[0], 1, q.shape[2], k.shape[2]))
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    return out.swapaxes(1, 2)


def _check(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(f"attend needs [B, heads, N, head_dim]: {q.shape}, {k.shape}, {v.shape}")
    same = q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    if not same or q.shape[1] % k.shape[1]:
        raise ValueError(f"queries {q.shape} do not fit keys {k.shape}")
    if mask is None:
        return
    wanted = (q.shape[0], 1, q.shape[2], k.shape[2])
    fits = mask.ndim == 4 and all(m in (1, w) for m, w in zip(mask.shape, wanted, strict=True))
    if mask.dtype != jnp.bool_ or not fits:
        raise ValueError(f"mask {mask.dtype}{mask.shape} must be bool, broadcastable to {wanted}")
