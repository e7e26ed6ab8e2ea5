"""Bidirectional InfoNCE over the global batch.

Letters: B global batch, D width of the shared space.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.losses.precision import widen
from jepa.nn.pooling import l2_normalise
from jepa.parallel.partition import constrain


def info_nce(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    inverse_temperature: jax.Array | float,
    target_hash: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy of finding each target by its prediction, and the other way round.

    Source: VL-JEPA, section 3 (bidirectional InfoNCE); the softmax is that of CLIP. Rows are
    L2-normalised here, and logits are float32 or wider whatever the inputs are.

    On a mesh the rows of the logits lie with the batch. What crosses devices: the targets `[B, D]`
    (gathered; their gradient is reduced), and the statistics of the columns `[B]`. The memory is
    `B * B / devices` logits a device.

    Args:
      predictions: `[B, D]`.
      targets: `[B, D]`.
      inverse_temperature: scalar that multiplies cosine similarities; see the function of that
        name for a learnt one.
      target_hash: int `[B]`, equal for equal targets. Where `target_hash[i] == target_hash[j]`
        and `i != j`, the pair is no negative and leaves both denominators.

    Returns:
      The scalar loss, and scalars to log: `accuracy_prediction_to_target` and
      `accuracy_target_to_prediction` (share of rows whose own partner beats all others, those
      masked out excepted; a tie loses), `positive_similarity` and `negative_similarity` (mean
      cosines; 0 where no negative exists).

    Raises:
      ValueError: shapes that do not fit.
    """
    if predictions.ndim != 2 or predictions.shape != targets.shape:
        raise ValueError(f"info_nce needs two [B, D]: {predictions.shape} and {targets.shape}")
    size = predictions.shape[0]
    similarity = jnp.matmul(
        l2_normalise(predictions), l2_normalise(targets).T, precision=jax.lax.Precision.HIGHEST
    )
    similarity = constrain(similarity, "batch", None)

    own = jnp.eye(size, dtype=bool)
    negative = ~own
    if target_hash is not None:
        if target_hash.shape != (size,):
            raise ValueError(f"target_hash must be [{size}], not {target_hash.shape}")
        negative &= target_hash[:, None] != target_hash[None, :]

    logits = jnp.where(own | negative, similarity * inverse_temperature, -jnp.inf)
    own_logit = jnp.diagonal(logits)
    rows = jax.nn.logsumexp(logits, axis=1) - own_logit
    columns = jax.nn.logsumexp(logits, axis=0) - own_logit
    loss = jnp.mean(rows + columns) / 2
    return loss, _metrics(jax.lax.stop_gradient(similarity), negative)


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


def _metrics(similarity: jax.Array, negative: jax.Array) -> dict[str, jax.Array]:
    own = jnp.diagonal(similarity)
    others = jnp.where(negative, similarity, -jnp.inf)
    count = jnp.sum(negative, dtype=similarity.dtype)
    total = jnp.sum(jnp.where(negative, similarity, 0.0))
    return {
        "accuracy_prediction_to_target": jnp.mean(own > others.max(axis=1), dtype=own.dtype),
        "accuracy_target_to_prediction": jnp.mean(own > others.max(axis=0), dtype=own.dtype),
        "positive_similarity": jnp.mean(own),
        "negative_similarity": total / jnp.maximum(count, 1.0),
    }
