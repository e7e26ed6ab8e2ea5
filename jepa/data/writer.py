"""Writes a dataset: shards that are whole or absent, resumed where the last writer stopped.

One directory holds one dataset:

    dataset.json                       written last; without it the dataset is unfinished
    texts.json                         the distinct texts and queries of each split
    tokenizer.json                     word-level tokenizer trained on those texts
    rejects.jsonl                      what was left out, by name and reason (absent if nothing)
    train-00000-of-00004.array_record  the records
    partial.json, parts/               bookkeeping of an unfinished dataset, removed at the end

A shard is written under a temporary name, synced and renamed; then its summary is put into
`parts/` in the same way. A shard counts as written when both exist. One writer at a time, with any
number of worker processes that call `write_shard` on different shards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from jepa.data import schema
from jepa.data.storage import storing, sync, write_atomically
from jepa.data.vocabulary import train_tokenizer
from jepa.errors import UserError

# One record per chunk, so that a random read touches one record only; fast compression, because
# the texts gain from it and the encoded video has nothing to gain.
_WRITER_OPTIONS = "group_size:1,zstd:1"

DATASET_FILE = "dataset.json"
TEXTS_FILE = "texts.json"
TOKENIZER_FILE = "tokenizer.json"
REJECTS_FILE = "rejects.jsonl"
_PARTIAL_FILE = "partial.json"
_PARTS = "parts"


@dataclasses.dataclass(frozen=True)
class Reject:
    """Something that did not become a record.

    Attributes:
        name: The file, line or member, as the user would look for it.
        reason: Why, in one sentence.
    """

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """What is known of one complete shard.

    Attributes:
        file: File name within the dataset's directory.
        count: Number of records.
        bytes: Size of the file; a reader tells a truncated shard by it.
        digest: sha256 over the encoded records (keys and contents) in order.
        texts: Distinct captions and answers, sorted.
        queries: Distinct question texts, sorted.
        labels: Distinct values of each label, sorted.
        rejects: What was left out.
    """

    file: str
    count: int
    bytes: int
    digest: str
    texts: tuple[str, ...]
    queries: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    rejects: tuple[Reject, ...]


class DatasetWriter:
    """Book-keeping of one dataset that is being written.

    Typical use:

        writer = DatasetWriter(directory, name="world", settings={"seed": 0, ...})
        for split, shards in {"train": 8, "validation": 1}.items():
            for index in writer.missing(split, shards):    # here, or in worker processes
                write_shard(directory, split, index, shards, make_records(split, index))
        writer.finish({"train": 8, "validation": 1}, attributes=..., caption_queries=...)

    Args:
        directory: Where the dataset goes; made if absent.
        name: The dataset's name.
        settings: JSON-able; everything that decides the contents. A directory that was begun or
            finished with other settings is refused; one finished with the same has nothing
            missing.

    Raises:
        UserError: other settings, or the directory cannot be written.
    """

    def __init__(self, directory: str | Path, *, name: str, settings: Mapping[str, Any]):
        self.directory = Path(directory)
        self.name = name
        self.settings = json.loads(json.dumps(dict(settings), sort_keys=True))
        self.settings["schema"] = schema.SCHEMA_VERSION
        self.finished = self._found(DATASET_FILE)
        if not self.finished and not self._found(_PARTIAL_FILE):
            with storing(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
            partial = {"name": name, "settings": self.settings}
            write_atomically(self.directory / _PARTIAL_FILE, _json(partial))

    def _found(self, file: str) -> bool:
        path = self.directory / file
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            settings = dict(found["settings"])
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(
                f"{path} cannot be read ({error}); delete {self.directory} or name another one"
            ) from error
        changes = sorted(
            f"{key}: {settings.get(key)!r} there, {self.settings.get(key)!r} asked for"
            for key in settings.keys() | self.settings.keys()
            if settings.get(key) != self.settings.get(key)
        )
        if changes:
            raise UserError(
                f"{self.directory} holds a dataset made with other settings "
                f"({'; '.join(changes)}); delete it or name another directory"
            )
        return True

    def missing(self, split: str, shards: int) -> list[int]:
        """Indices of the shards of a split that are still to be written, in order."""
        if self.finished:
            return []
        return [i for i in range(shards) if self._summary(split, i, shards) is None]

    def _summary(self, split: str, index: int, shards: int) -> ShardSummary | None:
        file = shard_name(split, index, shards)
        try:
            found = json.loads(_part_path(self.directory, file).read_text(encoding="utf-8"))
            summary = _read_summary(found)
            size = (self.directory / file).stat().st_size
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return summary if size == summary.bytes else None

    def summaries(self, split: str, shards: int) -> list[ShardSummary]:
        """Summaries of the shards that are written, in order."""
        found = [self._summary(split, i, shards) for i in range(shards)]
        return [summary for summary in found if summary is not None]

    def finish(
        self,
        shards: Mapping[str, int],
        *,
        attributes: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
        caption_queries: Sequence[str] = (),
        licence: str = "",
        notes: str = "",
    ) -> None:
        """Complete the dataset; returns at once when it is complete already.

        Args:
            shards: Number of shards of each split.
            attributes: {label: {value: class texts}}, for zero-shot classification; None takes
                every label of the records, with its values as their own class texts.
            caption_queries: Queries that ask for a caption, e.g. "What happens in the video?".
            licence: Terms of the videos.
            notes: Anything a user of the dataset should know.

        Raises:
            UserError: a shard is missing, no record is left, or the files cannot be written.
        """
        if self.finished:
            return
        found = {split: self.summaries(split, total) for split, total in shards.items()}
        for split, total in shards.items():
            if self.missing(split, total):
                raise UserError(
                    f"{self.directory}: shards {self.missing(split, total)} of {split!r} are not "
                    "written; run the same command again"
                )
            if not sum(summary.count for summary in found[split]):
                rejects = sum((summary.rejects for summary in found[split]), ())
                why = f", e.g. {rejects[0].name}: {rejects[0].reason}" if rejects else ""
                raise UserError(f"{self.directory}: split {split!r} has no records{why}")
        if attributes is None:
            attributes = _attributes([part for parts in found.values() for part in parts])
        attributes = {k: {v: list(t) for v, t in x.items()} for k, x in attributes.items()}
        self._write_texts(found, attributes, caption_queries)
        write_atomically(
            self.directory / DATASET_FILE,
            _json(
                {
                    "version": schema.SCHEMA_VERSION,
                    "name": self.name,
                    "splits": {split: _split_entry(parts) for split, parts in found.items()},
                    "attributes": attributes,
                    "caption_queries": list(caption_queries),
                    "licence": licence,
                    "notes": notes,
                    "settings": self.settings,
                }
            ),
        )
        self.finished = True
        self._clean()

    def _write_texts(
        self,
        found: Mapping[str, list[ShardSummary]],
        attributes: Mapping[str, Mapping[str, Sequence[str]]],
        caption_queries: Sequence[str],
    ) -> None:
        texts = {
            split: {
                "texts": sorted({text for part in parts for text in part.texts}),
                "queries": sorted({text for part in parts for text in part.queries}),
            }
            for split, parts in found.items()
        }
        write_atomically(self.directory / TEXTS_FILE, _json(texts))
        corpus = {text for entry in texts.values() for kind in entry.values() for text in kind}
        corpus.update(caption_queries)
        corpus.update(t for values in attributes.values() for ts in values.values() for t in ts)
        write_atomically(self.directory / TOKENIZER_FILE, train_tokenizer(sorted(corpus)))
        rejects = [reject for parts in found.values() for part in parts for reject in part.rejects]
        if rejects:
            write_atomically(self.directory / REJECTS_FILE, rejects_text(rejects))
        else:
            (self.directory / REJECTS_FILE).unlink(missing_ok=True)

    def _clean(self) -> None:
        """Remove the book-keeping; what cannot be removed does no harm."""
        shutil.rmtree(self.directory / _PARTS, ignore_errors=True)
        for path in [self.directory / _PARTIAL_FILE, *self.directory.glob("*.tmp")]:
            with contextlib.suppress(OSError):
                path.unlink()


def shard_name(split: str, index: int, total: int) -> str:
    """File name of one shard."""
    return f"{split}-{index:05d}-of-{total:05d}.array_record"


def rejects_text(rejects: Iterable[Reject]) -> str:
    """Contents of `rejects.jsonl`: {"name": ..., "reason": ...} a line."""
    return "".join(json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in rejects)


def write_shard(
    directory: str | Path,
    split: str,
    index: int,
    total: int,
    records: Iterable[schema.Record | Reject],
) -> ShardSummary:
    """Write one whole shard; safe to call from worker processes, one shard each.

    Args:
        directory: That of the DatasetWriter.
        split: Name of the split.
        index: Which shard, from 0.
        total: Number of shards of the split.
        records: Its records in order; a Reject among them is noted and left out.

    Raises:
        UserError: a record breaks the schema, two records share a key, or the disk refuses.
            Nothing is left under the shard's final name.
    """
    directory = Path(directory)
    path = directory / shard_name(split, index, total)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        written = _write_records(partial, records)
        with storing(path):
            sync(partial)
            size = partial.stat().st_size
            os.replace(partial, path)
            sync(directory)
    finally:
        partial.unlink(missing_ok=True)
    summary = ShardSummary(file=path.name, bytes=size, **written)
    write_atomically(_part_path(directory, path.name), _json(dataclasses.asdict(summary)))
    return summary


def _write_records(path: Path, records: Iterable[schema.Record | Reject]) -> dict[str, Any]:
    keys: set[str] = set()
    texts: set[str] = set()
    queries: set[str] = set()
    labels: dict[str, set[str]] = {}
    rejects: list[Reject] = []
    digest = hashlib.sha256()
    with _shard_file(path) as write:
        for record in records:
            if isinstance(record, Reject):
                rejects.append(record)
                continue
            if record.key in keys:
                raise UserError(f"two records have the key {record.key!r}; keys must be unique")
            keys.add(record.key)
            texts |= schema.texts(record)
            queries |= schema.queries(record)
            for label, value in record.labels.items():
                labels.setdefault(label, set()).add(value)
            data = schema.encode(record)
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
            write(data)
    return {
        "count": len(keys),
        "digest": digest.hexdigest(),
        "texts": tuple(sorted(texts)),
        "queries": tuple(sorted(queries)),
        "labels": {label: tuple(sorted(labels[label])) for label in sorted(labels)},
        "rejects": tuple(rejects),
    }


@contextlib.contextmanager
def _shard_file(path: Path) -> Iterator[Any]:
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)

    def write(data: bytes) -> None:
        with storing(path):
            writer.write(data)

    try:
        yield write
    except BaseException:
        with contextlib.suppress(RuntimeError):  # what went wrong first is what matters
            writer.close()
        raise
    with storing(path):
        writer.close()


def _part_path(directory: Path, file: str) -> Path:
    return directory / _PARTS / f"{file}.json"


def _read_summary(found: dict[str, Any]) -> ShardSummary:
    return ShardSummary(
        file=found["file"],
        count=found["count"],
        bytes=found["bytes"],
        digest=found["digest"],
        texts=tuple(found["texts"]),
        queries=tuple(found["queries"]),
        labels={label: tuple(values) for label, values in found["labels"].items()},
        rejects=tuple(Reject(**reject) for reject in found["rejects"]),
    )


def _attributes(parts: Sequence[ShardSummary]) -> dict[str, dict[str, list[str]]]:
    """Class texts of labels that came without: the values themselves, spelt as words."""
    values: dict[str, set[str]] = {}
    for part in parts:
        for label, found in part.labels.items():
            values.setdefault(label, set()).update(found)
    return {
        label: {value: [value.replace("_", " ")] for value in sorted(values[label])}
        for label in sorted(values)
    }


def _split_entry(parts: Sequence[ShardSummary]) -> dict[str, Any]:
    shards = [{k: getattr(p, k) for k in ("file", "count", "bytes", "digest")} for p in parts]
    return {
        "count": sum(part.count for part in parts),
        "rejects": sum(len(part.rejects) for part in parts),
        "digest": hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest(),
        "shards": shards,
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
