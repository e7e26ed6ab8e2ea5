"""What Orbax 0.12 has to be told before checkpoints can rely on it."""

from __future__ import annotations

import functools
import json
import logging
import time
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint._src.futures import future, signaling_client
from orbax.checkpoint._src.metadata import array_metadata_store

from jepa.parallel import hosts

log = logging.getLogger("jepa")

# An error of a saving thread reaches us as an exception; Orbax prints its traceback as well. And a
# save between two evaluations has no metrics to bring.
_NOISE = (
    "_SignalingThread.run() raised",
    "Requested `tracked_metric`; did not provide metrics",
    "overriding jax.Array",  # see write_whole_arrays
)
logging.getLogger("absl").addFilter(
    lambda record: not any(words in record.getMessage() for words in _NOISE)
)


class _Monotonic:
    """What two modules of Orbax 0.12 take for `time`.

    They wait for their own threads until a time of day. A clock that is set back or forward during
    a save would let them give up a save that is fine, or wait for as long as it was set back.
    """

    time = staticmethod(time.monotonic)


future.time = signaling_client.time = _Monotonic


@functools.cache
def write_whole_arrays() -> None:
    """Lets one device write an array that several hold, if one process has them all.

    Orbax shares the writing out among them, for which it compiles a slice for every shape. Between
    processes that is worth it; within one it only holds up the first save, for seconds.
    """
    if jax.process_count() == 1:
        handler = ocp.type_handlers.ArrayHandler(
            use_replica_parallel=False, array_metadata_store=array_metadata_store.Store()
        )
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def reader() -> ocp.Checkpointer:
    """Returns what reads a checkpoint on this process alone; to be closed.

    Orbax's manager ends a restore with a collective of all devices: one process that cannot read
    would leave the others there for ever. Reading itself needs nobody else: each process reads what
    its own devices hold.
    """
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def is_whole(path: Path) -> bool:
    """Returns whether the save of a checkpoint has come to its end; waits for nothing."""
    return path.is_dir() and ocp.utils.is_checkpoint_finalized(path)


def drop_damaged_evaluations(directory: Path) -> None:
    """Removes metrics that are no JSON, which Orbax could not open the directory with."""
    if jax.process_index() == 0:
        for path in directory.glob("*/metrics/metrics"):
            try:
                good = isinstance(json.loads(path.read_bytes()), dict)
            except (ValueError, OSError):
                good = False
            if not good:
                log.warning("%s is damaged; that evaluation counts for nothing now", path)
                path.unlink()
    hosts.barrier("drop damaged evaluations")
