"""Which records each step was made of: `train.log_records`, one append-only file a process.

A line of WORKDIR/records/<process>.jsonl is one process's part of one step:

    {"step": 12, "pieces": [0], "of": 2, "records": ["key of row 0", "key of row 1", ...]}

A run that goes on from a checkpoint writes the steps behind it again; the last line of a step is
the one that counts. A line that a killed run left half written is no line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from jepa.batch_part import BatchPart
from jepa.data.storage import storing
from jepa.errors import UserError

DIRECTORY = "records"


class RecordLog:
    """The file of one process, open to append to."""

    def __init__(self, workdir: str | Path, process: int, part: BatchPart):
        """Opens it, behind what is there.

        Args:
          workdir: of the run.
          process: whose file it is.
          part: what this process loads of the global batch (`jepa.parallel.mesh.batch_part`);
            those whose devices hold the same rows load the same.

        Raises:
          UserError: it cannot be written.
        """
        self._path = Path(workdir) / DIRECTORY / f"{process:05d}.jsonl"
        self._part = {"pieces": part.pieces, "of": part.count}
        with storing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by close().
            if self._file.tell() and _last_byte(self._path) != b"\n":
                self._file.write(b"\n")

    def write(self, step: int, keys: Sequence[str] | None) -> None:
        """Appends the records of a step, whole in one write.

        Raises:
          UserError: the disk takes no more, or the loader names no records.
        """
        if keys is None:
            raise UserError(
                "The config key 'train.log_records' is True, but this loader does not name its "
                "records (TrainLoader.record_keys); set it to False."
            )
        line = json.dumps({"step": step, **self._part, "records": list(keys)})
        with storing(self._path):
            self._file.write(f"{line}\n".encode())

    def sync(self) -> None:
        """Waits until all lines are on the disk, before a checkpoint says that the steps are."""
        with storing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _last_byte(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def read(workdir: str | Path) -> dict[int, list[str]]:
    """Returns the keys of each step's global batch, in the order of its rows.

    Of a step that was done more than once, the last attempt counts; one that not all processes came
    to is left out.

    Raises:
      UserError: the run has no such log.
    """
    paths = sorted((Path(workdir) / DIRECTORY).glob("*.jsonl"))
    if not paths:
        raise UserError(f"{workdir} holds no log of records; train with train.log_records=True.")
    pieces: dict[int, dict[tuple[int, int], list[str]]] = {}
    counts: dict[int, int] = {}
    for number, path in enumerate(paths):
        for line in path.read_bytes().splitlines():
            try:
                found = json.loads(line)
                step, count, keys = found["step"], found["of"], found["records"]
                each = len(keys) // len(found["pieces"])
            except (ValueError, KeyError, TypeError):
                continue
            for place, piece in enumerate(found["pieces"]):
                rows = keys[place * each : (place + 1) * each]
                pieces.setdefault(step, {})[piece, count] = rows
            if number == 0:  # the first process takes part in every attempt
                counts[step] = count
    whole = {}
    for step, count in sorted(counts.items()):
        found = [pieces[step].get((index, count)) for index in range(count)]
        if all(keys is not None for keys in found):
            whole[step] = [key for keys in found for key in keys or ()]
    return whole
