"""Bidirectional InfoNCE over the global batch, without the matrix of its logits.

Letters: B global batch, D width of the shared space, b rows of a device's piece.

The work is that of `pairs.sweep`, once for the value and once more for the gradient: the softmax
needs the denominators of all rows and columns first. Between the two a device keeps its inputs
and a few numbers a row.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp

from jepa.losses.cosines import WHOLE, gradient, metrics, prepare, pull_back, side
from jepa.losses.pairs import Arrays, State, Tile, exponentials, select, sweep
from jepa.losses.precision import widen
from jepa.parallel.rows import Rows


def info_nce(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    inverse_temperature: jax.Array | float,
    target_hash: jax.Array | None = None,
    equal_targets: str = "masked",
    hardness: float = 0.0,
    label_smoothing: float = 0.0,
    transport: str = "ring",
    tile: int = 1024,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy of finding each target by its prediction, and the other way round.

    Source: VL-JEPA, section 3 (bidirectional InfoNCE); the softmax is that of CLIP. Rows are
    L2-normalised here, and logits are float32 or wider whatever the inputs are. Reverse-mode
    derivatives only, and only of the loss.

    On a mesh each device works on the logits of its rows, `tile * tile` of them at a time. What
    crosses devices: the targets and their gradient, around a ring or gathered and reduced, and a
    few numbers a row. The mesh is that of `jax.set_mesh`: without it `transport` has no effect, and
    XLA gathers arrays that lie on several devices.

    Args:
      predictions: `[B, D]`.
      targets: `[B, D]`.
      inverse_temperature: positive scalar that multiplies cosine similarities; see the function
        of that name for a learnt one.
      target_hash: int `[B]`, equal for equal targets; all are different when absent, and
        "masked" then masks nothing.
      equal_targets: what a pair is whose hashes are equal and which is not a row's own.
        "negatives": the hash is not looked at. "masked": it leaves both denominators.
        "positives", which needs hashes: the row's target is uniform over its own and these
        (Khosla et al. 2020, equation 2, supervised contrastive loss).
      hardness: weighs a row's negatives by `exp(hardness * logit)`, scaled to mean 1 over them
        (Robinson et al. 2021, equation 4, without the debiasing); at least 0, which is plain.
      label_smoothing: this share of a row's target is uniform over all logits of its
        denominator; in [0, 1).
      transport: "ring" or "all_gather", equal to rounding. The ring needs memory for a few pieces
        of `[B / devices, D]`, the other for several `[B, D]`: for few devices.
      tile: largest number of rows, and of columns, whose logits exist at a time.

    Returns:
      The scalar loss, and scalars to log: `accuracy_prediction_to_target` and
      `accuracy_target_to_prediction` (share of rows whose own partner beats all of another
      target; a tie loses), `positive_similarity` (mean cosine of own pairs) and
      `negative_similarity` (that of pairs of different targets; 0 where there is none).

    Raises:
      ValueError: shapes or types that do not fit, options that are unknown, out of range or do
        not go together, or a call inside a `jax.shard_map` over data or fsdp.
    """
    inputs = prepare(
        "info_nce",
        predictions,
        targets,
        target_hash,
        equal_targets,
        transport,
        tile,
        inverse_temperature=inverse_temperature,
    )
    if not hardness >= 0 or not 0 <= label_smoothing < 1:
        raise ValueError(
            f"info_nce needs hardness >= 0 and label_smoothing in [0, 1), not {hardness} and "
            f"{label_smoothing}"
        )
    if hardness and (label_smoothing or equal_targets == "positives"):
        raise ValueError(
            "info_nce with hardness weighs negatives against one positive: it takes neither "
            "label_smoothing nor equal_targets='positives'"
        )
    options = _Options(
        inputs.layout,
        transport,
        tile,
        inputs.equal_targets == "positives",
        float(hardness),
        float(label_smoothing),
    )
    return _info_nce(options, *inputs.embeddings, *inputs.scalars, inputs.target_hash)


@dataclasses.dataclass(frozen=True)
class _Options:
    layout: Rows
    transport: str
    tile: int
    positives: bool
    hardness: float
    smoothing: float

    @property
    def terms(self) -> tuple[tuple[float, float], ...]:
        """The slope of a pair's logit as terms `sign * exp(factor * logit - shift of the row)`."""
        if self.hardness:
            return (1.0 + self.hardness, 1.0), (self.hardness, -1.0)
        return ((1.0, 1.0),)

    @property
    def factors(self) -> tuple[float, ...]:
        return tuple(factor for factor, _ in self.terms)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _info_nce(
    options: _Options,
    predictions: jax.Array,
    targets: jax.Array,
    scale: jax.Array,
    target_hash: jax.Array | None,
) -> tuple[jax.Array, Arrays]:
    return _evaluate(options, predictions, targets, scale, target_hash)[:2]


