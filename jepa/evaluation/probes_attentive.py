"""Trains many attentive probes at once, on cached tokens, and keeps the best on held-out labels.

V-JEPA 2's protocol (arXiv 2506.09985, appendix): one probe for each pair of a learning rate and a
weight decay, all of them on the same batches, AdamW, a cosine from the rate to 0 without warm-up.
Here they also start from the same parameters, which are stacked; `jax.vmap` runs over the stack.

Letters: P probes, B clips a batch, n clips, N tokens, D width, C classes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jepa.data.jobs import Progress
from jepa.evaluation import probes_features
from jepa.models.attentive_probe import AttentiveProbe, fitting_heads
from jepa.parallel import mesh as meshes
from jepa.parallel.partition import path_name

# Tokens of test clips on the device at a time.
_MOST_ROWS = 256
_NOT_DECAYED = ("bias", "scale")


@dataclasses.dataclass(frozen=True)
class Options:
    """How probes are trained.

    Attributes:
      depth: blocks: 4 is V-JEPA 2's, 1 is V-JEPA's.
      heads: at most; see `jepa.models.attentive_probe.fitting_heads`.
      epochs: over the training labels.
      batch_size: B; all clips where there are fewer. What is left of an epoch is not seen.
      learning_rates: tried with every one of the
      weight_decays: decoupled, times the rate; biases and gains are never decayed.
      dtype: of the computation.
    """

    depth: int = 4
    heads: int = 16
    epochs: int = 20
    batch_size: int = 256
    learning_rates: tuple[float, ...] = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
    weight_decays: tuple[float, ...] = (0.01, 0.1, 0.4, 0.8)
    dtype: str = "float32"

    @property
    def grid(self) -> list[tuple[float, float]]:
        """(learning rate, weight decay) of each of the P probes."""
        return list(itertools.product(self.learning_rates, self.weight_decays))


class Probes:
    """P probes over tokens `[N, D]` of one shape.

    Args:
      classes: C.
      width: D.
      options: how they are trained.
      mesh: batches are cut over its data and fsdp axes where they divide; parameters are not.
    """

    def __init__(self, *, classes: int, width: int, options: Options, mesh: jax.sharding.Mesh):
        self.options = options
        self.model = AttentiveProbe(
            classes=classes,
            depth=options.depth,
            heads=fitting_heads(width, options.heads),
            dtype=options.dtype,
        )
        self._mesh = mesh

    def train(self, tokens: np.ndarray, labels: np.ndarray, rows: np.ndarray, *, seed: int) -> Any:
        """Returns the parameters of all probes, each `[P, ...]`.

        Args:
          tokens: `[n, N, D]`, memory-mapped.
          labels: int `[n]`.
          rows: int `[r]`, the clips to train on; others are not looked at.
          seed: of the first parameters and of the order of clips.
        """
        options, grid = self.options, self.options.grid
        size = min(options.batch_size, len(rows))
        steps = options.epochs * (len(rows) // size)
        rates, decays = (jnp.asarray(column) for column in zip(*grid, strict=True))
        order = probes_features.batches(rows, size, seed=seed, epochs=options.epochs)
        progress = Progress("attentive probes", steps, "step", main=jax.process_index() == 0)
        with jax.set_mesh(self._mesh), progress as shown:
            params, state = _begin(self.model, len(grid), tokens.shape[1:], seed)
            for step, batch in enumerate(order):
                params, state = _step(
                    self.model,
                    params,
                    state,
                    self._put(tokens[batch]),
                    self._put(labels[batch]),
                    rates,
                    decays,
                    (1 + np.cos(np.pi * step / steps)) / 2,
                )
                shown.add(1)
        return params

    def logits(self, params: Any, tokens: np.ndarray, rows: Sequence[int] | np.ndarray) -> Any:
        """Returns `[P, len(rows), C]` of clips `rows` of tokens `[n, N, D]`."""
        rows = np.asarray(rows)
        # All probes read at once, as in training: what fitted there fits here.
        size = min(_MOST_ROWS, self.options.batch_size, len(rows))
        found = []
        with jax.set_mesh(self._mesh):
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                padded = np.pad(part, (0, size - len(part)), mode="edge")
                made = _forward(self.model, params, self._put(tokens[padded]))
                found.append(np.asarray(made)[:, : len(part)])
        return np.concatenate(found, axis=1)

    def _put(self, rows: np.ndarray) -> jax.Array:
        """Rows on the mesh; each process holds all of them and hands over its own devices'."""
        cut = len(rows) % meshes.batch_shards(self._mesh) == 0
        sharding = (meshes.batch_sharding if cut else meshes.replicated)(self._mesh)
        host = np.ascontiguousarray(rows)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(model: AttentiveProbe, count: int, shape: tuple[int, ...], seed: int) -> tuple[Any, Any]:
    """The same first parameters for every probe, and AdamW's moments."""
    one = model.init(jax.random.key(seed), jnp.zeros((1, *shape)))["params"]
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), one)
    return params, jax.vmap(optax.scale_by_adam().init)(params)


@partial(jax.jit, static_argnums=0)
def _forward(model: AttentiveProbe, params: Any, tokens: jax.Array) -> jax.Array:
    """Logits `[P, B, C]`."""

    def one(params: Any) -> Any:
        return model.apply({"params": params}, tokens)

    return jax.vmap(one)(params)


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _step(
    model: AttentiveProbe,
    params: Any,
    state: Any,
    tokens: jax.Array,
    labels: jax.Array,
    rates: jax.Array,
    decays: jax.Array,
    factor: jax.Array,
) -> tuple[Any, Any]:
    """One step of AdamW for every probe."""

    def loss(params: Any) -> jax.Array:
        logits = model.apply({"params": params}, tokens)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def one(params: Any, state: Any, rate: jax.Array, decay: jax.Array) -> tuple[Any, Any]:
        directions, state = optax.scale_by_adam().update(jax.grad(loss)(params), state)

        def move(path: Any, old: jax.Array, direction: jax.Array) -> jax.Array:
            kept = 0.0 if path_name(path).rsplit("/", 1)[-1] in _NOT_DECAYED else decay
            return old - rate * factor * (direction + kept * old)

        return jax.tree_util.tree_map_with_path(move, params, directions), state

    return jax.vmap(one)(params, state, rates, decays)
