"""Batches to the devices ahead of the step that needs them."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.sharding import Sharding


class Prefetcher:
    """Iterates device batches; a thread reads and transfers up to `depth` of them ahead.

    An error of the loader is raised by the `next` that would have given its batch.
    """

    def __init__(self, loader: Iterable[Any], sharding: Sharding, depth: int = 2):
        """Start reading.

        Args:
            loader: Iterator of host-local batches; where it has `state()`, so has this.
            sharding: Of every array: how the leading (batch) dimension lies on the devices.
            depth: Batches to keep ready on the devices, at least 1.
        """
        self._loader, self._sharding = loader, sharding
        self._state = self._loader_state()
        self._waited = 0.0
        self._ready: queue.Queue[tuple[str, Any, Any]] = queue.Queue(maxsize=max(1, depth))
        self._stop = threading.Event()
        self._end: tuple[str, Any] | None = None
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._end is None:
            start = time.perf_counter()
            kind, value, state = self._ready.get()
            self._waited += time.perf_counter() - start
            if kind == "batch":
                self._state = state
                return value
            self._end = kind, value
        if self._end[0] == "error":
            raise self._end[1]
        raise StopIteration

    def waited(self) -> float:
        """Seconds that `next` waited for data since the last call of this."""
        seconds, self._waited = self._waited, 0.0
        return seconds

    def state(self) -> Any:
        """The loader's state behind the batch that was handed out last."""
        return self._state

    def close(self) -> None:
        """End the thread, whatever it is doing; the loader stays open."""
        self._stop.set()
        if self._end is None:
            self._end = "closed", None
        while self._thread.is_alive():
            # It may be waiting for room to put a batch that nobody will take.
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()
            self._thread.join(timeout=0.05)

    def _loader_state(self) -> Any:
        state = getattr(self._loader, "state", None)
        return state() if callable(state) else None

    def _fill(self) -> None:
        try:
            for batch in self._loader:
                if self._stop.is_set():
                    return
                state = self._loader_state()
                self._put(("batch", put(batch, self._sharding), state))
                if self._stop.is_set():
                    return
            self._put(("end", None, None))
        except BaseException as error:
            self._put(("error", error, None))

    def _put(self, item: tuple[str, Any, Any]) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return


def put(batch: Any, sharding: Sharding) -> Any:
    """Make global arrays of the parts that each host brings of a batch (nested dict)."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def prefetch(loader: Iterable[Any], sharding: Sharding, depth: int = 2) -> Prefetcher:
    """Iterate the loader's batches on the devices, `depth` ahead; see `Prefetcher`."""
    return Prefetcher(loader, sharding, depth)
