"""What a dataset of a user's own videos is made from: which clip goes into which shard.

A plan depends on the sources alone, so that whoever writes a shard, on whatever machine and however
often, writes the same bytes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jepa.data import schema
from jepa.data.entries import Entry, make_record
from jepa.data.manifest import read_folder, read_manifest
from jepa.data.shards import Reject
from jepa.data.storage import is_address
from jepa.data.webdataset import find_tars, read_tar
from jepa.errors import UserError

KINDS = ("folder", "manifest", "webdataset")
RECORDS_PER_SHARD = 256
CAPTION_QUERIES = ("What happens in the video?",)
_THREADS = 32
_TOGETHER = 1000


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the videos of one split are.

    Attributes:
        split: Name of the split.
        kind: "folder", "manifest" or "webdataset".
        location: A folder, a JSONL or CSV file, or a glob of tar files.
        label: For a folder, the label that its first sub-folders are values of; None for none.
    """

    split: str
    kind: str
    location: str
    label: str | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard; picklable. Either `entries` or `tar` is its source.

    Attributes:
        split: Name of the split.
        index: Which shard, from 0.
        total: Number of shards of the split.
        transcode_size: As in `entries.make_record`.
        entries: Its clips, and what was refused before any video was read.
        tar: Path, or address, of a tar file.
        prefix: Of the keys of a tar's samples.
    """

    split: str
    index: int
    total: int
    transcode_size: int | None
    entries: tuple[Entry | Reject, ...] = ()
    tar: str = ""
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All shards of a dataset.

    Attributes:
        jobs: One for each shard.
        total: Number of clips; None where tars have to be read to know.
        settings: What decides the contents, for `DatasetWriter`.
    """

    jobs: tuple[Job, ...]
    total: int | None
    settings: dict[str, Any]

    @property
    def shards(self) -> dict[str, int]:
        """Number of shards of each split."""
        return {job.split: job.total for job in self.jobs}


@dataclasses.dataclass(frozen=True)
class Options:
    """How the clips are cut into shards and stored.

    Attributes:
        records_per_shard: Clips in a shard. A tar file always becomes one shard.
        transcode_size: Short side in pixels to re-encode at, cutting to [start, end); None keeps
            the encoded bytes as they are.
        caption_queries: Queries that ask for a caption.
        max_rejects: Largest fraction of rejects, in [0, 1]. More of them stop the writing.
    """

    records_per_shard: int = RECORDS_PER_SHARD
    transcode_size: int | None = None
    caption_queries: Sequence[str] = CAPTION_QUERIES
    max_rejects: float = 0.5


def check(sources: Sequence[Source], options: Options) -> None:
    """Raise UserError where sources or options make no sense."""
    splits = [source.split for source in sources]
    for source in sources:
        if source.kind not in KINDS:
            raise UserError(f"source kind {source.kind!r} is unknown; choose from {KINDS}")
        if not source.split.isidentifier():
            raise UserError(f"split {source.split!r} must be a word of letters, digits and '_'")
        if splits.count(source.split) > 1:
            raise UserError(
                f"split {source.split!r} has {splits.count(source.split)} sources; give each split "
                "one, e.g. a manifest that lists all of its videos"
            )
    if not sources:
        raise UserError("no videos were named; give a folder, a manifest or tar files")
    if options.records_per_shard < 1:
        raise UserError(f"--records-per-shard is {options.records_per_shard}; give at least 1")
    size = options.transcode_size
    if size is not None and size < 16:
        raise UserError(f"--transcode-size is {size}; give at least 16 pixels")
    if not 0 <= options.max_rejects <= 1:
        raise UserError(f"--max-rejects is {options.max_rejects}; give a fraction from 0 to 1")


def make_plan(sources: Sequence[Source], options: Options) -> Plan:
    """The plan of sources on this machine's disks; UserError where they cannot be read."""
    return join([plan_source(source, options) for source in sources], options)


# Of one source: its jobs, the number of clips (None where unknown), a digest of what they read.
Part = tuple[list[Job], int | None, str]


def join(parts: Sequence[Part], options: Options) -> Plan:
    """The plan of all splits."""
    jobs = tuple(job for found, _, _ in parts for job in found)
    counts = [count for _, count, _ in parts]
    settings = {
        "inputs": {found[0].split: digest for found, _, digest in parts},
        "records_per_shard": options.records_per_shard,
        "transcode_size": options.transcode_size,
        "caption_queries": list(options.caption_queries),
    }
    total = None if None in counts else sum(count for count in counts if count is not None)
    return Plan(jobs, total, settings)


