"""Sound clips in the containers and codecs that people have, to be damaged."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from jepa.data.schema import Caption, Record
from jepa.data.world.generate import scene
from jepa.data.world.write import record as world_record

os.environ.setdefault("SVT_LOG", "1")  # errors only
FRAMES, SIDE, RATE = 16, 64, 8
# Container, encoder, options of the container. Of an image, one frame is written.
FORMATS: dict[str, tuple[str, str, dict[str, str]]] = {
    "mp4/h264": ("mp4", "libx264", {}),
    "mp4/h264, index first": ("mp4", "libx264", {"movflags": "faststart"}),
    "mp4/h264, fragments": ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "mkv/h264": ("matroska", "libx264", {}),
    "ts/h264": ("mpegts", "libx264", {}),
    "mp4/hevc": ("mp4", "libx265", {}),
    "mp4/av1": ("mp4", "libsvtav1", {}),
    "webm/vp9": ("webm", "libvpx-vp9", {}),
    "webm/vp8": ("webm", "libvpx", {}),
    "mov/mpeg4": ("mov", "mpeg4", {}),
    "avi/mjpeg": ("avi", "mjpeg", {}),
    "mpg/mpeg2": ("mpeg", "mpeg2video", {}),
    "png": ("image2pipe", "png", {}),
    "jpeg": ("image2pipe", "mjpeg", {}),
    "webp": ("image2pipe", "libwebp", {}),
}
_IMAGES = ("png", "jpeg", "webp")
_PIXELS = {"png": "rgb24", "mjpeg": "yuvj420p"}
_ENCODER = {
    "libx265": {"x265-params": "log-level=none"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "10"},
}


def pictures(seed: int, count: int = FRAMES) -> np.ndarray:
    """A bright square that moves over a gradient with noise, uint8 [count, H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    ground = np.stack([2 * x, 2 * y, x + y], -1) + rng.integers(0, 30, (SIDE, SIDE, 3))
    out = np.repeat(ground[None], count, 0)
    for time in range(count):
        left, top = rng.integers(0, SIDE - 16) * (time + 1) % 48, 3 * time % 48
        out[time, top : top + 16, left : left + 16] = rng.integers(120, 255, 3)
    return np.clip(out, 0, 255).astype(np.uint8)


def encode(name: str, seed: int) -> bytes:
    """A file of one of the `FORMATS`."""
    container_name, codec, options = FORMATS[name]
    count = 1 if name in _IMAGES else FRAMES
    # A file, for with its index first an MP4 is read again while it is written.
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container_name, options=options) as container:
            rate = 25 if codec == "mpeg2video" else RATE  # it knows a few rates only
            stream = container.add_stream(codec, rate=rate)
            stream.width = stream.height = SIDE
            stream.pix_fmt = _PIXELS.get(codec, "yuv420p")
            stream.codec_context.thread_count = 1
            stream.options = {"g": "6", **_ENCODER.get(codec, {})}
            for picture in pictures(seed, count):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return Path(file.name).read_bytes()


def _record(name: str, seed: int) -> Record:
    image, rate = name in _IMAGES, 25.0 if "mpeg2" in name else float(RATE)
    return Record(
        key=f"{name} {seed}",
        video=encode(name, seed),
        media="image" if image else "video",
        codec=FORMATS[name][1],
        width=SIDE,
        height=SIDE,
        frames=1 if image else FRAMES,
        fps=0.0 if image else rate,
        captions=(Caption("c", "a square moves", "brief"),),
    )


def _as_before() -> None:
    """Takes back the real-time priority that SVT-AV1 gives the process of a superuser."""
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def originals(each: int = 3) -> Iterator[tuple[str, Record]]:
    """(format, record): `each` of every format, and as many of the world's as of all others."""
    for name in FORMATS:
        for seed in range(each):
            yield name, _record(name, seed)
    _as_before()
    for number in range(each * len(FORMATS)):
        yield "world: mp4/h264", world_record(scene(0, "train", number))
