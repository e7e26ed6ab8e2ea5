"""Batches to the devices ahead of the step that needs them.

Whatever a loader waits for - a disk that is gone, a worker process that hangs - the step waits a
bounded time, and a run that is told to stop meanwhile stops.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.sharding import Sharding

from jepa.errors import Stalled

_POLL = 0.2  # seconds between two looks at whether to stop
_GIVE_UP = 5.0  # seconds to wait for a thread whose loader may hang


class Prefetcher:
    """Iterates device batches; a thread reads and transfers up to `depth` of them ahead.

    An error of the loader is raised by the `next` that would have given its batch.
    """

    def __init__(self, loader: Iterable[Any], sharding: Sharding, depth: int = 2):
        """Start reading.

        Args:
            loader: Iterator of host-local batches; where it has `state()` or `record_keys()`, so
                has this. Its `timeout` is the seconds that a step waits for a batch at most;
                without one, a step waits for ever.
            sharding: Of every array: how the leading (batch) dimension lies on the devices.
            depth: Batches to keep ready on the devices, at least 1.
        """
        self._loader, self._sharding = loader, sharding
        self._timeout: float | None = getattr(loader, "timeout", None)
        self._state, self._keys = self._of_loader("state"), None
        self._waited = 0.0
        self._ready: queue.Queue[tuple[str, Any, Any, Any]] = queue.Queue(maxsize=max(1, depth))
        self._stop = threading.Event()
        self._end: tuple[str, Any] | None = None
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._next(None)

    def unless(self, stopped: Callable[[], bool]) -> Any | None:
        """The next batch, or None if it is not there yet and `stopped()`.

        Raises:
            Stalled: none came within the timeout.
            StopIteration: there are no more.
        """
        return self._next(stopped)

    def _next(self, stopped: Callable[[], bool] | None) -> Any:
        if self._end is None:
            start = time.perf_counter()
            item = self._wait(stopped, start)
            self._waited += time.perf_counter() - start
            if item is None:
                return None
            kind, value, state, keys = item
            if kind == "batch":
                self._state, self._keys = state, keys
                return value
            self._end = kind, value
        if self._end[0] == "error":
            raise self._end[1]
        raise StopIteration

    def _wait(
        self, stopped: Callable[[], bool] | None, start: float
    ) -> tuple[str, Any, Any, Any] | None:
        if stopped is None and self._timeout is None:
            return self._ready.get()
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ready.get(timeout=_POLL)
            if stopped is not None and stopped():
                return None
            seconds = time.perf_counter() - start
            if self._timeout is not None and seconds > self._timeout:
                raise Stalled(
                    f"no batch came within {seconds:.0f} s (data.timeout is {self._timeout:g}), so "
                    "a disk or a worker process hangs; look at where data.path lies, or raise "
                    "data.timeout"
                )

    def waited(self) -> float:
        """Seconds that `next` waited for data since the last call of this."""
        seconds, self._waited = self._waited, 0.0
        return seconds

    def state(self) -> Any:
        """The loader's state behind the batch that was handed out last."""
        return self._state

    def record_keys(self) -> list[str] | None:
        """The loader's keys of the batch that was handed out last; None where it has none."""
        return self._keys

    def close(self) -> None:
        """End the thread; the loader stays open. A loader that hangs keeps its thread."""
        self._stop.set()
        if self._end is None:
            self._end = "closed", None
        end = time.perf_counter() + _GIVE_UP
        while self._thread.is_alive() and time.perf_counter() < end:
            # It may be waiting for room to put a batch that nobody will take.
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()
            self._thread.join(timeout=0.05)

    def _of_loader(self, name: str) -> Any:
        found = getattr(self._loader, name, None)
        return found() if callable(found) else None

    def _fill(self) -> None:
        try:
            for batch in self._loader:
                if self._stop.is_set():
                    return
                state, keys = self._of_loader("state"), self._of_loader("record_keys")
                self._put(("batch", put(batch, self._sharding), state, keys))
                if self._stop.is_set():
                    return
            self._put(("end", None, None, None))
        except BaseException as error:
            self._put(("error", error, None, None))

    def _put(self, item: tuple[str, Any, Any, Any]) -> None:
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
