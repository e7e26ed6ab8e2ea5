"""Makes a dataset of a user's own videos: finds them, verifies them in parallel, writes shards."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path

from jepa.data.jobs import Progress, run_jobs
from jepa.data.plan import (
    CAPTION_QUERIES,
    RECORDS_PER_SHARD,
    Job,
    Options,
    Plan,
    Source,
    check,
    make_plan,
    records,
)
from jepa.data.writer import REJECTS_FILE, DatasetWriter, Reject, rejects_text, write_shard
from jepa.errors import UserError


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
        records_per_shard: As in `plan.Options`.
        transcode_size: As in `plan.Options`.
        caption_queries: As in `plan.Options`.
        max_rejects: As in `plan.Options`.
        processes: Worker processes.

    Raises:
        UserError: bad sources, too many rejects, or a directory that cannot be written or holds
            another dataset.
    """
    options = Options(records_per_shard, transcode_size, caption_queries, max_rejects)
    check(sources, options)
    directory = Path(directory)
    plan = make_plan(sources, options)
    writer = DatasetWriter(directory, name=name or directory.resolve().name, settings=plan.settings)
    _write_missing(writer, directory, plan, options.max_rejects, processes)
    writer.finish(plan.shards, caption_queries=options.caption_queries)


def _write_missing(
    writer: DatasetWriter, directory: Path, plan: Plan, max_rejects: float, processes: int
) -> None:
    if writer.finished:
        return
    missing = {split: set(writer.missing(split, count)) for split, count in plan.shards.items()}
    rejects: list[Reject] = []
    count = 0
    for split, total in plan.shards.items():
        for summary in writer.summaries(split, total):
            rejects.extend(summary.rejects)
            count += summary.count
    with Progress(writer.name, plan.total, "clip") as progress:
        progress.add(count + len(rejects))
        todo = [job for job in plan.jobs if job.index in missing[job.split]]
        write = functools.partial(_write, str(directory))
        with contextlib.closing(run_jobs(write, todo, processes)) as results:
            for written, refused in results:
                rejects.extend(refused)
                count += written
                progress.add(written + len(refused))
                # With the total known, too many now are too many at the end.
                if plan.total and len(rejects) > max_rejects * plan.total:
                    break
    refuse_many(writer, rejects, plan.total or count + len(rejects), max_rejects)


def refuse_many(
    writer: DatasetWriter, rejects: Sequence[Reject], seen: int, max_rejects: float
) -> None:
    """Raise UserError, the rejects listed, when they are more than allowed of `seen` clips."""
    if len(rejects) <= max_rejects * seen:
        return
    writer.files.write(REJECTS_FILE, rejects_text(rejects))
    raise UserError(
        f"{len(rejects)} of {seen} clips were rejected, more than --max-rejects={max_rejects:g} "
        f"allows; see {writer.files}/{REJECTS_FILE}, then mend them, delete {writer.files} and "
        "start again, or allow more"
    )


def _write(directory: str, job: Job) -> tuple[int, tuple[Reject, ...]]:
    summary = write_shard(directory, job.split, job.index, job.total, records(job))
    return summary.count, summary.rejects
