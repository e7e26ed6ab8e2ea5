"""Small encoded clips and datasets for the tests of loading."""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType

import av
import numpy as np
import tokenizers

from jepa.data import schema
from jepa.data.schema import Caption, Question, Record
from jepa.data.writer import DatasetWriter, write_shard


def pictures(count: int, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth RGB pictures [count, H, W, 3], each unlike the others (the red level tells which)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = rng.uniform(60, 180, 3)
    out = np.empty((count, height, width, 3), np.uint8)
    for t in range(count):
        out[t, ..., 0] = 20 + 215 * t / max(count - 1, 1)
        out[t, ..., 1] = base[1] + 50 * x / width
        out[t, ..., 2] = base[2] + 50 * y / height
    return out


def mp4(
    frames: np.ndarray,
    *,
    fps: int = 8,
    gop: int = 12,
    crf: int = 10,
    bframes: int = 3,
    x264: str = "",
    matrix: str = "bt601",
    full_range: bool = False,
) -> bytes:
    """Encode pictures [n, H, W, 3] as H.264 in MP4, tagged and converted as asked."""
    spaces = {"bt601": (5, 5), "bt709": (1, 1)}
    tag, swscale = spaces[matrix]
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {
            "g": str(gop),
            "sc_threshold": "0",
            "crf": str(crf),
            "preset": "veryfast",
            "bf": str(bframes),
            "x264-params": x264,
        }
        stream.codec_context.colorspace = tag
        stream.codec_context.color_range = 2 if full_range else 1
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(
                format="yuv420p", dst_colorspace=swscale, dst_color_range=2 if full_range else 1
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return data.getvalue()


def record(number: int, *, count: int = 12, video: bytes | None = None, **fields) -> Record:
    """A record with four captions and two questions that name its number."""
    size = fields.pop("size", 64)
    values = {
        "key": f"clip-{number:04d}",
        "video": mp4(pictures(count, size, size, seed=number)) if video is None else video,
        "width": size,
        "height": size,
        "frames": count,
        "fps": 8.0,
        "captions": (
            Caption("b", f"thing {number}", "brief"),
            Caption("m", f"thing {number} moves", "motion"),
            Caption("f0", f"thing {number} moves right", "full"),
            Caption("f1", f"right moves thing {number}", "full"),
        ),
        "questions": (
            Question("q0", "what is it?", f"it is {number}"),
            Question("q1", "which one?", f"number {number}"),
        ),
    }
    return Record(**{**values, **fields})


def write(
    directory,
    records: dict[str, list[Record]],
    queries=("what happens?",),
    shards=2,
    attributes: Mapping | None = MappingProxyType({}),
):
    """Write a dataset of these records by split; None takes the attributes from their labels."""
    writer = DatasetWriter(directory, name="test", settings={})
    for split, items in records.items():
        for index in writer.missing(split, shards):
            write_shard(directory, split, index, shards, iter(items[index::shards]))
    writer.finish(
        dict.fromkeys(records, shards), attributes=attributes, caption_queries=list(queries)
    )
    return directory


def same(one, two) -> None:
    """Assert that two nested batches are equal, bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            same(one[key], two[key])
    else:
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def config(path, /, **keys):
    """The data section of a small loader."""
    base = {
        "path": str(path),
        "frames": 4,
        "size": 32,
        "tokenizer": "dataset",
        "query_length": 6,
        "text_length": 8,
    }
    return {**base, **keys}


def take(loader, steps):
    """The next batches of a loader, which is closed."""
    with loader:
        return [next(loader) for _ in range(steps)]


def words(data, stream, **keys):
    """Texts of a tokenized stream."""
    tokenizer = tokenizers.Tokenizer.from_file(str(data / "tokenizer.json"))
    rows = zip(stream["ids"], stream["mask"], strict=True)
    return [tokenizer.decode([int(i) for i in ids[mask]]) for ids, mask in rows]


def numbers(data, batch):
    """Which record each row is of: the one number in its target."""
    return [int(next(w for w in t.split() if w.isdigit())) for t in words(data, batch["text"])]


def rows_of(batch, part):
    """The rows `part` of a nested batch."""
    return {k: rows_of(v, part) if isinstance(v, dict) else v[part] for k, v in batch.items()}


__all__ = [
    "config",
    "mp4",
    "numbers",
    "pictures",
    "record",
    "rows_of",
    "same",
    "schema",
    "take",
    "words",
    "write",
]
