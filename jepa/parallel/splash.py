"""JAX's splash attention for TPUs: softmax in float32, and no `[N, M]` matrix in memory.

The kernel is `jax.experimental.pallas.ops.tpu.splash_attention`. (tokamax carries a newer copy; its
releases for Python 3.11 bring five packages more.) It works on whole blocks, of which the last one
is filled up here; keys that were filled in, and those that a mask hides, belong to another segment
than all queries. What it keeps for the backward pass is the result and the logarithms of the sums.

B batch, N queries, M keys, K head dimension.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from jax.typing import DTypeLike

_LANES = 128
# Sizes of blocks, each a multiple of what the chip works on at once.
_BLOCKS = (1024, 768, 640, 512, 384, 256, 128)
# Logits of a block that are held at once, in columns; half of a larger block.
_LARGEST_COMPUTE = 640
# The segment of all queries, and of the keys that they see.
_SEEN = 1


def fits(dtype: DTypeLike, mask: jax.Array | None) -> bool:
    """Whether the kernel takes these arguments.

    Floats of 32 bits at most, since it adds up in float32; no mask, or one that hides keys from all
    queries alike.
    """
    return jnp.dtype(dtype).itemsize <= 4 and (mask is None or mask.shape[2] == 1)


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    *,
    name: str,
    interpret: bool = False,
) -> jax.Array:
    """Attention of one device's queries over all keys.

    Args:
      q: `[B, heads, N, K]`.
      k: `[B, kv_heads, M, K]`.
      v: as `k`.
      mask: bool `[B or 1, 1, 1, M or 1]`, true where a key may be seen. Where none may, the result
        is finite and means nothing.
      name: under which `jax.checkpoint` finds what the backward pass needs.
      interpret: runs on other platforms, slowly, for tests.

    Returns:
      `[B, heads, N, K]` in the type of `q`.

    Raises:
      ValueError: where it does not fit.
    """
    if not fits(q.dtype, mask):
        shape = None if mask is None else mask.shape
        raise ValueError(
            f"splash attention takes at most float32 and masks of keys alone, not {q.dtype} with a "
            f"mask of shape {shape}"
        )
    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    rows, columns = block(queries), block(keys)
    # The kernel does not scale. In `q`'s own type: a power of two is exact, others round once more.
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    q, k, v = _filled(q, rows), _filled(k, columns), _filled(v, columns)
    run = kernel(heads, q.shape[2], k.shape[2], rows, columns, q.shape[-1], name, interpret)
    queried = jnp.full((q.shape[2],), _SEEN, jnp.int32)

    def one(q: jax.Array, k: jax.Array, v: jax.Array, keyed: jax.Array | None) -> jax.Array:
        return run(q, k, v, None if keyed is None else kernels.SegmentIds(queried, keyed))

    keyed = _segments(mask, keys, k.shape[2])
    own = keyed is not None and keyed.ndim == 2
    return jax.vmap(one, in_axes=(0, 0, 0, 0 if own else None))(q, k, v, keyed)[:, :, :queries]


def block(count: int) -> int:
    """The size of the blocks that `count` rows are cut into: 128 to 1024.

    Filled-up rows cost work, and so do many small blocks: each is taken to cost 64 rows more.
    """
    return min(_BLOCKS, key=lambda size: -(-count // size) * (size + 64))


def kernel(
    heads: int,
    queries: int,
    keys: int,
    rows: int,
    columns: int,
    head_dim: int,
    name: str,
    interpret: bool,
) -> Any:
    """Splash attention of `[heads, queries, head_dim]`, for blocks of `rows` by `columns`."""
    compute = columns if columns <= _LARGEST_COMPUTE else columns // 2
    # An array whose last dimension is below 128 would be filled up to that in memory, so heads that
    # are smaller lie with their tokens last.
    small = head_dim < _LANES
    order = kernels.QKVLayout.SEQ_MINOR if small else kernels.QKVLayout.HEAD_DIM_MINOR
    sizes = kernels.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_kv_compute=compute,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_kv_dkv_compute=compute,
        block_q_dq=rows,
        block_kv_dq=columns,
        q_layout=order,
        k_layout=order,
        v_layout=order,
    )
    everything = kernels.FullMask((queries, keys))
    return kernels.make_splash_mha(
        kernels.MultiHeadMask([everything] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=name,
        interpret=interpret,
    )


def _segments(mask: jax.Array | None, keys: int, filled: int) -> jax.Array | None:
    """Segments of the keys, `[M]` or, where examples differ, `[B, M]`; None where all are seen."""
    if mask is None and keys == filled:
        return None
    seen = jnp.arange(filled) < keys
    if mask is not None:
        given = jnp.broadcast_to(mask[:, 0, 0], (mask.shape[0], keys))
        seen = seen & jnp.pad(given, ((0, 0), (0, filled - keys)))
        seen = seen[0] if seen.shape[0] == 1 else seen
    return jnp.where(seen, _SEEN, 0).astype(jnp.int32)


def _filled(x: jax.Array, size: int) -> jax.Array:
    """Appends zeros to the tokens until blocks of that size divide them."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % size), (0, 0)))
