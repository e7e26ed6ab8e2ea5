"""What is known of the shards of a dataset that is being written, and how that is kept on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from jepa.data.storage import Files

PARTS = "parts"


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


def shard_name(split: str, index: int, total: int) -> str:
    """File name of one shard."""
    return f"{split}-{index:05d}-of-{total:05d}.array_record"


def rejects_text(rejects: Iterable[Reject]) -> str:
    """Contents of `rejects.jsonl`: {"name": ..., "reason": ...} a line."""
    return "".join(json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in rejects)


def part_name(file: str) -> str:
    """Where the summary of a shard lies within the dataset's directory."""
    return f"{PARTS}/{file}.json"


def summary_text(summary: ShardSummary) -> str:
    """Contents of the file of a summary."""
    return json.dumps(dataclasses.asdict(summary), indent=1, ensure_ascii=False) + "\n"


def read_summary(files: Files, file: str) -> ShardSummary | None:
    """The summary of a shard that is written, else None."""
    try:
        found = json.loads(files.read(part_name(file)))
        summary = ShardSummary(
            file=found["file"],
            count=found["count"],
            bytes=found["bytes"],
            digest=found["digest"],
            texts=tuple(found["texts"]),
            queries=tuple(found["queries"]),
            labels={label: tuple(values) for label, values in found["labels"].items()},
            rejects=tuple(Reject(**reject) for reject in found["rejects"]),
        )
        size = files.size(file)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return summary if size == summary.bytes else None
