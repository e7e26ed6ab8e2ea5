"""A record survives being written, and what breaks the schema is refused by name."""

import dataclasses

import msgpack
import numpy as np
import pytest

from jepa.data import schema
from jepa.errors import UserError

FULL = schema.Record(
    key="clip/1",
    video=b"\x00\x01encoded",
    width=64,
    height=48,
    frames=16,
    fps=8.0,
    colour_range="pc",
    colour_space="bt709",
    start=0.25,
    end=1.5,
    captions=(schema.Caption("c0", "Ein roter Ball fällt", "full"),),
    questions=(schema.Question("q0", "Colour?", "red", "colour", ("red", "blue")),),
    events=(schema.Event(0.5, "bounce", ("ball", "floor")),),
    labels={"shape": "ball", "colour": "red"},
    group="g",
    actions=np.arange(6, dtype=np.float32).reshape(3, 2),
    states=np.full((4, 1), -1.5, np.float32),
    source="a.mp4",
)


def test_every_field_survives():
    copy = schema.decode(schema.encode(FULL))
    for field in dataclasses.fields(schema.Record):
        ours, theirs = getattr(FULL, field.name), getattr(copy, field.name)
        if isinstance(ours, np.ndarray):
            assert theirs.dtype == np.float32
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs, field.name
            assert type(ours) is type(theirs), field.name


def test_without_video_only_the_bytes_are_dropped():
    copy = schema.decode(schema.encode(FULL), video=False)
    assert copy.video == b""
    again = dataclasses.replace(copy, video=FULL.video)
    assert schema.encode(again) == schema.encode(FULL)


def test_equal_records_have_equal_bytes():
    labels = dict(reversed(FULL.labels.items()))
    numpy_numbers = dataclasses.replace(
        FULL, labels=labels, frames=np.int64(16), fps=np.float32(8.0), actions=FULL.actions[:, :]
    )
    assert schema.encode(numpy_numbers) == schema.encode(FULL)
    assert schema.encode(dataclasses.replace(FULL, fps=9.0)) != schema.encode(FULL)


def test_a_newer_version_is_refused():
    fields = msgpack.unpackb(schema.encode(FULL))
    fields["version"] = schema.SCHEMA_VERSION + 1
    with pytest.raises(UserError, match="schema version 2.*update the library"):
        schema.decode(msgpack.packb(fields))


def test_a_field_that_an_older_writer_did_not_know_takes_its_default():
    fields = msgpack.unpackb(schema.encode(FULL))
    del fields["group"], fields["actions"], fields["events"]
    record = schema.decode(msgpack.packb(fields))
    assert (record.group, record.actions, record.events) == (None, None, ())


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x01", b"cut"])
def test_damaged_bytes_are_a_user_error(damage):
    with pytest.raises(UserError, match="cannot be read"):
        schema.decode(schema.encode(FULL)[:40] if damage == b"cut" else damage)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": ""}, "key is empty"),
        ({"media": "sound"}, "media is 'sound'"),
        ({"video": b""}, "no bytes"),
        ({"frames": 0}, "0 frames"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"colour_range": "full"}, "colour_range"),
        ({"start": -1.0}, "start is -1.0"),
        ({"end": 0.25}, "end is 0.25"),
        ({"captions": (schema.Caption("c", "  "),)}, "caption 'c' is empty"),
        ({"captions": (schema.Caption("c", "a"), schema.Caption("c", "b"))}, "share an id"),
        ({"questions": (schema.Question("q", "What?", ""),)}, "empty query or answer"),
        ({"questions": (schema.Question("q", "a", "b", "", ("c",)),)}, "not among its candidates"),
        ({"actions": np.zeros((2, 2), np.float64)}, "actions must be float32"),
        ({"states": np.zeros(2, np.float32)}, "states must be float32"),
        ({"states": np.full((1, 1), np.inf, np.float32)}, "not finite"),
    ],
)
def test_what_breaks_the_schema_is_named(change, words):
    with pytest.raises(UserError, match="record .*" + words):
        schema.encode(dataclasses.replace(FULL, **change))


def test_an_image_needs_no_frame_rate():
    image = dataclasses.replace(FULL, media="image", frames=1, fps=0.0, start=None, end=None)
    assert schema.decode(schema.encode(image)).media == "image"


def test_texts_and_queries():
    assert schema.texts(FULL) == {"Ein roter Ball fällt", "red", "blue"}
    assert schema.queries(FULL) == {"Colour?"}
