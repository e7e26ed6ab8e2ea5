"""The pairwise sigmoid loss over the global batch, without the matrix of its logits.

Letters: B global batch, D width of the shared space, b rows of a device's piece.

No pair needs to know of another, so one `pairs.sweep` gives value and gradient.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from jepa.losses.cosines import WHOLE, gradient, metrics, prepare, pull_back, side
from jepa.losses.pairs import Arrays, State, Tile, exponentials, select, sweep
from jepa.losses.precision import widen
from jepa.parallel.rows import Rows


def sigmoid(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    inverse_temperature: jax.Array | float,
    bias: jax.Array | float,
    target_hash: jax.Array | None = None,
    equal_targets: str = "masked",
    transport: str = "ring",
    tile: int = 1024,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum over all pairs, divided by B, of the cost of telling own pairs from others.

    A pair's logit is `inverse_temperature * cosine + bias`; a row's own pair costs
    `softplus(-logit)` and any other `softplus(logit)`.

    Source: SigLIP (Zhai et al. 2023), equation 1. Memory and what crosses devices are as for
    `infonce.info_nce`; without `jax.set_mesh` `transport` has no effect and XLA gathers.
    Reverse-mode derivatives only, and only of the loss.

    Args:
      predictions: `[B, D]`; L2-normalised here.
      targets: `[B, D]`; likewise.
      inverse_temperature: positive scalar; the paper learns its logarithm, from log 10.
      bias: scalar; the paper learns it, from -10.
      target_hash: int `[B]`, equal for equal targets; all are different when absent.
      equal_targets: what a pair is whose hashes are equal and which is not a row's own.
        "negatives": the hash is not looked at. "masked": it costs nothing. "positives", which
        needs hashes: it costs what an own pair does.
      transport: "ring" or "all_gather", equal to rounding; as for `infonce.info_nce`.
      tile: largest number of rows, and of columns, whose logits exist at a time.

    Returns:
      The scalar loss, and scalars to log, as for `infonce.info_nce`.

    Raises:
      ValueError: shapes or types that do not fit, an unknown option, or a call inside a
        `jax.shard_map` over data or fsdp.
    """
    inputs = prepare(
        "sigmoid",
        predictions,
        targets,
        target_hash,
        equal_targets,
        transport,
        tile,
        inverse_temperature=inverse_temperature,
        bias=bias,
    )
    options = _Options(inputs.layout, transport, tile, inputs.equal_targets == "positives")
    return _sigmoid(options, *inputs.embeddings, *inputs.scalars, inputs.target_hash)


@dataclasses.dataclass(frozen=True)
class _Options:
    layout: Rows
    transport: str
    tile: int
    positives: bool


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sigmoid(
    options: _Options,
    predictions: jax.Array,
    targets: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    target_hash: jax.Array | None,
) -> tuple[jax.Array, Arrays]:
    cut = options.layout.spec
    work = options.layout.map(
        partial(_value, options), in_specs=(cut, cut, cut, WHOLE, WHOLE), out_specs=WHOLE
    )
    return work(predictions, targets, target_hash, scale, bias)


def _forward(options, predictions, targets, scale, bias, target_hash):
    cut = options.layout.spec
    work = options.layout.map(
        partial(_value_and_gradients, options),
        in_specs=(cut, cut, cut, WHOLE, WHOLE),
        out_specs=(WHOLE, (cut, cut, WHOLE, WHOLE)),
    )
    return work(predictions, targets, target_hash, scale, bias)


def _backward(options, gradients, cotangents):
    del options
    return *((cotangents[0] * widen(g)).astype(g.dtype) for g in gradients), None


_sigmoid.defvjp(_forward, _backward)


def _value(
    options: _Options,
    p: jax.Array,
    t: jax.Array,
    target_hash: jax.Array | None,
    scale: jax.Array,
    bias: jax.Array,
) -> tuple[jax.Array, Arrays]:
    def visit(tile: Tile) -> tuple[State, State]:
        return _costs(options, scale, bias, tile, tile.cosines())

    rows, columns = side(p, target_hash), side(t, target_hash)
    row, column = sweep(options.layout, options.transport, options.tile, rows, columns, visit)
    return _finish(options, scale, bias, row, column)


def _value_and_gradients(
    options: _Options,
    p: jax.Array,
    t: jax.Array,
    target_hash: jax.Array | None,
    scale: jax.Array,
    bias: jax.Array,
) -> tuple[tuple[jax.Array, Arrays], tuple[jax.Array, ...]]:
    layout = options.layout

    def visit(tile: Tile) -> tuple[State, State]:
        cosines = tile.cosines()
        slopes = _slopes(options, scale, bias, tile, cosines)
        row, column = _costs(options, scale, bias, tile, cosines)
        row_pull, column_pull = pull_back(tile, cosines, slopes)
        return {**row, **row_pull, "slopes": jnp.sum(slopes, 1)}, {**column, **column_pull}

    rows, columns = side(p, target_hash), side(t, target_hash)
    row, column = sweep(layout, options.transport, options.tile, rows, columns, visit)
    slope = jnp.zeros_like(row["own"])
    if not options.positives:
        slope = -jax.nn.sigmoid(-(scale * row["own"] + bias))
    own = {"slope": slope, "cosine": row["own"]}
    factor = 1 / (p.shape[0] * layout.pieces)
    by_scale, by_bias = layout.sum(
        (jnp.sum(row["along"] + slope * row["own"]), jnp.sum(row["slopes"] + slope))
    )
    gradients = (
        gradient(rows, row, columns, own, factor * scale),
        gradient(columns, column, rows, own, factor * scale),
        factor * by_scale,
        factor * by_bias,
    )
    return _finish(options, scale, bias, row, column), gradients


def _costs(
    options: _Options, scale: jax.Array, bias: jax.Array, tile: Tile, cosines: jax.Array
) -> tuple[State, State]:
    """What a tile adds to cost and metrics of its rows and columns, but for the own pairs' cost.

    Where equal targets are positives, own pairs are among them and cost here.
    """
    negative = tile.negative()
    logits = scale * cosines
    costs = select(negative, jax.nn.softplus(logits + bias), 0)
    if options.positives:
        costs += select(tile.same(), jax.nn.softplus(-logits - bias), 0)
    others = select(negative, logits, -jnp.inf)
    row = {
        "cost": jnp.sum(costs, 1),
        "own": tile.own_values(cosines),
        "total": jnp.sum(select(negative, cosines, 0), 1),
        "count": jnp.sum(select(negative, jnp.ones_like(cosines), 0), 1),
        "negative": exponentials(others, 1, ()),
    }
    return row, {"negative": exponentials(others, 0, ())}


def _slopes(
    options: _Options, scale: jax.Array, bias: jax.Array, tile: Tile, cosines: jax.Array
) -> jax.Array:
    """`[m, k]` derivatives of the costs of `_costs` by the logits."""
    logits = scale * cosines + bias
    slopes = select(tile.negative(), jax.nn.sigmoid(logits), 0)
    if options.positives:
        slopes -= select(tile.same(), jax.nn.sigmoid(-logits), 0)
    return slopes


def _finish(
    options: _Options, scale: jax.Array, bias: jax.Array, row: State, column: State
) -> tuple[jax.Array, Arrays]:
    costs = row["cost"]
    if not options.positives:
        costs = costs + jax.nn.softplus(-(scale * row["own"] + bias))
    size = costs.shape[0] * options.layout.pieces
    loss = options.layout.sum(jnp.sum(costs)) / size
    return loss, metrics(options.layout, scale, row, column)
