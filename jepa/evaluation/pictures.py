"""Filmstrips: a clip as one picture, frames side by side."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image


def strip(frames: np.ndarray, count: int = 5, *, height: int = 72, gap: int = 2) -> np.ndarray:
    """Returns a picture uint8 `[height, W, 3]` of `count` frames, evenly spread, first and last in.

    Args:
      frames: uint8 `[T, H, W, 3]`.
      count: frames to show; all of them if there are fewer.
      height: of the picture in pixels; frames are scaled to it.
      gap: white pixels between frames.
    """
    picks = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int))
    width = max(1, round(frames.shape[2] * height / frames.shape[1]))
    parts: list[np.ndarray] = []
    for pick in picks:
        if parts:
            parts.append(np.full((height, gap, 3), 255, np.uint8))
        image = Image.fromarray(frames[pick])
        parts.append(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)))
    return np.concatenate(parts, axis=1)


def data_uri(picture: np.ndarray, quality: int = 82) -> str:
    """Returns a picture uint8 `[H, W, 3]` as a `data:` URI (JPEG)."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