def _forward(options, predictions, targets, scale, target_hash):
    loss, logged, saved = _evaluate(options, predictions, targets, scale, target_hash)
    return (loss, logged), (predictions, targets, scale, target_hash, saved)


def _backward(options, kept, cotangents):
    predictions, targets, scale, target_hash, saved = kept
    cut = options.layout.spec
    work = options.layout.map(
        partial(_gradients, options),
        in_specs=(cut, cut, cut, cut, WHOLE, WHOLE),
        out_specs=(cut, cut, WHOLE),
    )
    return *work(predictions, targets, target_hash, saved, scale, cotangents[0]), None


_info_nce.defvjp(_forward, _backward)


def _evaluate(options, predictions, targets, scale, target_hash):
    """Loss, metrics, and what the backward pass needs of each row and column."""
    cut = options.layout.spec
    work = options.layout.map(
        partial(_value, options), in_specs=(cut, cut, cut, WHOLE), out_specs=(WHOLE, WHOLE, cut)
    )
    return work(predictions, targets, target_hash, scale)


def _value(
    options: _Options, p: jax.Array, t: jax.Array, target_hash: jax.Array | None, scale: jax.Array
) -> tuple[jax.Array, Arrays, tuple[Arrays, Arrays, Arrays]]:
    layout = options.layout
    row, column = sweep(
        layout,
        options.transport,
        options.tile,
        side(p, target_hash),
        side(t, target_hash),
        partial(_statistics, options, scale),
    )
    size = p.shape[0] * layout.pieces
    # Equality of targets is symmetric: a column has as many negatives as the row of its number.
    each = partial(_direction, options, size, scale, row["own"], row["count"])
    row_loss, row_own, row_saved = each(row)
    column_loss, column_own, column_saved = each(column)
    loss = layout.sum(jnp.sum(row_loss + column_loss)) / (2 * size)
    own = {"slope": row_own + column_own, "cosine": row["own"]}
    return loss, metrics(layout, scale, row, column), (row_saved, column_saved, own)


def _statistics(options: _Options, scale: jax.Array, tile: Tile) -> tuple[State, State]:
    """What a tile adds to the statistics of its rows and columns."""
    cosines = tile.cosines()
    negative = tile.negative()
    logits = select(negative, scale * cosines, -jnp.inf)
    kept = select(negative, cosines, 0)
    count = jnp.sum(select(negative, jnp.ones_like(cosines), 0), 1)
    row: State = {"own": tile.own_values(cosines), "total": jnp.sum(kept, 1), "count": count}
    column: State = {}
    if options.smoothing:
        column["total"] = jnp.sum(kept, 0)
    for state, axis in ((row, 1), (column, 0)):
        if options.positives:
            every = select(tile.new, scale * cosines, -jnp.inf)
            state["all"] = exponentials(every, axis)
            state["same"] = jnp.sum(select(tile.same(), cosines, 0), axis)
            state["negative"] = exponentials(logits, axis, ())
        else:
            state["negative"] = exponentials(logits, axis, options.factors)
    return row, column


def _direction(
    options: _Options, size: int, scale: jax.Array, own: jax.Array, count: jax.Array, state: State
) -> tuple[jax.Array, jax.Array, Arrays]:
    """Losses of the rows, or of the columns, from their statistics.

    Returns:
      `[b]` losses; `[b]` slopes of the own logits; and what `_slopes` needs, `[b]` each. Where
      equal targets are positives, own pairs are among those of `_slopes` and their slope here
      is 0.
    """
    if options.positives:
        return _with_positives(options, size, scale, count, state)
    own_logit = scale * own
    if options.hardness:
        return _with_hardness(options, own_logit, count, state["negative"])
    gap = state["negative"].log() - own_logit
    losses = jax.nn.softplus(gap)
    own_slope = -jax.nn.sigmoid(gap)
    saved = {"shift0": own_logit + losses}
    if options.smoothing:
        allowed = count + 1
        uniform = options.smoothing / allowed
        mean = scale * (own + state["total"]) / allowed
        losses = losses + options.smoothing * (own_logit - mean)
        own_slope = own_slope + options.smoothing - uniform
        saved["uniform"] = uniform
    return losses, own_slope, saved