def plan_source(source: Source, options: Options) -> Part:
    """The part of a plan that one source makes."""
    if source.kind == "webdataset":
        tars = find_tars(source.location)
        root = os.path.commonpath([tar.parent for tar in tars])
        found = [(str(t), t.relative_to(root).with_suffix("").as_posix(), _stamp(t)) for t in tars]
        return plan_tars(source.split, found, options)
    if source.kind == "folder":
        return plan_entries(source.split, read_folder(source.location, source.label), options)
    return plan_manifest(source, source.location, options)


def plan_manifest(source: Source, file: str, options: Options) -> Part:
    """The part of a manifest, whose contents are in `file`."""
    entries, unknown = read_manifest(file)
    if unknown:
        print(f"{source.location}: columns not used: {', '.join(unknown)}", file=sys.stderr)
    return plan_entries(source.split, entries, options)


def plan_tars(split: str, tars: Sequence[tuple[str, str, Any]], options: Options) -> Part:
    """A shard for each of `tars`: (path or address, prefix of its keys, stamp)."""
    jobs = [
        Job(split, i, len(tars), options.transcode_size, tar=path, prefix=prefix)
        for i, (path, prefix, _) in enumerate(tars)
    ]
    return jobs, None, _digest([[prefix, stamp] for _, prefix, stamp in tars])


def plan_entries(split: str, found: Sequence[Entry | Reject], options: Options) -> Part:
    """Shards of `records_per_shard` clips in their order."""
    entries = [entry for entry in found if isinstance(entry, Entry)]
    rejects = [reject for reject in found if isinstance(reject, Reject)]
    size = options.records_per_shard
    total = max(1, -(-len(entries) // size))
    chunks: list[list[Entry | Reject]] = [
        list(entries[i * size : (i + 1) * size]) for i in range(total)
    ]
    chunks[0].extend(rejects)
    jobs = [
        Job(split, i, total, options.transcode_size, entries=tuple(chunk))
        for i, chunk in enumerate(chunks)
    ]
    return jobs, len(found), _digest_of_many(found)


def records(job: Job) -> Iterator[schema.Record | Reject]:
    """The verified records of a shard and what was refused, in order."""
    if job.tar:
        yield from read_tar(Path(job.tar), job.prefix, job.transcode_size)
        return
    for entry in job.entries:
        yield entry if isinstance(entry, Reject) else make_record(entry, job.transcode_size)


def plan_text(job: Job, base: str = "") -> str:
    """A job as JSON; `base` is what the addresses of its videos are relative to."""
    values = dataclasses.asdict(job)
    for entry in values["entries"]:
        if "path" in entry:  # a reject has none
            entry["path"] = os.path.abspath(entry["path"])
    if job.tar and not is_address(job.tar):
        values["tar"] = os.path.abspath(job.tar)
    return json.dumps({**values, "base": base}, ensure_ascii=False)


def read_plan(text: str) -> tuple[Job, str]:
    """The job and base that `plan_text` was given."""
    values = json.loads(text)
    base = values.pop("base")
    values["entries"] = tuple(map(_item, values["entries"]))
    return Job(**values), base


def _item(values: dict[str, Any]) -> Entry | Reject:
    if "reason" in values:
        return Reject(**values)
    captions = tuple(schema.Caption(**caption) for caption in values["captions"])
    questions = tuple(
        schema.Question(**{**question, "candidates": tuple(question["candidates"])})
        for question in values["questions"]
    )
    found = {**values, "path": Path(values["path"]), "captions": captions, "questions": questions}
    return Entry(**found)


def _describe(item: Entry | Reject) -> list[Any]:
    values = dataclasses.asdict(item)
    if isinstance(item, Entry):
        del values["path"]  # `source` says it without the place where the manifest lies
        return [values, _stamp(item.path)]
    return [values]


def _stamp(path: Path) -> list[int] | None:
    """Size and time of change, so that a video that was replaced counts as another input."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _digest_of_many(items: Sequence[Entry | Reject]) -> str:
    """That of all descriptions as one list, of which no more than a part is in memory.

    Threads, because a mounted bucket answers in milliseconds and clips may be millions.
    """
    parts = [items[i : i + _TOGETHER] for i in range(0, len(items), _TOGETHER)]
    digest = hashlib.sha256(b"[")
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for number, text in enumerate(pool.map(_described, parts)):
            digest.update(f"{', ' if number else ''}{text}".encode())
    digest.update(b"]")
    return digest.hexdigest()[:16]


def _described(items: Sequence[Entry | Reject]) -> str:
    return json.dumps([_describe(item) for item in items], sort_keys=True)[1:-1]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
