"""Cuts and shrinks a video into a small H.264 MP4."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from jepa.data.verify import BadVideo, reason

# One key frame a second at the usual rates, so that a loader that seeks decodes little.
_KEY_FRAME_SECONDS = 1.0
_QUALITY = "20"  # x264's constant rate factor: hard to tell from the original
# What FFmpeg's converter makes of RGB; said in the file, so that nobody has to guess.
_LIMITED_RANGE, _BT601 = 1, 6


def transcode(
    data: bytes, size: int, start: float | None = None, end: float | None = None
) -> bytes:
    """Re-encode [start, end) of a video file with its short side at `size` pixels.

    The result is H.264 in MP4 at the source's mean frame rate, constant (each moment shows the
    latest source frame), upright (rotation marks of phones are applied), without sound, never
    larger than the source.

    Args:
        data: An encoded file of any kind that FFmpeg reads.
        size: Pixels of the short side; rounded down to even.
        start: Seconds after the first frame; None for the beginning.
        end: Seconds after the first frame, exclusive; None for the end.

    Raises:
        BadVideo: the source cannot be decoded or has no frame in [start, end).
    """
    try:
        # MP4 with its index in front needs a second pass over a real file.
        with (
            tempfile.TemporaryDirectory() as folder,
            av.open(io.BytesIO(data), metadata_errors="ignore") as source,
        ):
            target = Path(folder) / "clip.mp4"
            _encode(source, target, size, start or 0.0, math.inf if end is None else end)
            return target.read_bytes()
    except av.FFmpegError as error:
        raise BadVideo(f"cannot be transcoded: {reason(error)}") from error


def _encode(source: Any, target: Path, size: int, start: float, end: float) -> None:
    if not source.streams.video:
        raise BadVideo("holds no video stream")
    rate = source.streams.video[0].average_rate or source.streams.video[0].guessed_rate
    if not rate:
        raise BadVideo("has no frame rate")
    rate = Fraction(rate).limit_denominator(1001)
    with av.open(str(target), "w", format="mp4", options={"movflags": "faststart"}) as output:
        stream = None
        for index, image in enumerate(_frames(source, rate, start, end)):
            if stream is None:
                stream = _stream(output, rate, *_scaled(image.shape[1], image.shape[0], size))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="AREA")
            frame.pts = index
            frame.time_base = 1 / rate
            output.mux(stream.encode(frame))
        if stream is None:
            raise BadVideo(f"has no frame between {start} and {end} s")
        output.mux(stream.encode())


def _stream(output: Any, rate: Fraction, width: int, height: int) -> Any:
    options = {"crf": _QUALITY, "preset": "veryfast"}
    stream = output.add_stream("libx264", rate=rate, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.color_range = _LIMITED_RANGE
    stream.codec_context.colorspace = _BT601
    stream.codec_context.gop_size = max(1, round(float(rate) * _KEY_FRAME_SECONDS))
    stream.codec_context.thread_count = 1  # the same bytes on any machine
    return stream


def _frames(source: Any, rate: Fraction, start: float, end: float) -> Iterator[np.ndarray]:
    """RGB [H, W, 3] frames of [start, end) at a constant rate, upright."""
    half = 0.5 / float(rate)  # of leave: stamps are rounded to the container's clock
    held, held_time, count = None, 0.0, 0
    for time, frame in _timed(source, start):
        while held is not None and start + count / float(rate) < min(time, end) - half:
            yield _upright(held)
            count += 1
        if time >= end - half:
            return
        held, held_time = frame, time
    if held is not None and start + count / float(rate) <= held_time + half:
        yield _upright(held)


def _timed(source: Any, start: float) -> Iterator[tuple[float, Any]]:
    """(seconds since the first frame, frame), from the key frame before `start` on."""
    stream = source.streams.video[0]
    origin: float | None = None
    for first in source.decode(stream):
        origin = first.time
        break
    if origin is None:
        raise BadVideo("holds no frame, or frames without time stamps")
    source.seek(int((origin + start) / stream.time_base), stream=stream)
    for frame in source.decode(stream):
        if frame.time is None:
            raise BadVideo("has a frame without a time stamp")
        yield frame.time - origin, frame


def _upright(frame: Any) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns))


def _scaled(width: int, height: int, size: int) -> tuple[int, int]:
    scale = min(1.0, size / min(width, height))
    return max(2, int(width * scale) // 2 * 2), max(2, int(height * scale) // 2 * 2)
