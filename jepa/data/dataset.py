"""Opens a written dataset for random access. No TensorFlow, no video decoding."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from jepa.data import schema
from jepa.data.storage import is_address
from jepa.data.writer import DATASET_FILE, TEXTS_FILE
from jepa.errors import UserError

# Settings that ArrayRecord recommends for random access: no readahead, no thread pool.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a split: path, number of records, size in bytes."""

    path: Path
    count: int
    bytes: int


class Split:
    """The records of one split, by index, in the order in which they were written.

    Cheap to pickle: it carries paths, and each process opens the shards that it reads. Reads are
    safe from several threads.
    """

    def __init__(self, name: str, directory: Path, shards: list[Shard], digest: str):
        self.name = name
        self.directory = directory
        self.digest = digest
        self._shards = shards
        self._ends = list(itertools.accumulate(shard.count for shard in shards))
        self._readers: dict[tuple[int, int], Any] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __repr__(self) -> str:
        return f"Split({str(self.directory)!r}, {self.name!r}, {len(self)} records)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}

    def raw(self, index: int) -> bytes:
        """The encoded record, for `schema.decode`.

        Raises:
            IndexError: `index` is not in [0, len).
            UserError: its shard is missing, truncated or damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in split {self.name!r}")
        number = bisect.bisect_right(self._ends, index)
        shard = self._shards[number]
        inside = index - (self._ends[number] - shard.count)
        try:
            return self._reader(number).read([inside])[0]
        except (RuntimeError, IndexError) as error:
            raise _damaged(shard.path, f"record {inside}: {str(error).split(';')[0]}") from error

    def record(self, index: int, video: bool = True) -> schema.Record:
        """The record; with `video=False` without its encoded bytes. Raises as `raw` does."""
        return schema.decode(self.raw(index), video=video)

    def texts(self) -> list[str]:
        """Distinct captions and answers of this split, sorted."""
        return _texts(self.directory)[self.name]["texts"]

    def queries(self) -> list[str]:
        """Distinct question texts of this split, sorted."""
        return _texts(self.directory)[self.name]["queries"]

    def _reader(self, number: int) -> Any:
        # Keyed by process: a file handle inherited through fork must not be shared.
        key = (os.getpid(), number)
        if key not in self._readers:
            shard = self._shards[number]
            reader = array_record_module.ArrayRecordReader(str(shard.path), _READER_OPTIONS)
            if reader.num_records() != shard.count:
                raise RuntimeError(f"holds {reader.num_records()} of {shard.count} records")
            self._readers[key] = reader
        return self._readers[key]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A complete dataset on disk; made by `Dataset.open`.

    Attributes:
        directory: Where it lies.
        name: Its name.
        splits: Its splits by name.
        attributes: {label: {value: [class texts]}}, for zero-shot classification.
        caption_queries: Queries that ask for a caption.
        licence: Terms of the videos.
        notes: Whatever its maker wanted to say.
        settings: What it was made from.
    """

    directory: Path
    name: str
    splits: dict[str, Split]
    attributes: dict[str, dict[str, list[str]]]
    caption_queries: list[str]
    licence: str
    notes: str
    settings: dict[str, Any]

    @staticmethod
    def open(directory: str | Path) -> Dataset:
        """Open a dataset and check that every shard is there in full size.

        Raises:
            UserError: no complete dataset there, a missing or truncated shard (named), or a
                dataset of a newer version of this library.
        """
        if is_address(directory):
            raise UserError(
                f"{directory} is the address of a bucket, and datasets are read from paths: mount "
                "it with gcsfuse or copy it to a local disk, and name that directory (BUILD.md)"
            )
        directory = Path(directory)
        found = _read_json(directory, DATASET_FILE)
        if found["version"] > schema.SCHEMA_VERSION:
            raise UserError(
                f"{directory / DATASET_FILE} has version {found['version']}, and this library "
                f"reads up to {schema.SCHEMA_VERSION}; update the library"
            )
        splits = {name: _open_split(directory, name, e) for name, e in found["splits"].items()}
        names = [field.name for field in dataclasses.fields(Dataset)]
        values = {name: found[name] for name in names if name not in ("directory", "splits")}
        return Dataset(directory=directory, splits=splits, **values)

    def split(self, name: str) -> Split:
        """One split; UserError naming those that exist when there is no such."""
        if name not in self.splits:
            raise UserError(
                f"{self.directory} has no split {name!r}; it has {', '.join(sorted(self.splits))}"
            )
        return self.splits[name]

    def texts(self) -> list[str]:
        """Distinct captions and answers of all splits, sorted."""
        entries = _texts(self.directory).values()
        return sorted({text for entry in entries for text in entry["texts"]})

    def queries(self) -> list[str]:
        """Distinct queries of all splits, those that ask for a caption included, sorted."""
        entries = _texts(self.directory).values()
        found = {text for entry in entries for text in entry["queries"]}
        return sorted(found.union(self.caption_queries))


def _open_split(directory: Path, name: str, entry: dict[str, Any]) -> Split:
    shards = []
    for shard in entry["shards"]:
        path = directory / shard["file"]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from error
        if size != shard["bytes"]:
            raise _damaged(path, f"it has {size} bytes instead of {shard['bytes']}")
        shards.append(Shard(path, shard["count"], size))
    return Split(name, directory, shards, entry["digest"])


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"shard {path} cannot be read: {reason}; delete {path.parent / DATASET_FILE} and prepare "
        "the dataset again"
    )


def _texts(directory: Path) -> dict[str, dict[str, list[str]]]:
    return _read_json(directory, TEXTS_FILE)


def _read_json(directory: Path, file: str) -> Any:
    path = directory / file
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{path} does not exist, so there is no complete dataset; make one with "
            f"`python -m experiments.prepare_data --output {directory}` or name another directory"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); prepare the dataset again") from error
