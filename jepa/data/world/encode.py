"""Frames to an MP4 file in memory: H.264, 4:2:0, BT.601 limited range, one key frame in eight.

The colours are converted here and not by the encoder's scaler, so that the bytes are a function of
the frames alone. One encoder thread, for the same reason.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

CODEC = "h264"
COLOUR_RANGE = "tv"
COLOUR_SPACE = "smpte170m"  # BT.601, as FFmpeg calls it
FPS = 8
KEY_INTERVAL = 8

# ITU-R BT.601: luma weights 0.299, 0.587, 0.114; 219 steps of luma, 224 of chroma.
_LUMA = np.array([0.299, 0.587, 0.114])
_MATRIX = np.stack(
    [
        _LUMA * 219 / 255,
        (np.array([0, 0, 1]) - _LUMA) * 112 / 255 / (1 - 0.114),
        (np.array([1, 0, 0]) - _LUMA) * 112 / 255 / (1 - 0.299),
    ]
).astype(np.float32)


def to_yuv420(frames: np.ndarray) -> np.ndarray:
    """RGB uint8 [T, H, W, 3] to planar 4:2:0 uint8 [T, H * 3 / 2, W] (Y, then U, then V)."""
    count, height, width, _ = frames.shape
    out = np.empty((count, height * 3 // 2, width), np.uint8)
    out[:, :height] = _weigh(frames, _MATRIX[0], 16.5)
    # Averaging is linear, so the four pixels of a chroma sample can be added up before.
    rows = frames[:, ::2].astype(np.uint16) + frames[:, 1::2]
    quads = rows[:, :, ::2] + rows[:, :, 1::2]
    shape = (count, height // 4, width)
    out[:, height : height * 5 // 4] = _weigh(quads, _MATRIX[1] / 4, 128.5).reshape(shape)
    out[:, height * 5 // 4 :] = _weigh(quads, _MATRIX[2] / 4, 128.5).reshape(shape)
    return out


def _weigh(rgb: np.ndarray, weights: np.ndarray, offset: float) -> np.ndarray:
    """A weighted sum of the channels. Not a matrix product: one would start threads for it."""
    red, green, blue = (rgb[..., k] * weights[k] for k in range(3))
    return red + green + blue + np.float32(offset)


def encode(frames: np.ndarray, fps: int = FPS) -> bytes:
    """RGB uint8 [T, H, W, 3] (H and W even) to the bytes of an MP4 file."""
    planes = to_yuv420(frames)
    _, height, width, _ = frames.shape
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.time_base = Fraction(1, fps)
        context.color_range = 1  # AVCOL_RANGE_MPEG
        context.colorspace = 6  # AVCOL_SPC_SMPTE170M, that is BT.601
        context.color_primaries = 6
        context.color_trc = 6
        context.options = {
            "crf": "18",
            "preset": "veryfast",
            "x264-params": f"keyint={KEY_INTERVAL}:min-keyint={KEY_INTERVAL}:scenecut=0"
            ":bframes=0:threads=1",
        }
        for t, plane in enumerate(planes):
            frame = av.VideoFrame.from_ndarray(plane, format="yuv420p")
            frame.pts, frame.time_base = t, context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return sink.getvalue()
