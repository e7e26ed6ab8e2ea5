"""The processes of a run: how they join, wait for each other by a deadline, and end together.

Everything goes through JAX's coordination service (`jax.distributed`), never through the devices:
a process that waits here can still be told that another one is gone. With one process all of it
does nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, ClassVar, NoReturn

import jax
from jax._src import distributed

from jepa.errors import UserError

HEARTBEAT = 100  # seconds; JAX's own default
BARRIER = 600
_FOR_EVER = 2**31 - 1  # ms, 24 days: the longest that the service waits
_PERIOD = 10.0  # seconds between looks at how far the others have come
_LEAVE = 5.0  # seconds that a process which fails waits for the others to hear of it
_FAILED, _HOST, _AT, _SAID = "jepa/failed", "jepa/host", "jepa/at", "jepa/said"
_NAMED = 4  # processes that a sentence names, of those that fail alike


class HostsError(Exception):
    """A process of the run is gone or late; no mistake that the user can mend in a config."""


class _Run:
    """What this process remembers of its run.

    Attributes:
      timeout: seconds to wait for a late process.
      place, what: how far it has come and what it does there; places are the same on all.
      hosts: name of the host of each process.
      leaving: held by the one thread that ends the process.
    """

    timeout: float = BARRIER
    place: int = 0
    what: str = "join"
    hosts: ClassVar[dict[int, str]] = {}
    leaving = threading.Lock()


def count() -> int:
    """Returns the number of processes; unlike `jax.process_count`, starts no backend."""
    return (distributed.global_state.num_processes or 1) if _client() is not None else 1


def index() -> int:
    """Returns the number of this process; unlike `jax.process_index`, starts no backend."""
    return (distributed.global_state.process_id or 0) if _client() is not None else 0


def join(*, heartbeat: int = HEARTBEAT, timeout: float = BARRIER, preemption: bool = False) -> None:
    """Joins the other processes of a run; before the backend starts.

    On Cloud TPU, under Slurm, Kubernetes or Open MPI JAX finds them by itself. Elsewhere
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say where and who.

    Args:
      heartbeat: seconds without a sign of life after which a process counts as dead, and JAX ends
        all others.
      timeout: seconds to wait for others that are late: to join, at a barrier, and anywhere else
        (`at`).
      preemption: whether SIGTERM is for `multihost_utils.reached_preemption_sync_point` to tell
        all processes of; otherwise it ends the process as usual.

    Raises:
      UserError: a variable is no number, or JAX cannot find out where the others are.
    """
    jax.config.update("jax_enable_preemption_service", preemption)
    try:
        with _naming_the_absent(int(timeout)):
            jax.distributed.initialize(
                num_processes=_number("JAX_NUM_PROCESSES"),
                process_id=_number("JAX_PROCESS_ID"),
                initialization_timeout=int(timeout) + 10,  # the service says more than a client
                heartbeat_timeout_seconds=heartbeat,
            )
    except ValueError as error:
        raise UserError(
            f"--distributed: JAX cannot find the other processes ({error}); set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error
    _Run.timeout, _Run.place = timeout, 0
    client = _client()
    if count() == 1:
        return
    client.key_value_set(f"{_HOST}/{index()}", socket.gethostname())
    barrier("join")
    for key, host in client.key_value_dir_get(_HOST):
        _Run.hosts[int(key.rpartition("/")[2])] = host
    watches = [
        threading.Thread(target=watch, args=(client,), name=watch.__name__, daemon=True)
        for watch in (_watch_others, _watch_heartbeats)
    ]
    for thread in watches:
        thread.start()
    atexit.register(_part, watches)


def _part(watches: list[threading.Thread]) -> None:
    """Ends what `join` began, before Python ends: a thread in the service's code would crash it."""
    _Run.leaving.acquire(blocking=False)
    jax.distributed.shutdown()
    for thread in watches:
        thread.join(_LEAVE)


def barrier(what: str) -> None:
    """Waits until every process has come here; all must make the same calls in the same order.

    Args:
      what: the run is about to do, for the message.

    Raises:
      HostsError: some did not come in time; it names them.
    """
    if count() == 1:
        return
    at(what)
    begin = time.monotonic()
    try:
        _arrive(_Run.place, what, _Run.timeout)
    except jax.errors.JaxRuntimeError as error:
        waited = time.monotonic() - begin
        why = "" if waited >= 0.9 * _Run.timeout else f" ({_first_line(error)})"
        raise _missing(_late(_Run.place), waited, why) from error


def gather(what: str, words: str) -> list[str]:
    """Waits as `barrier` does, and returns what each process said there, by its number.

    Args:
      what: as for `barrier`.
      words: of this process, short; the coordination service keeps them until the run ends.

    Raises:
      HostsError: as `barrier`.
    """
    if count() == 1:
        return [words]
    place = f"{_SAID}/{_Run.place + 1}"
    _client().key_value_set(f"{place}/{index()}", json.dumps(words))
    barrier(what)
    said = {int(key.rpartition("/")[2]): text for key, text in _client().key_value_dir_get(place)}
    return [json.loads(said[n]) for n in range(count())]


def agree(what: str, why: str) -> str:
    """Returns an empty string if every process could do something, the same words on all if not.

    Args:
      what: as for `barrier`.
      why: what kept this process from it; empty where nothing did.

    Raises:
      HostsError: as `barrier`.
    """
    said = gather(what, why)
    failed = [n for n, each in enumerate(said) if each]
    if not failed or count() == 1:
        return why
    more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    return f"{_names(failed[:_NAMED])}{more} of {count()}: {said[failed[0]]}"


