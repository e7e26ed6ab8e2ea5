"""What the losses over all pairs of cosines share: inputs, the way back to embeddings, metrics.

Letters: B global batch, D width, b rows of a device's piece, `[m, k]` a tile; see `pairs`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jepa.losses.pairs import Arrays, State, Tile, product
from jepa.losses.precision import check_floats, widen
from jepa.parallel.rows import Rows, rows

EQUAL_TARGETS = ("negatives", "masked", "positives")
TRANSPORTS = ("all_gather", "ring")
EPS = 1e-12
WHOLE = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arguments of a loss, checked, of one float type; `prepare` makes them.

    Attributes:
      layout: how the batch is cut.
      embeddings: predictions and targets, `[B, D]` each.
      target_hash: int `[B]`; None where equal targets do not matter.
      equal_targets: "negatives" exactly where `target_hash` is None.
      scalars: in the wide type.
    """

    layout: Rows
    embeddings: tuple[jax.Array, jax.Array]
    target_hash: jax.Array | None
    equal_targets: str
    scalars: tuple[jax.Array, ...]


def prepare(
    name: str,
    predictions: jax.Array,
    targets: jax.Array,
    target_hash: jax.Array | None,
    equal_targets: str,
    transport: str,
    tile: int,
    **scalars: Any,
) -> Inputs:
    """Checks the arguments of the loss `name`.

    Raises:
      ValueError: shapes or types that do not fit, or an unknown option.
    """
    if predictions.ndim != 2 or predictions.shape != targets.shape:
        raise ValueError(f"{name} needs two [B, D]: {predictions.shape} and {targets.shape}")
    check_floats(name, predictions, targets)
    size = predictions.shape[0]
    if target_hash is not None and target_hash.shape != (size,):
        raise ValueError(f"target_hash must be [{size}], not {target_hash.shape}")
    for option, chosen, allowed in (
        ("equal_targets", equal_targets, EQUAL_TARGETS),
        ("transport", transport, TRANSPORTS),
    ):
        if chosen not in allowed:
            raise ValueError(f"{name} {option} {chosen!r} is none of {allowed}")
    if equal_targets == "positives" and target_hash is None:
        raise ValueError(f"{name} equal_targets='positives' needs a target_hash to find them by")
    if tile < 1:
        raise ValueError(f"{name} needs a positive tile, not {tile}")
    # float16 becomes float32: weighted gradients would underflow in it.
    dtype = jnp.promote_types(jnp.result_type(predictions, targets), jnp.bfloat16)
    wide = jnp.promote_types(dtype, jnp.float32)
    values = tuple(jnp.asarray(value).astype(wide) for value in scalars.values())
    for key, value in zip(scalars, values, strict=True):
        if value.ndim:
            raise ValueError(f"{name} {key} must be a scalar, not {value.shape}")
    if target_hash is None or equal_targets == "negatives":
        target_hash, equal_targets = None, "negatives"
    embeddings = (jnp.asarray(predictions).astype(dtype), jnp.asarray(targets).astype(dtype))
    return Inputs(rows(size), embeddings, target_hash, equal_targets, values)


def side(x: jax.Array, target_hash: jax.Array | None, **more: jax.Array) -> Arrays:
    """The arrays of a piece's rows, or columns, as `pairs.Tile` wants them."""
    arrays = {"x": x, "inverse": _inverse_norms(x), **more}
    return arrays if target_hash is None else {**arrays, "hash": target_hash}


def pull_back(tile: Tile, cosines: jax.Array, slopes: jax.Array) -> tuple[State, State]:
    """What a tile's derivatives by its cosines add to its rows and columns.

    Args:
      tile: the tile.
      cosines: `[m, k]`.
      slopes: `[m, k]`, float32 or wider; rounded to the embeddings' type for the products.

    Returns:
      For rows and for columns, `pulled` `[m, D]`, the sum of unit partners weighted by slopes,
      and `along` `[m]`, the sum of cosines weighted by slopes.
    """
    x, y = tile.rows["x"], tile.columns["x"]
    to_rows = (slopes * tile.columns["inverse"]).astype(x.dtype)
    to_columns = (slopes * tile.rows["inverse"][:, None]).astype(x.dtype)
    along = slopes * cosines
    return (
        {"pulled": product(to_rows, y, (1, 0)), "along": jnp.sum(along, 1)},
        {"pulled": product(to_columns, x, (0, 0)), "along": jnp.sum(along, 0)},
    )


def gradient(mine: Arrays, state: State, other: Arrays, own: State, factor: jax.Array) -> jax.Array:
    """`[b, D]` derivative by embeddings, in their type, from the sums of `pull_back`.

    The derivative by a unit vector, without its part along the vector, over the norm. Zero rows
    get zero; rows shorter than `EPS` are scaled, not normalised, as in `pooling.l2_normalise`.

    Args:
      mine: the embeddings.
      state: sums of `pull_back` for them.
      other: their own partners.
      own: `slope` and `cosine` `[b]` of the own pairs, where these are not among the sums yet.
      factor: scalar that multiplies all.
    """
    inverse, x = mine["inverse"], widen(mine["x"])
    slope = own["slope"]
    along = state["along"] + slope * own["cosine"]
    along = jnp.where(_squares(x) > EPS**2, along * inverse, 0)
    pulled = state["pulled"] + (slope * other["inverse"])[:, None] * widen(other["x"])
    return ((factor * inverse)[:, None] * (pulled - x * along[:, None])).astype(mine["x"].dtype)


def metrics(layout: Rows, scale: jax.Array, row: State, column: State) -> Arrays:
    """Scalars to log, from what a sweep has summed up; inside `layout.map`.

    Args:
      layout: how the batch is cut.
      scale: what multiplies cosines in `negative`.
      row: `own` cosine, `total` and `count` of the negatives' cosines, and `negative`, the
        `Exponentials` over negatives; `[b]` each.
      column: `negative` over the columns.
    """
    own = row["own"]
    size = own.shape[0] * layout.pieces

    def share(best: jax.Array) -> jax.Array:
        return jnp.sum(scale * own > best, dtype=own.dtype)

    sums = layout.sum(
        {
            "accuracy_prediction_to_target": share(row["negative"].best),
            "accuracy_target_to_prediction": share(column["negative"].best),
            "positive_similarity": jnp.sum(own),
            "total": jnp.sum(row["total"]),
            "count": jnp.sum(row["count"]),
        }
    )
    negative = sums.pop("total") / jnp.maximum(sums.pop("count"), 1)
    return {**{name: x / size for name, x in sums.items()}, "negative_similarity": negative}


def _squares(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(widen(x)), 1)


def _inverse_norms(x: jax.Array) -> jax.Array:
    """`[b]`, float32 or wider; 0 for a row of zeros."""
    squares = _squares(x)
    return jnp.where(squares > 0, jax.lax.rsqrt(jnp.maximum(squares, EPS**2)), 0)
