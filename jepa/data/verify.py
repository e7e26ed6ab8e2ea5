"""Decodes a video from its first to its last frame before it is let into a dataset."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterator
from typing import Any

import av

from jepa.data.decode import demand_whole

# A record is read whole for every sample, so one of more than this only slows a run down.
LARGEST_BYTES = 1 << 30

# ISO/IEC 23091-2 matrix coefficients, as FFmpeg numbers and spells them.
_COLOUR_SPACES = {
    0: "gbr",
    1: "bt709",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020nc",
    10: "bt2020c",
}
_FULL_RANGE = 2


class BadVideo(Exception):
    """A video that cannot be used; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a whole decoding of an encoded file told; the fields are those of `schema.Record`.

    Attributes:
        media: "image" for a single picture file, else "video".
        codec: FFmpeg's name of the codec.
        colour_range: "tv" or "pc"; "tv" where the file does not say, as players assume.
        colour_space: FFmpeg's name of the matrix, or "unspecified".
        width: Pixels per row.
        height: Rows.
        frames: Decoded frames.
        fps: Mean frames per second; 0.0 for an image.
        duration: Seconds from the first frame to the end of the last one; 0.0 for an image.
    """

    media: str
    codec: str
    colour_range: str
    colour_space: str
    width: int
    height: int
    frames: int
    fps: float
    duration: float

    def fields(self) -> dict[str, Any]:
        """Keyword arguments for `schema.Record`."""
        values = dataclasses.asdict(self)
        del values["duration"]
        return values


def verify(data: bytes) -> VideoInfo:
    """Decode every frame of an encoded file.

    Raises:
        BadVideo: it cannot be opened or decoded, it is truncated or damaged, it has no picture,
            its size changes on the way, or its frame rate is not a finite number above 0.
    """
    if not data:
        raise BadVideo("the file is empty")
    if len(data) > LARGEST_BYTES:
        raise BadVideo(
            f"the file has {len(data) >> 20} MiB, more than {LARGEST_BYTES >> 20}; cut it into "
            "clips or give --transcode-size"
        )
    try:
        with av.open(io.BytesIO(data), metadata_errors="ignore") as container:
            return _decode_all(container)
    except (av.FFmpegError, MemoryError) as error:
        raise BadVideo(f"cannot be decoded: {reason(error)}") from error


def is_image(data: bytes) -> bool:
    """Whether an encoded file is a single picture; raises BadVideo when it cannot be opened."""
    try:
        with av.open(io.BytesIO(data), metadata_errors="ignore") as container:
            return container.format.name.endswith("_pipe")
    except av.FFmpegError as error:
        raise BadVideo(f"cannot be opened: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """FFmpeg's own words, without its error number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _decode_all(container: Any) -> VideoInfo:
    if not container.streams.video:
        raise BadVideo("holds no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise BadVideo("nothing here can decode its codec")
    stream.codec_context.thread_count = 1  # whole files are verified side by side
    demand_whole(container, stream.codec_context)
    first = last = None
    frames = damaged = 0
    for frame in _frames(container, stream):
        if first is None:
            first = frame
        if (frame.width, frame.height) != (first.width, first.height):
            raise BadVideo(
                f"its size changes from {first.width}x{first.height} to "
                f"{frame.width}x{frame.height} at frame {frames}"
            )
        frames += 1
        damaged += frame.is_corrupt
        last = frame
    if first is None or last is None:
        raise BadVideo("holds no frame")
    if damaged:
        raise BadVideo(f"{damaged} of its {frames} frames are damaged")
    image = container.format.name.endswith("_pipe") and frames == 1
    fps, duration = (0.0, 0.0) if image else _timing(container, first, last, frames)
    full = first.color_range == _FULL_RANGE or first.format.name.startswith(("yuvj", "rgb", "gbr"))
    return VideoInfo(
        media="image" if image else "video",
        codec=stream.codec_context.name,
        colour_range="pc" if full else "tv",
        colour_space=_COLOUR_SPACES.get(int(first.colorspace), "unspecified"),
        width=first.width,
        height=first.height,
        frames=frames,
        fps=fps,
        duration=duration,
    )


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Its frames, but of a file of a picture not what else is behind the picture.

    Phones put a map of gains or a smaller picture there, other programs any bytes. Pictures of one
    size behind each other are a video.
    """
    frames = container.decode(stream)
    first = next(frames, None)
    if first is None:
        return
    yield first
    if container.format.name.endswith("_pipe"):
        try:
            second = next(frames, None)
        except av.FFmpegError:
            return
        if second is None or (second.width, second.height) != (first.width, first.height):
            return
        yield second
    yield from frames


def _timing(container: Any, first: Any, last: Any, frames: int) -> tuple[float, float]:
    stream = container.streams.video[0]
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    if not (math.isfinite(fps) and fps > 0):
        raise BadVideo(f"its frame rate is {fps}")
    if first.pts is None or last.pts is None:
        raise BadVideo("its frames have no time stamps")
    shown = last.duration * float(stream.time_base) if last.duration else 1 / fps
    duration = (last.pts - first.pts) * float(stream.time_base) + shown
    if duration <= 0:
        raise BadVideo("its time stamps do not rise")
    # A container that promises more than there is was cut off; two frames of leave for rounding.
    promised = _promised(container, stream)
    if promised > duration * 1.05 + 2 / fps:
        raise BadVideo(f"is truncated: {duration:.2f} of {promised:.2f} seconds are there")
    return fps, duration


def _promised(container: Any, stream: Any) -> float:
    """Seconds of picture that the container's header speaks of; 0.0 where it does not."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    # Matroska and its kin give one duration for all streams, so with sound it may be the sound's.
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return 0.0
