"""All pairs of two sets of embeddings, tile by tile: the matrix of their cosines never exists.

Letters: B global batch, D width, n pieces that the batch is cut into, b = B / n rows of a piece.

A device keeps its b rows and meets all B columns. Two transports bring them:

* "ring": blocks of b columns, and what is summed up for them, travel around the devices. Nothing
  is larger than a piece. The next block is under way while the current one is worked on.
* "all_gather": the columns are gathered once, and what is summed up for them is `[B, ...]` on
  every device, merged at the end. One collective; memory for B columns.

Within a block at most `tile` rows meet at most `tile` columns at a time. A size that `tile` does
not divide is cut into equal tiles, rounded up to multiples of `LANES` where `tile` allows it; the
last may overlap the one before, and the pairs that were visited are then left out.

Embeddings are never normalised: a cosine is the product of two rows times their two inverse
norms. The product is taken of the embeddings as they are and summed in float32 at least, so that
bfloat16 embeddings give float32 cosines, without a rounding, at the speed of bfloat16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jepa.parallel.rows import Rows

LANES = 128  # numbers in a row of a TPU's registers and of its matrix unit

Arrays = dict[str, jax.Array]
State = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Exponentials:
    """Sums of exponentials that neither overflow nor underflow, for each row or column.

    Attributes:
      best: `[b]` largest logit; the lowest finite number where there is none.
      sums: for each factor, `[b]` sum over logits x of `exp(factor * (x - best))`.
      factors: positive numbers.
    """

    best: jax.Array
    sums: tuple[jax.Array, ...]
    factors: tuple[float, ...] = dataclasses.field(metadata={"static": True})

    def log(self, index: int = 0) -> jax.Array:
        """`[b]` logarithm of the sum of `exp(factor * x)`; minus infinity where there is none."""
        return self.factors[index] * self.best + jnp.log(self.sums[index])

    def rebased(self, best: jax.Array) -> tuple[jax.Array, ...]:
        """The sums relative to another, not smaller, `best`."""
        pairs = zip(self.sums, self.factors, strict=True)
        return tuple(x * jnp.exp(f * (self.best - best)) for x, f in pairs)


def exponentials(logits: jax.Array, axis: int, factors: tuple[float, ...] = (1.0,)) -> Exponentials:
    """Reduces `[m, k]` logits, minus infinity where a pair does not count, along an axis."""
    best = jnp.max(logits, axis, initial=jnp.finfo(logits.dtype).min)
    away = logits - jnp.expand_dims(best, axis)
    return Exponentials(best, tuple(jnp.sum(jnp.exp(f * away), axis) for f in factors), factors)


@dataclasses.dataclass(frozen=True)
class Tile:
    """Some rows and some columns.

    Attributes:
      rows: arrays `[m, ...]`: `x` the embeddings, `inverse` their inverse norms, `hash` if equal
        targets matter, and what the loss has added.
      columns: the same, `[k, ...]`.
      own: bool `[m, k]`, true where a row meets its own column; None if none does.
      new: bool `[m, k]`, false where an earlier tile has visited the pair; None if none has.
    """

    rows: Arrays
    columns: Arrays
    own: jax.Array | None = None
    new: jax.Array | None = None

    def cosines(self) -> jax.Array:
        """`[m, k]`, float32 or wider."""
        products = product(self.rows["x"], self.columns["x"], (1, 1))
        return products * self.rows["inverse"][:, None] * self.columns["inverse"]

    def negative(self) -> jax.Array | None:
        """Bool `[m, k]`, the pairs of different targets; None if all are."""
        if "hash" in self.rows:
            return _both(self.rows["hash"][:, None] != self.columns["hash"], self.new)
        return _both(None if self.own is None else ~self.own, self.new)

    def same(self) -> jax.Array:
        """Bool `[m, k]`, the pairs of equal targets, a row's own among them."""
        same = _both(self.rows["hash"][:, None] == self.columns["hash"], self.new)
        assert same is not None
        return same

    def own_values(self, x: jax.Array) -> jax.Array:
        """`[m]` what `[m, k]` has in each row's own column; zeros if that is not here."""
        if self.own is None:
            return jnp.zeros(x.shape[:1], x.dtype)
        return jnp.sum(jnp.where(self.own, x, 0), 1)


