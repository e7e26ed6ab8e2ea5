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
    of_class = jax.device_put(np.asarray(labels, np.int32))
    found = []
    for start in range(0, len(test), rows):
        part = np.asarray(test[start : start + rows], np.float32)
        padded = np.pad(part, ((0, rows - len(part)), (0, 0)))
        said = _vote(padded, places, of_class, temperature, k=min(k, len(train)), classes=classes)
        found.append(np.asarray(said)[: len(part)])
    return np.concatenate(found)


@partial(jax.jit, static_argnames=("k", "classes"))
def _vote(
    test: jax.Array,
    train: jax.Array,
    labels: jax.Array,
    temperature: float,
    *,
    k: int,
    classes: int,
) -> jax.Array:
    """The class int `[rows]` of test clips, from training clips of length 1."""
    length = jnp.linalg.norm(test, axis=-1, keepdims=True)
    unit = test / jnp.maximum(length, 1e-12)
    similarities = jnp.matmul(unit, train.T, precision="highest")
    # Of equal values `top_k` puts the lower index first.
    nearest, index = jax.lax.top_k(similarities, k)
    weights = jnp.exp((nearest - nearest[:, :1]) / temperature)
    votes = jnp.einsum("mk,mkc->mc", weights, jax.nn.one_hot(labels[index], classes))
    return jnp.argmax(votes, axis=1)
