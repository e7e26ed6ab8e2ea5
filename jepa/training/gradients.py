"""Ways to the gradient of a loss over a batch: whole, accumulated, and cached.

Each is a transform around the two functions that any method is made of: `represent`, which makes
the arrays to be compared, and `objective`, which compares them. What comes out has one signature:

    gradient(params, state, batch, rng) -> Differentiated

              loss and gradient of           activations held for     forward passes
  whole       the batch                      the batch                1
  accumulated the mean over micro-batches    one micro-batch          1
  cached      the batch                      one micro-batch          2

The second forward pass of `cached` is the price of its memory and no useful work: the model FLOPs
of a step, and with them its MFU, are those of the whole batch whichever way is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jepa.methods.base import Batch, Metrics, Outputs, Params
from jepa.parallel import partition
from jepa.training.microbatches import MicroBatches

Represent = Callable[[Params, Any, Batch, jax.Array], tuple[Outputs, Any]]
Objective = Callable[[Outputs], tuple[jax.Array, Metrics]]


class Differentiated(NamedTuple):
    """What a step needs to know of its batch.

    Attributes:
      loss: scalar.
      metrics: scalars by name.
      state: the mutable state after the batch.
      gradients: of the loss, like the parameters.
    """

    loss: jax.Array
    metrics: Metrics
    state: Any
    gradients: Params


Gradient = Callable[[Params, Any, Batch, jax.Array], Differentiated]


def whole(represent: Represent, objective: Objective) -> Gradient:
    """Differentiates through the whole batch at once.

    Args:
      represent: `(params, state, batch, rng) -> (outputs, state)`.
      objective: `outputs -> (loss, metrics)`.
    """

    def loss(params: Params, state: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, Any]:
        outputs, state = represent(params, state, batch, rng)
        value, metrics = objective(outputs)
        return value, (metrics, state)

    def gradient(params: Params, state: Any, batch: Batch, rng: jax.Array) -> Differentiated:
        with_aux = jax.value_and_grad(loss, has_aux=True)
        (value, (metrics, state)), gradients = with_aux(params, state, batch, rng)
        return Differentiated(value, metrics, state, gradients)

    return gradient


def accumulated(represent: Represent, objective: Objective, parts: int) -> Gradient:
    """Averages the losses of micro-batches, and their metrics and gradients.

    A loss that compares examples, such as InfoNCE, sees those of its own micro-batch only. The
    state goes from one micro-batch to the next; micro-batch `i` gets the key `fold_in(rng, i)`.

    Args:
      represent: as for `whole`.
      objective: as for `whole`.
      parts: number of micro-batches; see `MicroBatches` for which examples each one holds.
    """
    of_one = whole(represent, objective)

    def gradient(params: Params, state: Any, batch: Batch, rng: jax.Array) -> Differentiated:
        micro = MicroBatches.of(batch, parts)
        folded = micro.fold(batch)

        def body(carry: tuple[Any, Any], index: jax.Array) -> tuple[tuple[Any, Any], Any]:
            state, total = carry
            key = jax.random.fold_in(rng, index)
            one = of_one(params, state, micro.take(folded, index), key)
            return (one.state, _add(total, one.gradients)), (one.loss, one.metrics)

        (state, total), logged = jax.lax.scan(body, (state, _sums(params)), jnp.arange(parts))
        loss, metrics = jax.tree.map(lambda x: x.mean(axis=0), logged)
        mean = jax.tree.map(lambda g: g / parts, total)
        return Differentiated(loss, metrics, state, _like(mean, params))

    return gradient


def cached(represent: Represent, objective: Objective, parts: int) -> Gradient:
    """The gradient of the whole batch, with the activations of one micro-batch at a time.

    Source: GradCache (Gao et al. 2021, arXiv 2101.06983). First every micro-batch is represented
    without keeping anything to differentiate by. Then the objective is differentiated with respect
    to the outputs of all of them, put together in the order of the batch. At last each micro-batch
    is represented again, with the same key and the same state, and its part of that gradient is
    pulled back to the parameters. By the chain rule the sum of these is the gradient of the whole
    batch, not an approximation of it, whatever the objective compares.

    What has to hold is that outputs of an example depend on that example alone. A layer that looks
    at its whole batch (batch norm) sees a micro-batch, as with `accumulated`; so do random numbers,
    which are drawn from `fold_in(rng, i)` in micro-batch `i`.

    The leaves of `Outputs` are of three kinds:
      * `[B * P, ...]`: one row an example, or P of them, example by example. Rows are the leading
        dimension; anything else, such as `[views, B, D]` or a learnt vector, is an error.
      * scalars: learnt numbers, or means over examples. The objective gets the mean over the
        micro-batches (of a learnt number: that number), and each micro-batch the M-th part of its
        gradient, so that it reaches the parameters once. A scalar that is not floating is taken
        from the first micro-batch.
      * whole numbers and booleans of either shape reach the objective and have no gradient.

    The state is chained through the micro-batches in both passes and not differentiated.
    Gradients are summed in float32 or wider.

    Args:
      represent: as for `whole`.
      objective: as for `whole`.
      parts: number of micro-batches; see `MicroBatches` for which examples each one holds.

    Raises:
      ValueError: when the result is called or traced, for a batch that does not split, or an output
        that is none of the kinds above.
    """

    def gradient(params: Params, state: Any, batch: Batch, rng: jax.Array) -> Differentiated:
        micro = MicroBatches.of(batch, parts)
        folded = micro.fold(batch)

        def part(params: Params, state: Any, index: jax.Array) -> tuple[Outputs, Any]:
            key = jax.random.fold_in(rng, index)
            return represent(params, state, micro.take(folded, index), key)

        shapes, _ = jax.eval_shape(represent, params, state, batch, rng)
        _check_rows(shapes, jax.eval_shape(part, params, state, jnp.int32(0))[0], micro)
        outputs = _represent_all(part, params, state, shapes, micro)
        loss, metrics, cotangents = _differentiate(objective, outputs)
        state, gradients = _pull_back(part, params, state, cotangents, micro)
        return Differentiated(loss, metrics, state, gradients)

    return gradient


Part = Callable[[Params, Any, jax.Array], tuple[Outputs, Any]]


def _represent_all(
    part: Part, params: Params, state: Any, shapes: Outputs, micro: MicroBatches
) -> Outputs:
    """Returns the outputs of the whole batch, made one micro-batch after another."""

    def body(carry: tuple[Any, Any], index: jax.Array) -> tuple[tuple[Any, Any], Any]:
        state, rows = carry
        outputs, state = part(params, state, index)
        new, shared = _divide(_has_rows, outputs)
        return (state, micro.put(rows, new, index)), shared

    rows = micro.zeros(_divide(_has_rows, shapes)[0])
    (_, rows), shared = jax.lax.scan(body, (state, rows), jnp.arange(micro.parts))
    shared = jax.tree.map(lambda x: x.mean(axis=0) if _is_float(x) else x[0], shared)
    return _join(micro.unfold(rows), shared)


def _differentiate(objective: Objective, outputs: Outputs) -> tuple[jax.Array, Metrics, Outputs]:
    """Returns loss, metrics and the gradient at the floating leaves (None at the others)."""
    floats, others = _divide(_is_float, outputs)

    def loss(floats: Outputs) -> tuple[jax.Array, Metrics]:
        return objective(_join(floats, others))

    (value, metrics), cotangents = jax.value_and_grad(loss, has_aux=True)(floats)
    return value, metrics, cotangents


def _pull_back(
    part: Part, params: Params, state: Any, cotangents: Outputs, micro: MicroBatches
) -> tuple[Any, Params]:
    """Returns the state after the batch, and the cotangents of its outputs at the parameters."""
    rows, shared = _divide(_has_rows, cotangents)
    rows = micro.fold(rows)
    shared = jax.tree.map(lambda x: x / micro.parts, shared)

    def body(carry: tuple[Any, Any], index: jax.Array) -> tuple[tuple[Any, Any], None]:
        state, total = carry

        def floats(params: Params) -> tuple[Outputs, Any]:
            outputs, new_state = part(params, state, index)
            return _divide(_is_float, outputs)[0], new_state

        _, pull, state = jax.vjp(floats, params, has_aux=True)
        (gradients,) = pull(_join(micro.take(rows, index), shared))
        return (state, _add(total, gradients)), None

    (state, total), _ = jax.lax.scan(body, (state, _sums(params)), jnp.arange(micro.parts))
    return state, _like(total, params)


def _check_rows(shapes: Outputs, part: Outputs, micro: MicroBatches) -> None:
    """Checks that outputs have rows of examples, by the shapes of the batch's and of a part's."""

    def check(path: Any, full: Any, x: Any) -> None:
        if full.ndim == x.ndim == 0:
            return
        rows = full.shape[0] if full.ndim else 0
        if rows % micro.examples or x.shape != (rows // micro.parts, *full.shape[1:]):
            raise ValueError(
                f"the output {partition.path_name(path)} is {x.shape} for "
                f"{micro.examples // micro.parts} examples and {full.shape} for {micro.examples}; "
                "a gradient cache needs the rows of examples in the leading dimension of all "
                "outputs but scalars."
            )

    jax.tree_util.tree_map_with_path(check, shapes, part)


def _has_rows(x: Any) -> bool:
    return x.ndim > 0


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _divide(wanted: Callable[[Any], bool], tree: Any) -> tuple[Any, Any]:
    """Returns the tree of the leaves that are wanted and that of the others, None elsewhere."""
    return (
        jax.tree.map(lambda x: x if wanted(x) else None, tree),
        jax.tree.map(lambda x: None if wanted(x) else x, tree),
    )


def _join(first: Any, second: Any) -> Any:
    """Returns the tree that `_divide` took apart."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
    )


def _sums(params: Params) -> Any:
    return jax.tree.map(
        lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params
    )


def _add(total: Any, gradients: Any) -> Any:
    return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, gradients)


def _like(gradients: Any, params: Params) -> Any:
    return jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params)