Visit = Callable[[Tile], tuple[State, State]]


def select(mask: jax.Array | None, x: jax.Array, other: float) -> jax.Array:
    """`x` where the mask is true, or everywhere if it is None."""
    return x if mask is None else jnp.where(mask, x, other)


def merge(a: Any, b: Any) -> Any:
    """Joins what two disjoint sets of pairs gave: sums are added."""

    def join(a: Any, b: Any) -> Any:
        if not isinstance(a, Exponentials):
            return a + b
        best = jnp.maximum(a.best, b.best)
        sums = zip(a.rebased(best), b.rebased(best), strict=True)
        return Exponentials(best, tuple(x + y for x, y in sums), a.factors)

    return jax.tree.map(join, a, b, is_leaf=_is_exponentials)


def sweep(
    layout: Rows, transport: str, tile: int, rows: Arrays, columns: Arrays, visit: Visit
) -> tuple[State, State]:
    """Visits all pairs of this device's rows and all columns; inside `layout.map`.

    Args:
      layout: how the batch is cut.
      transport: "all_gather" or "ring".
      tile: largest number of rows, and of columns, that meet at a time.
      rows: arrays `[b, ...]`; see `Tile`.
      columns: arrays `[b, ...]`, the columns of the same examples.
      visit: from a tile to what it adds to its rows `[m, ...]` and to its columns `[k, ...]`:
        arrays that are summed, and `Exponentials`.

    Returns:
      What all pairs add to this device's rows, and to its columns.
    """
    if layout.pieces == 1:
        return _block(visit, tile, rows, columns, diagonal=0)
    return (_ring if transport == "ring" else _all_gather)(layout, tile, rows, columns, visit)


def _all_gather(
    layout: Rows, tile: int, rows: Arrays, columns: Arrays, visit: Visit
) -> tuple[State, State]:
    count = _count(rows)
    start = layout.index() * count
    row_state, column_state = _block(visit, tile, rows, layout.gather(columns), diagonal=start)

    def join(x: Any) -> Any:
        if not isinstance(x, Exponentials):
            return layout.scatter_sum(x)
        best = layout.max(x.best)
        sums = layout.scatter_sum(x.rebased(best))
        return Exponentials(_take(best, start, count), sums, x.factors)

    return row_state, jax.tree.map(join, column_state, is_leaf=_is_exponentials)


