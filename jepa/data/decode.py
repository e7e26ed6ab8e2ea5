"""Decodes chosen frames of an encoded clip with PyAV, and as few others as it can.

T wanted frames, H W pixels. A frame is wanted by the time at which it is on screen. Decoding starts
at the last keyframe before the first wanted one and jumps wherever a later keyframe lies before the
next wanted one. One thread a clip: the loader decodes many clips at once.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av
import numpy as np

from jepa.data.schema import Record

# A wanted time may lie this many frames behind the end of the last frame (rounded rates); that
# frame is then taken. Further behind, the file is shorter than its record says.
_SLACK_FRAMES = 2.0
# Without an index of keyframes, a jump is worth trying only over a gap of this many seconds.
_BLIND_JUMP = 2.0


class DecodeError(Exception):
    """The encoded bytes cannot be decoded, or hold less than they should."""


def grid(record: Record) -> tuple[int, float, float]:
    """Frames that a record offers: `(count, frames per second, seconds of the first)`.

    The clip from `start` to `end` on a regular grid at the video's mean rate. Where the rate is
    constant these are the encoded frames themselves.
    """
    if record.media == "image":
        return 1, 1.0, 0.0
    start = record.start or 0.0
    available = max(1, record.frames - round(start * record.fps))
    if record.end is None:
        return available, record.fps, start
    return min(available, max(1, round((record.end - start) * record.fps))), record.fps, start


def frame_times(record: Record, indices: np.ndarray) -> np.ndarray:
    """Seconds, from the video's first frame, in the middle of the grid's frames `indices`."""
    _, fps, start = grid(record)
    if record.media == "image":
        return np.zeros(np.shape(indices))
    return start + (np.asarray(indices) + 0.5) / fps


def demand_whole(container: Any, context: Any) -> None:
    """Make it an error that a JPEG picture is cut off, whose rest FFmpeg else fills with a colour.

    Other kinds are an error as it is; what else is asked of them then, not all whole files do.
    """
    if container.format.name.endswith("_pipe") and context.name == "mjpeg":
        context.options = {"err_detect": "explode"}


def decode_clip(
    data: bytes,
    times: Sequence[float] | np.ndarray,
    convert: Callable[[av.VideoFrame], Any],
) -> list[Any]:
    """Decode the frames on screen at `times`.

    Args:
        data: The encoded file, video or image.
        times: Seconds from the first frame, T of them, in any order, repeats allowed.
        convert: Called once for each distinct frame; see `transforms.Converter`.

    Returns:
        What `convert` returned, T in the order of `times`. Equal frames are the same object.

    Raises:
        DecodeError: not a video, damaged, or it ends before a wanted time.
    """
    order = np.argsort(times, kind="stable")
    found: list[Any] = [None] * len(order)
    last, converted = None, None
    try:
        with av.open(io.BytesIO(data), metadata_errors="ignore") as container:
            reader = _Reader(container)
            for place in order:
                frame = reader.at(float(times[place]))
                if frame is not last:
                    last, converted = frame, convert(frame)
                found[place] = converted
    except (av.error.FFmpegError, EOFError) as error:
        raise DecodeError(f"{type(error).__name__}: {error}") from error
    return found


class _Reader:
    """Walks one video stream forward, by decoding or by jumping."""

    def __init__(self, container: Any):
        if not container.streams.video:
            raise DecodeError("there is no video stream in it")
        self._container = container
        self._stream = container.streams.video[0]
        if self._stream.codec_context is None:
            raise DecodeError("nothing here can decode its codec")
        self._stream.thread_type = "NONE"
        self._stream.codec_context.thread_count = 1
        demand_whole(container, self._stream.codec_context)
        self._tick = float(self._stream.time_base or 0) or 1.0
        self._first = self._stream.start_time or 0
        rate = self._stream.average_rate or self._stream.guessed_rate
        self._usual = 1.0 / float(rate) if rate else self._tick
        self._keys = self._keyframes()
        self._frames: Iterator[Any] = container.decode(self._stream)
        self._frame: Any = None
        self._begin = -np.inf
        self._end = 0.0

    def at(self, time: float) -> Any:
        """The first frame whose end lies after `time`, which is never before the last one asked."""
        if self._frame is not None and time < self._end:
            return self._frame
        self._jump(time)
        while self._frame is None or time >= self._end:
            if not self._step():
                return self._ended(time)
        if getattr(self._frame, "is_corrupt", False):
            raise DecodeError(f"the frame at {time:.3f} s is damaged")
        return self._frame

    def _step(self) -> bool:
        frame = next(self._frames, None)
        if frame is None:
            return False
        self._frame = frame
        if frame.pts is None:
            self._begin = max(self._end, 0.0)
        else:
            self._begin = (frame.pts - self._first) * self._tick
        self._end = self._begin + (frame.duration * self._tick if frame.duration else self._usual)
        return True

    def _ended(self, time: float) -> Any:
        if self._frame is None:
            raise DecodeError("no frame in it can be decoded")
        if time >= self._end + _SLACK_FRAMES * self._usual:
            raise DecodeError(f"it ends at {self._end:.3f} s, before {time:.3f} s")
        return self._frame

    def _keyframes(self) -> list[tuple[float, int]]:
        """(seconds, timestamp) at which the keyframes in the container's index are shown."""
        entries = self._stream.index_entries
        if not len(entries):
            return []
        # The index counts decoding time, which runs ahead of display by the reordering delay.
        delay = self._first - entries[0].timestamp
        shown = [entry.timestamp + delay for entry in entries if entry.is_keyframe]
        return [((timestamp - self._first) * self._tick, timestamp) for timestamp in shown]

    def _jump(self, time: float) -> None:
        """Move to a keyframe at or before `time` if that skips frames."""
        here = self._end
        targets = [key for key in self._keys if here + self._usual / 2 < key[0] <= time]
        if not self._keys and time - here > _BLIND_JUMP:
            targets = [(time, self._first + int(time / self._tick))]
        # Some containers place keyframes inexactly: where a jump lands behind `time`, try the
        # keyframe before, and in the end decode from the beginning.
        while targets:
            self._seek(targets.pop()[1])
            if self._step() and self._begin <= time:
                return
            if not targets:
                self._seek(self._first)

    def _seek(self, timestamp: int) -> None:
        self._container.seek(timestamp, stream=self._stream)
        self._frames = self._container.decode(self._stream)
        self._frame, self._end = None, 0.0
