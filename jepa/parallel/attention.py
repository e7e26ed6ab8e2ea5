"""Scaled dot-product attention, by platform and size.

Four implementations, chosen while tracing (`chosen`):

* `splash` on TPUs (fused; never forms the `[N, M]` matrix), for long sequences with no mask or one
  of keys; see `jepa.parallel.splash`.
* `cudnn` (fused too) on NVIDIA GPUs where `cudnn_fits` holds.
* `einsum` in plain XLA, for all that is short.
* `blockwise` in plain XLA for what is long and neither kernel takes: some rows of the matrix at a
  time.

All but `einsum` work on each device's queries by themselves (`jepa.parallel.local`).

The platform is that of the mesh of `jax.set_mesh`, and JAX's default backend where no mesh is set.
A mesh knows its platform even when a program is compiled ahead of time for devices that are not
there, which the default backend does not. `lax.platform_dependent` would decide later still, but
it traces all branches (the cuDNN one fails on a host without CUDA), and differentiates them all,
so the residuals of the branch not taken are carried from the forward to the backward pass.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from jepa.parallel import einsum, partition, splash
from jepa.parallel.local import layout, on_devices

IMPLEMENTATIONS = ("einsum", "blockwise", "cudnn", "splash")
# What `jax.checkpoint` knows attention's result by, and what else its backward pass needs.
NAME = "attention"

# Bytes of a device's `[B, heads, N, M]` matrix in float32. On TPU, the compiler keeps small ones
# in the chip's own memory; larger ones cross the chip's main memory several times, which takes
# longer than the products. Elsewhere the matrix is formed until it is a burden by itself.
SPLASH_BYTES = 32 * 2**20
BLOCKWISE_BYTES = 512 * 2**20
# A kernel's block of 256 x 256 takes about as long as starting it.
SPLASH_TOKENS = 257


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
        may see no key gets something finite, not NaN, that means nothing.
      dtype: of the matrix products and of the result. Softmax runs in float32 or wider.
      implementation: one of `IMPLEMENTATIONS` to insist; None chooses as the module says. On other
        platforms than TPU, "splash" is interpreted, which is for tests.

    Returns:
      `[B, heads, N, head_dim]` in `dtype`. Under `jax.checkpoint`, what is needed to go on from it
      has the name `NAME`.

    Raises:
      ValueError: shapes that do not fit, an unknown implementation, or one that does not take
        these arguments.
    """
    _check(q, k, v, mask)
    dtype = jnp.dtype(dtype)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    if implementation is None:
        implementation = chosen(q, k, mask)
    if implementation == "splash":
        # The kernel gives the name itself, to its result and to what else it keeps.
        run = functools.partial(splash.splash, name=NAME, interpret=platform() != "tpu")
        return on_devices(run, q, k, v, mask)
    if implementation == "einsum":
        # Every query sees every key, so keys and values are whole on each device of the context.
        k, v = _whole(k), _whole(v)
        return checkpoint_name(einsum.einsum(q, k, v, mask), NAME)
    if implementation == "blockwise":
        return checkpoint_name(on_devices(einsum.blockwise, q, k, v, mask), NAME)
    if implementation == "cudnn":
        return checkpoint_name(on_devices(_cudnn, q, k, v, mask), NAME)
    raise ValueError(f"attention {implementation!r} is none of {IMPLEMENTATIONS}")


def chosen(q: jax.Array, k: jax.Array, mask: jax.Array | None) -> str:
    """The implementation that `attend` takes, by platform, mask and a device's part of the matrix.

    The figures behind the thresholds are arithmetic from published bandwidths (`docs/parallel.md`).
    """
    parts = layout(q, k).local(q, k)
    matrix = 4 * math.prod(parts)
    here = platform()
    long = matrix >= SPLASH_BYTES and min(parts[2:]) >= SPLASH_TOKENS
    if here == "tpu" and long and splash.fits(q.dtype, mask):
        return "splash"
    if here == "gpu" and _cudnn_here(q, mask):
        return "cudnn"
    return "blockwise" if matrix >= BLOCKWISE_BYTES else "einsum"


def platform() -> str:
    """The platform that the program being traced is for: "cpu", "gpu", "tpu"."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    name = getattr(device, "platform", None) or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def cudnn_fits(dtype: DTypeLike, head_dim: int, mask: jax.Array | None) -> bool:
    """Whether cuDNN's fused attention takes these arguments.

    Its conditions: 16-bit floats; head_dim a multiple of 8, at most 128 (256 only on Hopper and
    later, which is not relied on). Calls with a mask are left to XLA: cuDNN turns a mask into an
    additive bias of `[B, heads, N, M]`, which has odd-length and broadcasting limits (jax issue
    28974) and costs the memory that fusing saves.
    """
    halves = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    return jnp.dtype(dtype) in halves and head_dim % 8 == 0 and head_dim <= 128 and mask is None


def _cudnn_here(q: jax.Array, mask: jax.Array | None) -> bool:
    if not cudnn_fits(q.dtype, q.shape[-1], mask):
        return False
    # Fused attention needs Ampere (8.0). AMD devices name their architecture otherwise ("gfx...").
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    return capability.replace(".", "", 1).isdigit() and float(capability) >= 8.0


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is not None:
        mask = jnp.broadcast_to(mask, (q.shape[0], 1, q.shape[2], k.shape[2]))
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    return out.swapaxes(1, 2)


def _whole(x: jax.Array) -> jax.Array:
    """Asks for all tokens of `[B, heads, M, head_dim]` on each device of the context."""
    if not partition.axes("tokens"):
        return x
    free = PartitionSpec.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x, PartitionSpec(free, free, None, None))


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
