"""The record: one clip (or image) with everything that is known about it.

A record is stored as one msgpack map. The map carries `version`; a reader refuses records newer
than itself and keeps reading older ones. Equal records have equal bytes, so `encode` is also the
way to compare two of them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import msgpack
import numpy as np

from jepa.errors import UserError

SCHEMA_VERSION = 1

MEDIA = ("video", "image")
COLOUR_RANGES = ("tv", "pc")


@dataclasses.dataclass(frozen=True)
class Caption:
    """One true description of a clip.

    Attributes:
        id: Unique among the captions of its record, and stable.
        text: The description; never empty.
        level: What kind of description it is, e.g. "brief", "motion", "full". Training and
            evaluation choose captions by level; "" where a dataset makes no difference.
        query: What this caption answers; "" for the dataset's caption queries. A query that says
            which description is wanted leaves a predictor less to guess.
    """

    id: str
    text: str
    level: str = ""
    query: str = ""


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about a clip.

    Attributes:
        id: Unique among the questions of its record, and stable.
        query: The question as text.
        answer: The true answer as text.
        kind: What is asked for, e.g. "colour", "count"; accuracy is reported per kind.
        candidates: Answers to choose from, the true one among them; empty for an open question.
    """

    id: str
    query: str
    answer: str
    kind: str = ""
    candidates: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happens at one moment.

    Attributes:
        time: Seconds since the first frame of the encoded video.
        kind: E.g. "bounce", "collide", "vanish".
        subjects: Names of those who take part.
    """

    time: float
    kind: str
    subjects: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One clip or image. Compare two of them by `encode(a) == encode(b)`.

    Attributes:
        key: Unique within its dataset and stable between writings.
        media: "video", or "image" for a single picture.
        video: The encoded file (MP4, WebM, JPEG, ...) as it is, container included. Empty after
            `decode(data, video=False)`.
        codec: Name of the video codec as FFmpeg spells it, e.g. "h264"; "rawvideo" for a grey
            picture of an IDX file, whose bytes are its rows.
        colour_range: "tv" (luma 16-235) or "pc" (0-255).
        colour_space: Matrix as FFmpeg spells it, e.g. "bt709", "smpte170m"; "unspecified" where
            the file does not say.
        width: Pixels per row of the decoded picture.
        height: Rows of the decoded picture.
        frames: Number of frames in the whole encoded video.
        fps: Mean frames per second of the encoded video; 0.0 for an image.
        start: Seconds into the video where the clip begins; None for its beginning.
        end: Seconds into the video where the clip ends (exclusive); None for its end.
        captions: True descriptions.
        questions: Questions with answers.
        events: Moments, in order of time.
        labels: Class labels, e.g. {"colour": "red"}; a label is absent where it is not defined.
        group: Clips that differ in one thing only share a group; None for no group.
        actions: float32 [T, A], what was done between frame t and t + 1; None where unknown.
        states: float32 [T, S], the state at frame t; None where unknown.
        source: Where it came from, e.g. the file's name in the user's manifest.
    """

    key: str
    video: bytes
    width: int
    height: int
    frames: int
    fps: float
    media: str = "video"
    codec: str = "h264"
    colour_range: str = "tv"
    colour_space: str = "unspecified"
    start: float | None = None
    end: float | None = None
    captions: tuple[Caption, ...] = ()
    questions: tuple[Question, ...] = ()
    events: tuple[Event, ...] = ()
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    group: str | None = None
    actions: np.ndarray | None = None
    states: np.ndarray | None = None
    source: str = ""


_FIELDS = tuple(field.name for field in dataclasses.fields(Record))
_ITEMS: dict[str, type] = {"captions": Caption, "questions": Question, "events": Event}
_ARRAYS = ("actions", "states")


def check(record: Record) -> None:
    """Raise UserError, naming the record and the field, when a record breaks the schema."""
    problem = _problem(record)
    if problem:
        raise UserError(f"record {record.key!r}: {problem}")


