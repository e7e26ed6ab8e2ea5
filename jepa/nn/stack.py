"""A stack of equal blocks whose parameters are stacked too, scanned or unrolled.

Scanned, a program's size and compile time do not grow with depth. Unrolled, it may run a little
faster. The parameters are the same either way: one tree, a leading axis for the layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.errors import UserError
from jepa.parallel import attention
from jepa.parallel.partition import Table, prefixed

_ATTENTION = jax.checkpoint_policies.save_only_these_names(attention.NAME)
_DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

# What a block keeps for its backward pass besides its input, by the name a config uses.
REMAT: Mapping[str, Callable[..., Any] | None] = {
    # Everything.
    "none": None,
    # Nothing: the whole block is computed twice. Least memory.
    "full": jax.checkpoint_policies.nothing_saveable,
    # The results of weight matrices; norms, activations and attention are computed twice.
    "dots": _DOTS,
    # The attention's result, and what a fused kernel needs to go back from it: the costliest part
    # for long videos is computed once.
    "attention": _ATTENTION,
    # Both: only norms and activations are computed twice.
    "dots_attention": jax.checkpoint_policies.save_from_both_policies(_DOTS, _ATTENTION),
}


def check_remat(name: str) -> str:
    """Returns `name`, or raises UserError when no policy is called so."""
    if name not in REMAT:
        raise UserError(f"remat is {name!r}; it can be one of {', '.join(REMAT)}")
    return name


class Stack(nn.Module):
    """`depth` blocks, one after another.

    Parameters: `blocks/...`, the block's own with a leading axis `[depth, ...]`.

    Attributes:
      block: makes one block, a module called as `block(x, **shared)`.
      depth: number of blocks.
      remat: a name in `REMAT`.
      scan: one compiled block in a loop, or `depth` of them in a row.
      scale_by_depth: divides the first values of matrices called `out` in layer i (from 1) by
        sqrt(2 i), as all published JEPA encoders do.
    """

    block: Callable[..., nn.Module]
    depth: int
    remat: str = "none"
    scan: bool = True
    scale_by_depth: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        taps: tuple[int, ...] = (),
        kinds: tuple[int, ...] | None = None,
        **shared: Any,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Applies the blocks.

        Args:
          x: `[B, N, D]`.
          taps: numbers of layers after which to keep the tokens, rising, each 0..depth.
          kinds: for each layer, which of several it gets: every array in `shared` then has a
            leading axis of kinds (Gemma's layers see all tokens or the near ones).
          **shared: what every block gets (rotary tables, masks).

        Returns:
          The last tokens `[B, N, D]`, and those at each tap.

        Raises:
          UserError: on a tap out of order or range, or an unknown remat policy.
          ValueError: `kinds` does not name one for each layer.
        """
        check_remat(self.remat)
        if list(taps) != sorted(set(taps)) or any(not 0 <= t <= self.depth for t in taps):
            raise UserError(f"taps are {taps}; they must rise and lie in 0..{self.depth}")
        if kinds is not None and len(kinds) != self.depth:
            raise ValueError(f"{len(kinds)} kinds for {self.depth} layers")
        block = self.block(parent=None)
        first = shared if kinds is None else _of_kind(shared, 0)
        blocks = self.param("blocks", self._init, block, x, first)

        def layer(tokens: jax.Array, of_layer: tuple[Any, Any]) -> Any:
            params, kind = of_layer
            given = shared if kind is None else _of_kind(shared, kind)
            return block.apply({"params": params}, tokens, **given)

        if self.remat != "none":
            # A scan's loop already keeps the compiler from merging the two computations.
            layer = jax.checkpoint(layer, policy=REMAT[self.remat], prevent_cse=not self.scan)
        kept = {0: x}
        borders = sorted({0, *taps, self.depth})
        for start, end in itertools.pairwise(borders):
            x = self._segment(layer, x, blocks, kinds, start, end)
            kept[end] = x
        return x, tuple(kept[t] for t in taps)

    @nn.nowrap
    def _segment(
        self,
        layer: Callable[..., jax.Array],
        x: jax.Array,
        blocks: Any,
        kinds: tuple[int, ...] | None,
        start: int,
        end: int,
    ) -> jax.Array:
        """Applies layers start..end-1."""
        if not self.scan:
            for i in range(start, end):
                params = jax.tree.map(lambda p, i=i: p[i], blocks)
                x = layer(x, (params, None if kinds is None else kinds[i]))
            return x
        if (start, end) != (0, self.depth):
            blocks = jax.tree.map(lambda p: p[start:end], blocks)
        of_layers = (blocks, None if kinds is None else jnp.asarray(kinds[start:end]))
        return jax.lax.scan(lambda tokens, given: (layer(tokens, given), None), x, of_layers)[0]

    @nn.nowrap
    def _init(self, key: jax.Array, block: nn.Module, x: jax.Array, shared: Any) -> Any:
        """Draws all layers at once, each from its own key."""
        keys = jax.random.split(key, self.depth)
        params = jax.vmap(lambda k: block.init(k, x, **shared)["params"])(keys)
        if not self.scale_by_depth:
            return params
        ids = jnp.arange(1, self.depth + 1)

        def scale(path: tuple[Any, ...], p: jax.Array) -> jax.Array:
            if [part.key for part in path[-2:]] != ["out", "kernel"]:
                return p
            factors = jax.lax.rsqrt(2.0 * ids.astype(p.dtype))
            return p * factors.reshape(-1, *[1] * (p.ndim - 1))

        return jax.tree_util.tree_map_with_path(scale, params)

    @nn.nowrap
    def partition_table(self) -> Table:
        """Returns the rows of this module's parameters."""
        rows = self.block(parent=None).partition_table()
        return prefixed("blocks", tuple((path, ("layers", *axes)) for path, axes in rows))


def _of_kind(shared: Any, kind: Any) -> Any:
    return jax.tree.map(lambda array: array[kind], shared)
