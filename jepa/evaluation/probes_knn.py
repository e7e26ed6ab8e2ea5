"""Nearest neighbours: the class of the training clips that lie nearest, weighted as in DINO.

A neighbour at cosine similarity s votes with weight exp(s / temperature) (arXiv 2104.14294,
section 4.1, after Wu et al. 2018: k = 20, temperature 0.07).

Letters: N training clips, M test clips, F features, C classes.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

# Similarities on the device at a time: 256 MiB of float32.
_MOST = 1 << 26


def predict(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Returns the class int `[M]` of each test clip.

    Ties: of equally near training clips the earlier ones are neighbours; of classes with equal
    votes the one with the lower number wins. So an encoder that maps everything to one point gives
    one class.

    Args:
      train: `[N, F]`.
      labels: int `[N]`, below `classes`.
      test: `[M, F]`.
      classes: C.
      k: neighbours; all training clips where there are fewer.
      temperature: of the votes.
    """
    rows = max(1, min(1024, _MOST // len(train), len(test)))
    places = np.asarray(train, np.float32)
    places = jax.device_put(places / np.maximum(np.linalg.norm(places, axis=1), 1e-12)[:, None])
    of_class = np.asarray(labels)
    found = []
    for start in range(0, len(test), rows):
        part = np.asarray(test[start : start + rows], np.float32)
        padded = np.pad(part, ((0, rows - len(part)), (0, 0)))
        nearest, index = _nearest(padded, places, k=min(k, len(train)))
        found.append(_vote(nearest, of_class[np.asarray(index)], temperature, classes)[: len(part)])
    return np.concatenate(found)


@partial(jax.jit, static_argnames="k")
def _nearest(test: jax.Array, train: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    """Similarities and numbers `[rows, k]` of the training clips nearest to test clips.

    Alone in its program: XLA's CPU compiler (jax 0.10.2) sorts all of the training clips where what
    `top_k` finds is used further.
    """
    unit = test / jnp.maximum(jnp.linalg.norm(test, axis=-1, keepdims=True), 1e-12)
    # Of equal values `top_k` puts the lower index first.
    return jax.lax.top_k(jnp.matmul(unit, train.T, precision="highest"), k)


def _vote(
    nearest: jax.Array, classes_of: np.ndarray, temperature: float, classes: int
) -> np.ndarray:
    """The class int `[rows]` that gets most, from similarities and classes `[rows, k]`."""
    similarities = np.asarray(nearest)
    weights = np.exp((similarities - similarities[:, :1]) / temperature)
    votes = np.zeros((len(weights), classes))
    np.add.at(votes, (np.arange(len(weights))[:, None], classes_of), weights)
    return votes.argmax(axis=1)
