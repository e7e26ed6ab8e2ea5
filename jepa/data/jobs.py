"""Runs independent jobs in worker processes, with progress."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from jepa.errors import UserError
from jepa.words import duration

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], processes: int
) -> Generator[Result, None, None]:
    """Results of `function` over `jobs`, in the order in which they are ready.

    Args:
        function: A top-level function; it and its jobs are pickled.
        jobs: What it is called with.
        processes: Worker processes; with 1 all is done in this one.

    Raises:
        UserError: a worker was killed, e.g. for want of memory. Whatever `function` raises comes
            through, and the other workers are ended.
    """
    if processes <= 1 or len(jobs) < 2:
        yield from map(function, jobs)
        return
    # Spawned, not forked: a fork would inherit the locks of JAX's and the bar's threads.
    pool = concurrent.futures.ProcessPoolExecutor(
        min(processes, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
    )
    try:
        for done in concurrent.futures.as_completed([pool.submit(function, job) for job in jobs]):
            yield done.result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely for want of memory; run the same command "
            "again with fewer --processes"
        ) from error
    finally:
        _end(pool)


def start_worker(index: int = 0, count: int = 1) -> None:
    """Let a new worker process end with its parent, and with nothing else."""
    # Ctrl-C reaches the whole group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _end(pool: concurrent.futures.ProcessPoolExecutor) -> None:
    """End workers at once; what they were writing has a temporary name still."""
    workers = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        if worker.is_alive():
            worker.terminate()


class Progress:
    """A bar on a terminal; elsewhere one line for each tenth of the work.

    Args:
        name: What is being made.
        total: How many units there are; None where that is not known.
        unit: What one of them is called.
        main: Whether this process, of several that do the same, is the one that shows it.
    """

    def __init__(self, name: str, total: int | None, unit: str, *, main: bool = True):
        self.name, self.total, self.unit, self.done, self._main = name, total, unit, 0, main
        self.bar: Any = None
        self._begin = time.monotonic()
        if main and sys.stderr.isatty():
            self.bar = tqdm(total=total, unit=unit, desc=name, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, count: int) -> None:
        """Count finished units."""
        before, self.done = self.done, self.done + count
        if self.bar is not None:
            self.bar.update(count)
            return
        step = max(1, self.total // 10) if self.total else 1000
        if self._main and before // step < self.done // step:
            of = f" of {self.total}" if self.total else ""
            left = f", {self._left()} left" if self.total and self.done < self.total else ""
            print(f"{self.name}: {self.done}{of} {self.unit}s{left}", file=sys.stderr, flush=True)

    def _left(self) -> str:
        assert self.total is not None
        return duration((time.monotonic() - self._begin) / self.done * (self.total - self.done))
