"""Embeds many clips and texts with few compilations: fixed batch shapes, padded, on a mesh.

Letters: B the batch size of the evaluation, S the shared dimension.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jepa.data import prefetch
from jepa.errors import UserError
from jepa.methods.base import Method, Params
from jepa.parallel import mesh as meshes

# Batches in flight: the host decodes the next ones while the device computes, and no more than this
# many wait in device memory.
_IN_FLIGHT = 4

Pair = tuple[int, str]


class Embedder:
    """Runs `method.embed` over any number of examples in batches of one shape.

    One program is compiled for videos and one for texts, and both serve every later call with
    parameters of the same shapes and shardings. Every process of a multi-host run must make the
    same calls with the same examples; each gets all the results.

    Args:
      method: the method; `embed` is used.
      mesh: where the parameters lie; batches are cut over its data and fsdp axes.
      batch_size: examples a batch; rounded up to a multiple of the batch parts of the mesh.
      encode_queries: texts -> the stream `{"ids", "mask"}` of NumPy arrays.
      encode_texts: texts -> the stream `{"ids", "mask", "hash"}` (or cached features).
    """

    def __init__(
        self,
        method: Method,
        mesh: jax.sharding.Mesh,
        batch_size: int,
        encode_queries: Callable[[Sequence[str]], Mapping[str, np.ndarray]],
        encode_texts: Callable[[Sequence[str]], Mapping[str, np.ndarray]],
    ):
        if batch_size < 1:
            raise UserError(f"evaluation.batch_size is {batch_size}; set it to 1 or more")
        shards = meshes.batch_shards(mesh)
        self.batch_size = -(-batch_size // shards) * shards
        self._mesh = mesh
        self._encode_queries, self._encode_texts = encode_queries, encode_texts

        def embed(params: Params, state: Params, batch: Params, name: str) -> jax.Array:
            return method.embed(params, state, batch).pooled[name]

        # Replicated results can be read by every process.
        self._embed = jax.jit(embed, static_argnums=3, out_shardings=meshes.replicated(mesh))

    def texts(self, params: Params, state: Params, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """Returns the target vector `[S]` of each distinct text."""
        distinct = sorted(set(texts))
        rows = meshes.batch_part(self._mesh).rows(self.batch_size).tolist()

        def batches() -> Iterator[tuple[list[str], Params]]:
            for start in range(0, len(distinct), self.batch_size):
                part = distinct[start : start + self.batch_size]
                padded = part + [part[-1]] * (self.batch_size - len(part))
                own = [padded[row] for row in rows]
                yield part, {"text": dict(self._encode_texts(own))}

        return dict(self._run(params, state, batches(), "target"))

    def videos(
        self,
        params: Params,
        state: Params,
        clips: Callable[[Sequence[int]], Iterable[tuple[int, Any]]],
        queries: Mapping[int, Sequence[str]],
    ) -> dict[Pair, np.ndarray]:
        """Returns the prediction `[S]` for each wanted (clip, query).

        Args:
          params: the parameters.
          state: the mutable state.
          clips: indices of clips -> (valid count, video stream of at least as many rows), these
            clips in order. Of several processes each asks for those of its part of the batches.
          queries: for the index of a clip, the queries to ask about it.

        Raises:
          ValueError: the clips end before the last wanted one.
        """
        pairs = [(index, query) for index in sorted(queries) for query in queries[index]]
        if not pairs:
            return {}
        padded = pairs + [pairs[-1]] * (-len(pairs) % self.batch_size)
        rows = meshes.batch_part(self._mesh).rows(self.batch_size).tolist()

        def batches() -> Iterator[tuple[list[Pair], Params]]:
            starts = range(0, len(padded), self.batch_size)
            own = [padded[start + row] for start in starts for row in rows]
            frames = _frames(clips, [index for index, _ in own])
            for start in starts:
                asked = [padded[start + row] for row in rows]
                video = jax.tree.map(lambda *each: np.stack(each), *[next(frames) for _ in asked])
                texts = dict(self._encode_queries([query for _, query in asked]))
                yield pairs[start : start + self.batch_size], {"video": video, "query": texts}

        return dict(self._run(params, state, batches(), "prediction"))

    def _run(
        self,
        params: Params,
        state: Params,
        batches: Iterator[tuple[list[Any], Params]],
        name: str,
    ) -> Iterator[tuple[Any, np.ndarray]]:
        flying: deque[tuple[list[Any], jax.Array]] = deque()
        with jax.set_mesh(self._mesh):
            for keys, batch in batches:
                placed = prefetch.put(batch, meshes.batch_sharding(self._mesh))
                flying.append((keys, self._embed(params, state, placed, name)))
                if len(flying) > _IN_FLIGHT:
                    yield from _landed(*flying.popleft())
            while flying:
                yield from _landed(*flying.popleft())


def _landed(keys: list[Any], vectors: jax.Array) -> Iterator[tuple[Any, np.ndarray]]:
    # The padded rows are behind the last key.
    yield from zip(keys, np.asarray(jax.device_get(vectors)), strict=False)


def _frames(
    clips: Callable[[Sequence[int]], Iterable[tuple[int, Any]]], indices: Sequence[int]
) -> Iterator[Any]:
    """Yields the video of a clip for each of these indices, which ascend; each is read once."""
    distinct = sorted(set(indices))
    read = _rows(clips(distinct))
    at, frames = -1, None
    for index in indices:
        if index != at:
            at, frames = index, next(read, None)
        if frames is None:
            raise ValueError(f"the clips end before clip {index}")
        yield frames


def _rows(clips: Iterable[tuple[int, Any]]) -> Iterator[Any]:
    for valid, video in clips:
        for row in range(valid):
            yield jax.tree.map(lambda array, row=row: np.asarray(array[row]), video)