def at(what: str) -> None:
    """Notes how far this process has come; all must make the same calls in the same order.

    Nothing is waited for. But devices wait for each other without end: when this process has stood
    still for the time that a barrier waits, and another one has not come so far, all are ended and
    that one is named.
    """
    _Run.place, _Run.what = _Run.place + 1, what


def _missing(late: list[int], waited: float, why: str = "") -> HostsError:
    return HostsError(
        f"{_names(late) or 'a process'} of {count()} did not come to {_Run.what!r} within "
        f"{waited:.0f} s{why}; see its log, or set a longer --barrier_timeout"
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends all processes when an error leaves this context in one of them.

    A UserError ends them with code 2 as ever, Ctrl-C with 130, everything else with 1. None of them
    waits for the others in JAX's own shutdown, which the dead do not come to.
    """
    try:
        yield
        barrier("end")
    except BaseException as error:
        if count() == 1 or isinstance(error, SystemExit) and not error.code:
            raise
        _leave(error)


def _leave(error: BaseException) -> NoReturn:
    _Run.leaving.acquire()
    _end_all(error)


def _end_all(error: BaseException) -> NoReturn:
    code = 2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1
    line = _first_line(error)
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # one failed before, or all is lost
        said = json.dumps({"code": code, "process": index(), "why": line})
        _client().key_value_set(_FAILED, said)
    late = _wait_for_all_to_leave()
    if code == 1 and not late and not isinstance(error, HostsError):
        traceback.print_exception(error)
    _end_with_others(code, _gone(late, line) if late and code == 1 else line)


def _wait_for_all_to_leave() -> list[int]:
    """Returns the processes that are dead: all others hear of a failure at once."""
    try:
        _arrive(_FOR_EVER, "leave", _LEAVE)
    except jax.errors.JaxRuntimeError:
        return _late(_FOR_EVER)
    return []


def _end(code: int, line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(code)


def _end_with_others(code: int, line: str) -> NoReturn:
    sys.stdout.flush()
    if index() == 0:
        time.sleep(1)  # the service ends with this process, and would take the others along
    _end(code, line)


def _gone(processes: list[int], why: str) -> str:
    return (
        f"{_names(processes)} of {count()} is gone ({why}); the same command goes on from the last "
        "checkpoint"
    )


def _watch_others(client: Any) -> None:
    """Ends this process when another one has failed or is late, or the coordinator is gone."""
    period = min(_PERIOD, _Run.timeout / 4)
    seen, since = 0, time.monotonic()
    while True:
        try:
            said = json.loads(client.blocking_key_value_get(_FAILED, int(period * 1000)))
            break
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("DEADLINE_EXCEEDED"):
                if _Run.leaving.acquire(blocking=False):
                    _end(1, _gone([0], "the coordinator does not answer"))
                return
        place, now = _Run.place, time.monotonic()
        if place != seen:
            seen, since = place, now
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                client.key_value_set(f"{_AT}/{index()}", f"{place}", allow_overwrite=True)
        elif now - since > _Run.timeout and (late := _late(place)):
            if _Run.leaving.acquire(blocking=False):
                _end_all(_missing(late, now - since))
            return
    if said["process"] == index() or not _Run.leaving.acquire(blocking=False):
        return
    late = _wait_for_all_to_leave()
    by = f"{_names([said['process']])} of {count()} failed: {said['why']}"
    _end_with_others(said["code"], _gone(late, said["why"]) if late and said["code"] == 1 else by)


def _watch_heartbeats(client: Any) -> None:
    """Says which process is dead before JAX ends this one, which it does at the same moment.

    A barrier fails when one of its processes is dead. To this one no other process ever comes.
    """
    try:
        client.wait_at_barrier(f"jepa/watch/{index()}", _FOR_EVER)
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        dead = [n for n in range(count()) if f"Task {n} " in text]
        if dead and _Run.leaving.acquire(blocking=False):
            _end(1, _gone(dead, "no sign of life"))


def _arrive(number: int, what: str, timeout: float) -> None:
    client = _client()
    client.key_value_set(f"{_AT}/{index()}", f"{number}", allow_overwrite=True)
    client.wait_at_barrier(f"jepa/{number} {what}", int(timeout * 1000))


def _late(number: int) -> list[int]:
    """Returns the processes that have not come to a place."""
    try:
        found = dict(_client().key_value_dir_get(_AT))
    except jax.errors.JaxRuntimeError:
        return []
    arrived = {int(key.rpartition("/")[2]): int(place) for key, place in found.items()}
    return [n for n in range(count()) if arrived.get(n, 0) < number]


def _names(processes: list[int]) -> str:
    """Returns `process 3 (host-d)`, or several of them."""
    return ", ".join(f"process {n} ({_Run.hosts.get(n, 'unknown host')})" for n in processes)


def _client() -> Any:
    return distributed.global_state.client


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise UserError(f"{name} is {text!r} in the environment; set it to a number")
    return None if text is None else int(text)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, (UserError, HostsError)):
        return str(error)
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextlib.contextmanager
def _naming_the_absent(timeout: int) -> Iterator[None]:
    """Lets the coordination service say who has not joined in time.

    `jax.distributed.initialize` has no argument for that; a client's own deadline names nobody.
    """
    made = distributed._jax.get_distributed_runtime_service
    patched = functools.partial(made, cluster_register_timeout=timeout)
    distributed._jax.get_distributed_runtime_service = patched
    try:
        yield
    finally:
        distributed._jax.get_distributed_runtime_service = made
