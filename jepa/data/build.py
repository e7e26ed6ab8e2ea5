"""Makes a dataset of a user's own videos: finds them, verifies them in parallel, writes shards."""

from __future__ import annotations

import contextlib
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
from jepa.data.jobs import Progress, run_jobs
from jepa.data.manifest import read_folder, read_manifest
from jepa.data.storage import write_atomically
from jepa.data.webdataset import find_tars, read_tar
from jepa.data.writer import (
    REJECTS_FILE,
    DatasetWriter,
    Reject,
    rejects_text,
    write_shard,
)
from jepa.errors import UserError

KINDS = ("folder", "manifest", "webdataset")
RECORDS_PER_SHARD = 256
CAPTION_QUERIES = ("What happens in the video?",)


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
class _Job:
    """One shard; picklable. Either `entries` or `tar` is its source."""

    directory: str
    split: str
    index: int
    total: int
    transcode_size: int | None
    entries: tuple[Entry | Reject, ...] = ()
    tar: Path | None = None
    prefix: str = ""


def write_dataset(
    directory: str | Path,
    sources: Sequence[Source],
    *,
    name: str = "",
    records_per_shard: int = RECORDS_PER_SHARD,
    transcode_size: int | None = None,
    caption_queries: Sequence[str] = CAPTION_QUERIES,
    max_rejects: float = 0.5,
    processes: int = 1,
) -> None:
    """Verify every video of `sources` and write them as a dataset, or what is missing of it.

    Args:
        directory: Where the dataset goes.
        sources: One for each split.
        name: The dataset's name; "" takes that of the directory.
        records_per_shard: Clips in a shard. A tar file always becomes one shard.
        transcode_size: Short side in pixels to re-encode at, cutting to [start, end); None keeps
            the encoded bytes as they are.
        caption_queries: Queries that ask for a caption.
        max_rejects: Largest fraction of rejects, in [0, 1]. More of them stop the writing.
        processes: Worker processes.

    Raises:
        UserError: bad sources, too many rejects, or a directory that cannot be written or holds
            another dataset.
    """
    _check(sources, records_per_shard, transcode_size, max_rejects)
    directory = Path(directory)
    jobs, total, inputs = [], 0, {}
    for source in sources:
        found, count, digest = _plan(source, str(directory), records_per_shard, transcode_size)
        jobs.extend(found)
        total += count
        inputs[source.split] = digest
    settings: dict[str, Any] = {
        "inputs": inputs,
        "records_per_shard": records_per_shard,
        "transcode_size": transcode_size,
        "caption_queries": list(caption_queries),
    }
    writer = DatasetWriter(directory, name=name or directory.resolve().name, settings=settings)
    shards = {job.split: job.total for job in jobs}
    counts_known = all(job.tar is None for job in jobs)
    _write_missing(writer, jobs, shards, total if counts_known else None, max_rejects, processes)
    writer.finish(shards, caption_queries=caption_queries)


def _check(
    sources: Sequence[Source], records_per_shard: int, size: int | None, max_rejects: float
) -> None:
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
    if records_per_shard < 1:
        raise UserError(f"--records-per-shard is {records_per_shard}; give at least 1")
    if size is not None and size < 16:
        raise UserError(f"--transcode-size is {size}; give at least 16 pixels")
    if not 0 <= max_rejects <= 1:
        raise UserError(f"--max-rejects is {max_rejects}; give a fraction from 0 to 1")


def _plan(
    source: Source, directory: str, records_per_shard: int, size: int | None
) -> tuple[list[_Job], int, str]:
    """Jobs of a source, the number of clips (0 where unknown) and a digest of what they read."""
    if source.kind == "webdataset":
        tars = find_tars(source.location)
        root = os.path.commonpath([tar.parent for tar in tars])
        prefixes = [tar.relative_to(root).with_suffix("").as_posix() for tar in tars]
        jobs = [
            _Job(directory, source.split, i, len(tars), size, tar=tar, prefix=prefix)
            for i, (tar, prefix) in enumerate(zip(tars, prefixes, strict=True))
        ]
        return jobs, 0, _digest([[p, _stamp(t)] for p, t in zip(prefixes, tars, strict=True)])
    if source.kind == "folder":
        found = read_folder(source.location, source.label)
    else:
        found, unknown = read_manifest(source.location)
        if unknown:
            print(f"{source.location}: columns not used: {', '.join(unknown)}", file=sys.stderr)
    entries = [entry for entry in found if isinstance(entry, Entry)]
    rejects = [reject for reject in found if isinstance(reject, Reject)]
    total = max(1, -(-len(entries) // records_per_shard))
    chunks: list[list[Entry | Reject]] = [
        list(entries[i * records_per_shard : (i + 1) * records_per_shard]) for i in range(total)
    ]
    chunks[0].extend(rejects)
    jobs = [
        _Job(directory, source.split, i, total, size, entries=tuple(chunk))
        for i, chunk in enumerate(chunks)
    ]
    return jobs, len(found), _digest([_describe(item) for item in found])


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


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _write_missing(
    writer: DatasetWriter,
    jobs: Sequence[_Job],
    shards: dict[str, int],
    total: int | None,
    max_rejects: float,
    processes: int,
) -> None:
    if writer.finished:
        return
    missing = {split: set(writer.missing(split, count)) for split, count in shards.items()}
    rejects: list[Reject] = []
    records = 0
    for split, count in shards.items():
        for summary in writer.summaries(split, count):
            rejects.extend(summary.rejects)
            records += summary.count
    with Progress(writer.name, total, "clip") as progress:
        progress.add(records + len(rejects))
        todo = [job for job in jobs if job.index in missing[job.split]]
        with contextlib.closing(run_jobs(_write, todo, processes)) as results:
            for count, refused in results:
                rejects.extend(refused)
                records += count
                progress.add(count + len(refused))
                # With the total known, too many now are too many at the end.
                if total and len(rejects) > max_rejects * total:
                    break
    seen = total or records + len(rejects)
    if len(rejects) > max_rejects * seen:
        path = writer.directory / REJECTS_FILE
        write_atomically(path, rejects_text(rejects))
        raise UserError(
            f"{len(rejects)} of {seen} clips were rejected, more than --max-rejects={max_rejects:g}"
            f" allows; see {path}, then mend them, delete {writer.directory} and start again, or "
            "allow more"
        )


def _write(job: _Job) -> tuple[int, tuple[Reject, ...]]:
    summary = write_shard(job.directory, job.split, job.index, job.total, _records(job))
    return summary.count, summary.rejects


def _records(job: _Job) -> Iterator[schema.Record | Reject]:
    if job.tar is not None:
        yield from read_tar(job.tar, job.prefix, job.transcode_size)
        return
    for entry in job.entries:
        yield entry if isinstance(entry, Reject) else make_record(entry, job.transcode_size)
