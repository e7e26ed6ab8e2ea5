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

import concurrent.futures
import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from jepa.data import schema
from jepa.data.shards import (
    PARTS,
    Reject,
    ShardSummary,
    part_name,
    read_summary,
    rejects_text,
    shard_name,
    summary_text,
)
from jepa.data.storage import Files, storing, sync, temporary, write_atomically
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
        files: How the directory's files are reached, where it is not one of this machine.

    Raises:
        UserError: other settings, or the directory cannot be written.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        name: str,
        settings: Mapping[str, Any],
        files: Files | None = None,
    ):
        self.files = files or Files(directory)
        self._known: dict[str, ShardSummary] = {}
        self.name = name
        self.settings = json.loads(json.dumps(dict(settings), sort_keys=True))
        self.settings["schema"] = schema.SCHEMA_VERSION
        self.finished = self._found(DATASET_FILE)
        if not self.finished and not self._found(_PARTIAL_FILE):
            partial = {"name": name, "settings": self.settings}
            self.files.write(_PARTIAL_FILE, _json(partial))

    def _found(self, file: str) -> bool:
        try:
            found = json.loads(self.files.read(file))
            settings = dict(found["settings"])
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(
                f"{self.files}/{file} cannot be read ({error}); delete {self.files} or name "
                "another one"
            ) from error
        changes = sorted(
            f"{key}: {settings.get(key)!r} there, {self.settings.get(key)!r} asked for"
            for key in settings.keys() | self.settings.keys()
            if settings.get(key) != self.settings.get(key)
        )
        if changes:
            raise UserError(
                f"{self.files} holds a dataset made with other settings "
                f"({'; '.join(changes)}); delete it or name another directory"
            )
        return True

    def missing(self, split: str, shards: int) -> list[int]:
        """Indices of the shards of a split that are still to be written, in order."""
        if self.finished:
            return []
        return [i for i, found in enumerate(self._all(split, shards)) if found is None]

    def summaries(self, split: str, shards: int) -> list[ShardSummary]:
        """Summaries of the shards that are written, in order."""
        return [summary for summary in self._all(split, shards) if summary is not None]

    def _all(self, split: str, shards: int) -> list[ShardSummary | None]:
        # Threads, because a bucket answers in tens of milliseconds and shards may be thousands.
        with concurrent.futures.ThreadPoolExecutor(min(32, max(1, shards))) as pool:
            names = [shard_name(split, index, shards) for index in range(shards)]
            found = pool.map(lambda name: self._known.get(name) or self._read(name), names)
            return list(found)

    def _read(self, name: str) -> ShardSummary | None:
        summary = read_summary(self.files, name)
        if summary is not None:
            self._known[name] = summary
        return summary

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
        found = {}
        for split, total in shards.items():
            parts = self._all(split, total)
            missing = [index for index, part in enumerate(parts) if part is None]
            if missing:
                raise UserError(
                    f"{self.files}: shards {missing} of {split!r} are not written; run the same "
                    "command again"
                )
            found[split] = [part for part in parts if part is not None]
            if not sum(summary.count for summary in found[split]):
                rejects = sum((summary.rejects for summary in found[split]), ())
                why = f", e.g. {rejects[0].name}: {rejects[0].reason}" if rejects else ""
                raise UserError(f"{self.files}: split {split!r} has no records{why}")
        if attributes is None:
            attributes = _attributes([part for parts in found.values() for part in parts])
        attributes = {k: {v: list(t) for v, t in x.items()} for k, x in attributes.items()}
        self._write_texts(found, attributes, caption_queries)
        self.files.write(
            DATASET_FILE,
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
        with contextlib.suppress(OSError):  # what cannot be removed does no harm
            self.files.tidy(PARTS)
            self.files.remove(_PARTIAL_FILE)

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
        self.files.write(TEXTS_FILE, _json(texts))
        corpus = {text for entry in texts.values() for kind in entry.values() for text in kind}
        corpus.update(caption_queries)
        corpus.update(t for values in attributes.values() for ts in values.values() for t in ts)
        self.files.write(TOKENIZER_FILE, train_tokenizer(sorted(corpus)))
        rejects = [reject for parts in found.values() for part in parts for reject in part.rejects]
        if rejects:
            self.files.write(REJECTS_FILE, rejects_text(rejects))
        else:
            self.files.remove(REJECTS_FILE)


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
    partial = temporary(path)
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
    write_atomically(directory / part_name(path.name), summary_text(summary))
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