def _ring(
    layout: Rows, tile: int, rows: Arrays, columns: Arrays, visit: Visit
) -> tuple[State, State]:
    # The own block comes first and alone: it starts the columns' state, and only it has the pairs
    # that are their own, so the loop does not look for them.
    following = layout.pass_on(columns)
    row_state, column_state = _block(visit, tile, rows, columns, diagonal=0)

    def hop(carry: tuple[Arrays, State, State], _: None) -> tuple[Any, None]:
        block, row_state, column_state = carry
        # Neither transfer waits for the work on this block.
        following, arrived = layout.pass_on((block, column_state))
        row_state, added = _block(visit, tile, rows, block, row_state=row_state)
        return (following, row_state, merge(arrived, added)), None

    carry = (following, row_state, column_state)
    (_, row_state, column_state), _ = jax.lax.scan(hop, carry, None, length=layout.pieces - 1)
    return row_state, layout.pass_on(column_state)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Tiles of `size` over `count` entries, of which the last may overlap the one before."""

    count: int
    tiles: int
    size: int

    @classmethod
    def of(cls, count: int, tile: int) -> _Cut:
        tiles = -(-count // tile)
        size = -(-count // tiles)
        rounded = -(-size // LANES) * LANES
        if tiles > 1 and rounded <= tile:
            size = rounded
        return cls(count, -(-count // size), size)

    def start(self, index: Any) -> Any:
        if self.overlaps:
            return jnp.minimum(index * self.size, self.count - self.size)
        return index * self.size

    @property
    def overlaps(self) -> bool:
        return self.tiles * self.size > self.count

    def places(self, index: Any) -> jax.Array:
        return self.start(index) + jnp.arange(self.size)

    def new(self, index: Any) -> jax.Array | None:
        return self.places(index) >= index * self.size if self.overlaps else None


def _block(
    visit: Visit,
    tile: int,
    rows: Arrays,
    columns: Arrays,
    diagonal: Any = None,
    row_state: State | None = None,
) -> tuple[State, State]:
    """Visits a block's tiles; adds to `row_state` if there is one.

    `diagonal` is the column of the first row's own partner; None if the block has no partners.
    """
    down, across = _Cut.of(_count(rows), tile), _Cut.of(_count(columns), tile)

    def one(i: Any, j: Any) -> tuple[State, State]:
        return visit(_tile(rows, columns, down, across, i, j, diagonal))

    if down.tiles == across.tiles == 1:
        row_part, column_part = one(0, 0)
        return row_part if row_state is None else merge(row_state, row_part), column_part

    shapes = jax.eval_shape(one, 0, 0)
    row_state = _empty(shapes[0], down.count) if row_state is None else row_state

    def column(j: Any, state: tuple[State, State]) -> tuple[State, State]:
        def row(i: Any, state: tuple[State, State]) -> tuple[State, State]:
            row_state, column_part = state
            added, column_added = one(i, j)
            start = down.start(i)
            added = merge(_take(row_state, start, down.size), added)
            return _put(row_state, added, start), merge(column_part, column_added)

        row_state, column_state = state
        start = across.start(j)
        part = _take(column_state, start, across.size)
        row_state, part = _loop(down.tiles, row, (row_state, part))
        return row_state, _put(column_state, part, start)

    return _loop(across.tiles, column, (row_state, _empty(shapes[1], across.count)))


def _tile(
    rows: Arrays, columns: Arrays, down: _Cut, across: _Cut, i: Any, j: Any, diagonal: Any
) -> Tile:
    rows = _take(rows, down.start(i), down.size) if down.tiles > 1 else rows
    columns = _take(columns, across.start(j), across.size) if across.tiles > 1 else columns
    new_row, new_column = down.new(i), across.new(j)
    new = _both(
        None if new_row is None else new_row[:, None],
        None if new_column is None else new_column[None, :],
    )
    if new is not None:
        new = jnp.broadcast_to(new, (down.size, across.size))
    if diagonal is None:
        return Tile(rows, columns, None, new)
    own = (down.places(i) + diagonal)[:, None] == across.places(j)
    return Tile(rows, columns, _both(own, new), new)


def _both(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    if a is None or b is None:
        return b if a is None else a
    return a & b


def _loop(count: int, body: Callable[[Any, Any], Any], state: Any) -> Any:
    return body(0, state) if count == 1 else jax.lax.fori_loop(0, count, body, state)


def _count(arrays: Arrays) -> int:
    return arrays["x"].shape[0]


def _take(tree: Any, start: Any, size: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), tree)


def _put(tree: Any, part: Any, start: Any) -> Any:
    def put(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, y, start, 0)

    return jax.tree.map(put, tree, part)


def _is_exponentials(x: Any) -> bool:
    return isinstance(x, Exponentials)


def _empty(shapes: Any, count: int) -> Any:
    """The state of no pairs, `[count, ...]`."""

    def zeros(x: Any) -> jax.Array:
        return jnp.zeros((count, *x.shape[1:]), x.dtype)

    def empty(x: Any) -> Any:
        if not isinstance(x, Exponentials):
            return zeros(x)
        best = jnp.full(count, jnp.finfo(x.best.dtype).min, x.best.dtype)
        return Exponentials(best, tuple(map(zeros, x.sums)), x.factors)

    return jax.tree.map(empty, shapes, is_leaf=_is_exponentials)


def product(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Matrix product over one dimension of each, summed in float32 or wider."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jax.lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if a.dtype == wide else None,
        preferred_element_type=wide,
    )