def _problem(record: Record) -> str | None:
    if not record.key:
        return "key is empty; give every record a unique, stable key"
    if record.media not in MEDIA:
        return f"media is {record.media!r}; it must be one of {MEDIA}"
    if not record.video:
        return "video holds no bytes"
    if record.width < 1 or record.height < 1 or record.frames < 1:
        return (
            f"size {record.width}x{record.height} with {record.frames} frames; width, height and "
            "frames must be at least 1"
        )
    if record.media == "video" and not (math.isfinite(record.fps) and record.fps > 0):
        return f"fps is {record.fps}; a video needs a finite rate above 0"
    if record.colour_range not in COLOUR_RANGES:
        return f"colour_range is {record.colour_range!r}; it must be one of {COLOUR_RANGES}"
    start = 0.0 if record.start is None else record.start
    if not (math.isfinite(start) and start >= 0):
        return f"start is {record.start}; it must be at least 0 seconds"
    if record.end is not None and not (math.isfinite(record.end) and record.end > start):
        return f"end is {record.end}; it must come after start ({start} s)"
    return _text_problem(record) or _array_problem(record)


def _text_problem(record: Record) -> str | None:
    for caption in record.captions:
        if not caption.text.strip():
            return f"caption {caption.id!r} is empty"
    for question in record.questions:
        if not question.query.strip() or not question.answer.strip():
            return f"question {question.id!r} has an empty query or answer"
        if question.candidates and question.answer not in question.candidates:
            return f"question {question.id!r}: its answer is not among its candidates"
    for name in ("captions", "questions"):
        ids = [item.id for item in getattr(record, name)]
        if len(set(ids)) != len(ids):
            return f"two of its {name} share an id: {sorted(ids)}"
    return None


def _array_problem(record: Record) -> str | None:
    for name in _ARRAYS:
        array = getattr(record, name)
        if array is None:
            continue
        if array.ndim != 2 or array.dtype != np.float32:
            return f"{name} must be float32 [T, n], not {array.dtype} {list(array.shape)}"
        if not np.isfinite(array).all():
            return f"{name} holds values that are not finite"
    return None


def encode(record: Record) -> bytes:
    """Record -> bytes. Raises UserError when the record breaks the schema."""
    check(record)
    data: dict[str, Any] = {"version": SCHEMA_VERSION}
    for name in _FIELDS:
        data[name] = getattr(record, name)
    for name in _ITEMS:
        data[name] = [dataclasses.asdict(item) for item in data[name]]
    for name in _ARRAYS:
        data[name] = _pack_array(data[name])
    # Plain Python numbers, and sorted labels so that equal records have equal bytes.
    for name in ("width", "height", "frames"):
        data[name] = int(data[name])
    for name in ("fps", "start", "end"):
        data[name] = None if data[name] is None else float(data[name])
    for event in data["events"]:
        event["time"] = float(event["time"])
    data["labels"] = dict(sorted(record.labels.items()))
    return msgpack.packb(data, use_bin_type=True)


def decode(data: bytes, video: bool = True) -> Record:
    """Bytes -> Record. With `video=False` the encoded file is dropped (`record.video == b""`).

    Raises:
        UserError: the record was written by a newer version of this library, or is damaged.
    """
    try:
        fields = msgpack.unpackb(data, raw=False)
        version = fields["version"]
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise UserError(
            f"a record cannot be read ({type(error).__name__}: {error}); prepare the dataset again"
        ) from error
    if version > SCHEMA_VERSION:
        raise UserError(
            f"a record has schema version {version}, and this library reads up to "
            f"{SCHEMA_VERSION}; update the library or prepare the dataset again"
        )
    values = {name: fields[name] for name in _FIELDS if name in fields}
    for name, kind in _ITEMS.items():
        values[name] = tuple(_item(kind, item) for item in values.get(name, ()))
    for name in _ARRAYS:
        values[name] = _unpack_array(values.get(name))
    if not video:
        values["video"] = b""
    return Record(**values)


def _item(kind: type, values: dict[str, Any]) -> Any:
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _pack_array(array: np.ndarray | None) -> dict[str, Any] | None:
    if array is None:
        return None
    return {"shape": list(array.shape), "data": np.ascontiguousarray(array, "<f4").tobytes()}


def _unpack_array(packed: dict[str, Any] | None) -> np.ndarray | None:
    if packed is None:
        return None
    values = np.frombuffer(packed["data"], dtype="<f4").reshape(packed["shape"])
    return values.astype(np.float32)


def texts(record: Record) -> set[str]:
    """What may be a training target: every caption and every answer, candidates included."""
    found = {caption.text for caption in record.captions}
    for question in record.questions:
        found.add(question.answer)
        found.update(question.candidates)
    return found


def queries(record: Record) -> set[str]:
    """Every query that the record brings with it."""
    asked = {question.query for question in record.questions}
    return asked | {caption.query for caption in record.captions if caption.query}
