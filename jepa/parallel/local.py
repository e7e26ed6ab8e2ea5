"""How queries, keys and values lie on a mesh, and attention worked device by device on it.

The batch is cut over data and fsdp, heads over tensor, queries over context. Every query looks at
every key, so each device of the context gathers the keys and values of all of them: one all-gather
each, forward, and one reduce-scatter of each gradient, backward. A ring would send as much in as
many pieces; heads of their own for each device of the context (an all-to-all) would send less, but
the heads of published encoders (22, 26) divide by few contexts.

B batch, N queries, M keys, K head dimension.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jepa.parallel import partition

Local = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Mesh axes that cut each dimension; empty where it is whole on every device.

    Attributes:
      batch: of the examples; empty where data and fsdp do not divide them.
      heads: of the heads; empty where tensor does not divide those of the keys.
      tokens: of queries, and of keys before they are gathered.
      free: all axes that no enclosing `jax.shard_map` works by hand already, those of one device
        too (a Pallas kernel wants them all); empty on a single device.
    """

    batch: tuple[str, ...]
    heads: tuple[str, ...]
    tokens: tuple[str, ...]
    free: frozenset[str]

    def local(self, q: jax.Array, k: jax.Array) -> tuple[int, int, int, int]:
        """A device's part of the `[B, heads, N, M]` products."""
        batch, heads, queries, _ = q.shape
        return (
            batch // _pieces(self.batch),
            heads // _pieces(self.heads),
            -(-queries // _pieces(self.tokens)),
            k.shape[2],
        )


def layout(q: jax.Array, k: jax.Array) -> Layout:
    """Says how these queries and keys are cut over the mesh of `jax.set_mesh`."""
    batch, heads, tokens = (partition.axes(name) for name in ("batch", "kv_heads", "tokens"))
    if q.shape[0] % _pieces(batch):
        batch = ()
    if k.shape[1] == 1 or k.shape[1] % _pieces(heads):
        heads = ()
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes) if mesh.size > 1 else set()
    return Layout(batch, heads, tokens, frozenset(free))


def on_devices(
    function: Local, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """Runs attention on each device's queries and heads, over all keys.

    Args:
      function: of q `[b, heads, n, K]`, k and v `[b, kv_heads, M, K]` and the mask, of one device;
        gives `[b, heads, n, K]`.
      q, k, v, mask: global, as for `attend`. Numbers of queries that the context does not divide
        are filled up, and the rest of the result dropped.

    Returns:
      `[B, heads, N, K]`.
    """
    cut = layout(q, k)
    if not cut.free:
        return function(q, k, v, mask)
    count, queries, keys = _pieces(cut.tokens), q.shape[2], k.shape[2]
    q, k, v = (_filled(x, 2, count) for x in (q, k, v))
    if mask is not None and mask.shape[2] > 1:
        mask = _filled(mask, 2, count)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
        if cut.tokens:
            k, v = (jax.lax.all_gather(x, cut.tokens, axis=2, tiled=True) for x in (k, v))
        return function(q, k[:, :, :keys], v[:, :, :keys], mask)

    spec = PartitionSpec(cut.batch, cut.heads, cut.tokens, None)
    out = jax.shard_map(
        local,
        in_specs=(spec, spec, spec, _mask_spec(cut, mask)),
        out_specs=spec,
        axis_names=cut.free,
        # A Pallas kernel does not say over which axes its result varies.
        check_vma=False,
    )(q, k, v, mask)
    return out[:, :, :queries]


def _pieces(axes: tuple[str, ...]) -> int:
    """The number of pieces that these axes cut a dimension into."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes)


def _mask_spec(cut: Layout, mask: jax.Array | None) -> Any:
    if mask is None:
        return None
    batch = cut.batch if mask.shape[0] > 1 else None
    return PartitionSpec(batch, None, cut.tokens if mask.shape[2] > 1 else None, None)


def _filled(x: jax.Array, dimension: int, multiple: int) -> jax.Array:
    """Appends zeros (false) until `multiple` divides the dimension."""
    missing = -x.shape[dimension] % multiple
    if not missing:
        return x
    widths = [(0, 0)] * x.ndim
    widths[dimension] = (0, missing)
    return jnp.pad(x, widths)
