"""Batches on the devices, with the loader's position that belongs to each of them."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
from jax.sharding import Sharding


class TrainLoader(Protocol):
    """What training asks of a loader; `jepa.data.loader` makes one."""

    element_spec: Any

    def __next__(self) -> Any:
        """Returns the next host-local batch of NumPy arrays."""

    def __iter__(self) -> Iterator[Any]:
        """Returns itself."""

    def state(self) -> dict[str, Any]:
        """Returns the position behind the last batch, as JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a position."""

    def close(self) -> None:
        """Ends threads and processes."""


Prefetch = Callable[[Iterable[Any], Sharding], Iterator[Any]]


def put(batches: Iterable[Any], sharding: Sharding) -> Iterator[Any]:
    """Yields host-local batches as global arrays, one at a time, nothing ahead."""
    for batch in batches:
        yield jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, x), batch
        )


class _Noting:
    """Passes batches on and notes the loader's position behind each, in order."""

    def __init__(self, loader: TrainLoader):
        self._loader = loader
        self.positions: collections.deque[dict[str, Any]] = collections.deque()

    def __iter__(self) -> _Noting:
        return self

    def __next__(self) -> Any:
        batch = next(self._loader)
        self.positions.append(self._loader.state())
        return batch


class Stream:
    """Iterates device batches; `state()` is the position behind the batch handed out last.

    A prefetcher runs ahead of the step, so the loader's own position is that of a batch that no
    step has seen yet; a checkpoint of it would lose batches.
    """

    def __init__(self, loader: TrainLoader, sharding: Sharding, prefetch: Prefetch = put):
        """Starts reading from the loader's present position."""
        self._loader = loader
        self._position = loader.state()
        self._noting = _Noting(loader)
        self._batches = iter(prefetch(self._noting, sharding))

    def __iter__(self) -> Stream:
        """Returns itself."""
        return self

    def __next__(self) -> Any:
        """Returns the next batch on the devices."""
        batch = next(self._batches)
        self._position = self._noting.positions.popleft()
        return batch

    def state(self) -> dict[str, Any]:
        """Returns the position to go on from after the last batch."""
        return self._position

    def close(self) -> None:
        """Ends the prefetcher and the loader."""
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
        self._loader.close()
