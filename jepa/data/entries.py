"""Rows about a user's videos: what a manifest's line or a tar's JSON may say, and how it is read.

Both become an `Entry`, which `make_record` turns into a verified record, or a `Reject`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa.data import schema
from jepa.data.storage import is_address
from jepa.data.transcode import transcode
from jepa.data.verify import BadVideo, is_image, verify
from jepa.data.writer import Reject

COLUMNS = (
    "video",
    "key",
    "start",
    "end",
    "caption",
    "captions",
    "query",
    "answer",
    "candidates",
    "kind",
    "questions",
    "labels",
    "group",
)
# Columns of a family: caption.LEVEL and label.NAME.
PREFIXES = ("caption.", "label.")

# What FFmpeg is asked to open; other files in a folder or a tar are left alone.
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ogv", ".wmv", ".gif")
)
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp"))

_TEXT_FIELDS = frozenset({"text", "level", "id", "query"})
_QUESTION_FIELDS = frozenset({"query", "answer", "kind", "candidates", "id"})


class BadRow(Exception):
    """A row that cannot be used; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One clip that is to become a record.

    Attributes:
        name: How rejects are named, e.g. "clips.jsonl line 12".
        key: The record's key.
        source: The video as the user wrote it.
        path: The video's file.
        start: Seconds into the video, or None.
        end: Seconds into the video, or None.
        captions: As in the schema.
        questions: As in the schema.
        labels: As in the schema.
        group: As in the schema.
    """

    name: str
    key: str
    source: str
    path: Path
    start: float | None = None
    end: float | None = None
    captions: tuple[schema.Caption, ...] = ()
    questions: tuple[schema.Question, ...] = ()
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    group: str | None = None


def is_known(column: str) -> bool:
    """Whether a column means something to `parse`."""
    return column in COLUMNS or column.startswith(PREFIXES)


def parse(row: Mapping[str, Any], *, name: str, source: str, path: Path) -> Entry:
    """A row -> Entry. Raises BadRow naming the column that is wrong.

    Args:
        row: Column -> value; the meaning of the columns is in docs/data.md.
        name: How a reject is named.
        source: The video as the user wrote it.
        path: The video's file.
    """
    start, end = _seconds(row, "start"), _seconds(row, "end")
    if end is not None and end <= (start or 0.0):
        raise BadRow(f"end ({end} s) does not come after start ({start or 0.0} s)")
    span = ""
    if start is not None or end is not None:
        span = f"@{start or 0.0:g}-{'' if end is None else f'{end:g}'}"
    labels = _labels(row.get("labels"))
    for column, value in row.items():
        if column.startswith("label.") and not _absent(value):
            labels[column.removeprefix("label.")] = str(value)
    return Entry(
        name=name,
        key=str(row["key"]) if not _absent(row.get("key")) else source + span,
        source=source,
        path=path,
        start=start,
        end=end,
        captions=_captions(row),
        questions=_questions(row),
        labels=labels,
        group=None if _absent(row.get("group")) else str(row["group"]),
    )


def merge(entries: Iterable[Entry | Reject]) -> list[Entry | Reject]:
    """Join rows about the same clip (same key, video and span) and refuse other double keys.

    Rows of one clip give their captions, questions and labels to the first of them, in order;
    repeated texts are dropped.
    """
    found: dict[str, Entry] = {}
    rejects: list[Reject] = []
    for entry in entries:
        if isinstance(entry, Reject):
            rejects.append(entry)
            continue
        first = found.setdefault(entry.key, entry)
        if first is entry:
            continue
        if (first.path, first.start, first.end) != (entry.path, entry.start, entry.end):
            rejects.append(Reject(entry.name, f"its key {entry.key!r} is that of {first.name}"))
            continue
        found[entry.key] = _joined(first, entry)
    return [*found.values(), *rejects]


def _joined(first: Entry, other: Entry) -> Entry:
    known = {(caption.text, caption.level) for caption in first.captions}
    captions = [c for c in other.captions if (c.text, c.level) not in known]
    asked = {(question.query, question.answer) for question in first.questions}
    questions = [q for q in other.questions if (q.query, q.answer) not in asked]
    return dataclasses.replace(
        first,
        captions=_distinct((*first.captions, *captions)),
        questions=_distinct((*first.questions, *questions)),
        labels={**other.labels, **first.labels},
        group=first.group or other.group,
    )


def _distinct(items: Sequence[Any]) -> tuple[Any, ...]:
    """Give a new id to every item whose id another one has already."""
    taken: set[str] = set()
    result: list[Any] = []
    for item in items:
        id, number = item.id, 1
        while id in taken:
            id, number = f"{item.id}.{number}", number + 1
        taken.add(id)
        result.append(dataclasses.replace(item, id=id))
    return tuple(result)


def make_record(
    entry: Entry, transcode_size: int | None = None, data: bytes | None = None
) -> schema.Record | Reject:
    """Verify an entry's video and make its record; a Reject says why that is not possible.

    Args:
        entry: What is known of the clip.
        transcode_size: Short side in pixels to re-encode [start, end) at; None keeps the
            encoded bytes as they are.
        data: The encoded file where it is in memory already; else `entry.path` is read.
    """
    try:
        if data is None and is_address(entry.source):
            raise BadVideo("is an address, which only --runner reads; name a path")
        if data is None:
            data = _read(entry.path)
        if transcode_size is not None and not is_image(data):
            data = transcode(data, transcode_size, entry.start, entry.end)
        info = verify(data)
        start, end = (entry.start, entry.end) if transcode_size is None else (None, None)
        _check_span(start, end, info.duration)
        record = schema.Record(
            key=entry.key,
            video=data,
            start=start,
            end=end,
            captions=entry.captions,
            questions=entry.questions,
            labels=entry.labels,
            group=entry.group,
            source=entry.source,
            **info.fields(),
        )
    except BadVideo as error:
        known = entry.source in entry.name
        return Reject(entry.name, str(error) if known else f"{entry.source}: {error}")
    return record


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadVideo(error.strerror or str(error)) from error


def _check_span(start: float | None, end: float | None, duration: float) -> None:
    if start is not None and start >= duration:
        raise BadVideo(f"start is {start} s, and the video has {duration:.2f} s")
    # Spans are often rounded to whole seconds; more than one beyond the end is another video.
    if end is not None and end > duration + 1.0:
        raise BadVideo(f"end is {end} s, and the video has {duration:.2f} s")


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _seconds(row: Mapping[str, Any], column: str) -> float | None:
    """Seconds, or H:MM:SS or M:SS with decimals."""
    value = row.get(column)
    if _absent(value):
        return None
    try:
        seconds = 0.0
        for part in str(value).split(":"):
            seconds = seconds * 60 + float(part)
    except ValueError as error:
        raise BadRow(f"{column} is {value!r}; give seconds or H:MM:SS") from error
    if not (math.isfinite(seconds) and seconds >= 0):
        raise BadRow(f"{column} is {value!r}; give seconds of at least 0")
    return seconds


def _captions(row: Mapping[str, Any]) -> tuple[schema.Caption, ...]:
    found: list[schema.Caption] = []
    for column, value in row.items():
        if column == "caption" or column.startswith("caption."):
            level = column.partition(".")[2]
            found.append(schema.Caption(f"c{len(found)}", _text(value, column), level))
    for item in _list(row.get("captions"), "captions"):
        fields = {"text": item} if isinstance(item, str) else _object(item, "captions")
        _only(fields, _TEXT_FIELDS, "captions")
        text = _text(fields.get("text"), "captions")
        id = str(fields.get("id", f"c{len(found)}"))
        level, query = (str(fields.get(name, "")) for name in ("level", "query"))
        found.append(schema.Caption(id, text, level, query))
    return _distinct(found)


def _questions(row: Mapping[str, Any]) -> tuple[schema.Question, ...]:
    items = _list(row.get("questions"), "questions")
    if "query" in row or "answer" in row:
        single = {k: row[k] for k in ("query", "answer", "kind", "candidates") if k in row}
        items = [single, *items]
    found: list[schema.Question] = []
    for item in items:
        fields = _object(item, "questions")
        _only(fields, _QUESTION_FIELDS, "questions")
        answer = _text(fields.get("answer"), "answer")
        candidates = tuple(
            _text(text, "candidates") for text in _list(fields.get("candidates"), "candidates")
        )
        if candidates and answer not in candidates:
            raise BadRow(f"answer {answer!r} is not among the candidates {list(candidates)}")
        found.append(
            schema.Question(
                id=str(fields.get("id", f"q{len(found)}")),
                query=_text(fields.get("query"), "query"),
                answer=answer,
                kind=str(fields.get("kind") or ""),
                candidates=candidates,
            )
        )
    return _distinct(found)


def _labels(value: Any) -> dict[str, str]:
    if _absent(value):
        return {}
    return {name: str(label) for name, label in _object(value, "labels").items()}


def _text(value: Any, column: str) -> str:
    if _absent(value):
        raise BadRow(f"{column} is empty")
    if not isinstance(value, str):
        raise BadRow(f"{column} holds {value!r} instead of text")
    return value.strip()


def _list(value: Any, column: str) -> list[Any]:
    value = _from_json(value, column)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRow(f"{column} holds {value!r} instead of a list")
    return value


def _object(value: Any, column: str) -> dict[str, Any]:
    value = _from_json(value, column)
    if not isinstance(value, dict):
        raise BadRow(f"{column} holds {value!r} instead of an object")
    return value


def _from_json(value: Any, column: str) -> Any:
    """Lists and objects in a CSV cell are written as JSON."""
    if _absent(value):
        return None
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError as error:
            raise BadRow(f"{column} is not JSON: {value!r}") from error
    return value


def _only(fields: Mapping[str, Any], known: frozenset[str], column: str) -> None:
    unknown = sorted(set(fields) - known)
    if unknown:
        raise BadRow(f"{column} has unknown fields {unknown}; known are {sorted(known)}")