def _with_positives(
    options: _Options, size: int, scale: jax.Array, count: jax.Array, state: State
) -> tuple[jax.Array, jax.Array, Arrays]:
    lse = state["all"].log()
    share = (1 - options.smoothing) / (size - count)
    losses = lse - scale * share * state["same"]
    saved = {"shift0": lse, "same": share}
    if options.smoothing:
        uniform = options.smoothing / size
        losses = losses - scale * uniform * (state["same"] + state["total"])
        saved["uniform"] = jnp.full_like(lse, uniform)
    return losses, jnp.zeros_like(lse), saved


def _with_hardness(
    options: _Options, own_logit: jax.Array, count: jax.Array, negative
) -> tuple[jax.Array, jax.Array, Arrays]:
    hard, weight = negative.log(0), negative.log(1)
    some = count > 0
    gap = jnp.where(some, jnp.log(count) + hard - weight, -jnp.inf) - own_logit
    # The slope of a negative is w ((1 + h) softmax of (1 + h) logits - h softmax of h logits).
    log_w = jax.nn.log_sigmoid(gap)
    shifts = {}
    for i, (lse, factor) in enumerate(zip((hard, weight), options.factors, strict=True)):
        shifts[f"shift{i}"] = jnp.where(some, lse - log_w - math.log(factor), jnp.inf)
    return jax.nn.softplus(gap), -jax.nn.sigmoid(gap), shifts


def _gradients(
    options: _Options,
    p: jax.Array,
    t: jax.Array,
    target_hash: jax.Array | None,
    saved: tuple[Arrays, Arrays, Arrays],
    scale: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    layout = options.layout
    for_rows, for_columns, own = saved
    rows, columns = side(p, target_hash, **for_rows), side(t, target_hash, **for_columns)

    def visit(tile: Tile) -> tuple[State, State]:
        cosines = tile.cosines()
        return pull_back(tile, cosines, _slopes(options, scale, tile, cosines))

    row, column = sweep(layout, options.transport, options.tile, rows, columns, visit)
    factor = cotangent / (2 * p.shape[0] * layout.pieces)
    by_scale = factor * layout.sum(jnp.sum(row["along"] + own["slope"] * own["cosine"]))
    return (
        gradient(rows, row, columns, own, factor * scale),
        gradient(columns, column, rows, own, factor * scale),
        by_scale,
    )


def _slopes(options: _Options, scale: jax.Array, tile: Tile, cosines: jax.Array) -> jax.Array:
    """`[m, k]` derivatives, by the logits, of the sum of the losses of rows and columns."""
    logits = scale * cosines
    rows = {k: x[:, None] for k, x in tile.rows.items() if x.ndim == 1}
    slopes = jnp.zeros_like(cosines)
    for vectors in (rows, tile.columns):
        for i, (factor, sign) in enumerate(options.terms):
            slopes += sign * jnp.exp(factor * logits - vectors[f"shift{i}"])
        if options.smoothing:
            slopes -= vectors["uniform"]
    if not options.positives:
        return select(tile.negative(), slopes, 0)
    slopes -= select(tile.same(), rows["same"] + tile.columns["same"], 0)
    return select(tile.new, slopes, 0)


def inverse_temperature(log_value: jax.Array, maximum: float = 100.0) -> jax.Array:
    """The bounded inverse temperature of a learnt logarithm, `min(exp(log_value), maximum)`.

    At the bound the gradient is that of the unbounded value where a descent step would lower it,
    and zero where a step would raise it further: a plain minimum would have no gradient beyond
    the bound, and the parameter could never come back.

    Args:
      log_value: learnt scalar, float32 or wider.
      maximum: the bound; 100 is CLIP's.
    """
    return _bounded_exp(widen(jnp.asarray(log_value)), float(maximum))


@jax.custom_vjp
def _bounded_exp(log_value: jax.Array, maximum: float) -> jax.Array:
    return jnp.minimum(jnp.exp(log_value), maximum)


def _bounded_exp_forward(log_value: jax.Array, maximum: float):
    value = jnp.exp(log_value)
    return jnp.minimum(value, maximum), (value, maximum)


def _bounded_exp_backward(saved, cotangent: jax.Array):
    value, maximum = saved
    inward = jnp.where(value < maximum, cotangent, jnp.maximum(cotangent, 0.0))
    return inward * jnp.minimum(value, maximum), None


_bounded_exp.defvjp(_bounded_exp_forward, _bounded_exp_backward)
