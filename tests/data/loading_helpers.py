"""Small encoded clips and datasets for the tests of loading."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

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


def write(directory, records: dict[str, list[Record]], queries=("what happens?",), shards=2):
    """Write a dataset of these records by split."""
    writer = DatasetWriter(directory, name="test", settings={})
    for split, items in records.items():
        for index in writer.missing(split, shards):
            write_shard(directory, split, index, shards, iter(items[index::shards]))
    writer.finish(dict.fromkeys(records, shards), attributes={}, caption_queries=list(queries))
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


__all__ = ["mp4", "pictures", "record", "same", "schema", "write"]
