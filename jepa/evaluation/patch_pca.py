"""What an encoder tells apart in a clip: the main components of its tokens as colours.

The first three principal components of tokens become red, green and blue, so that places with like
features have like colours. Fitted over all clips that are shown together, a colour means the same
in each of them.

Letters: B clips, t h w the grid of tokens, T frames, H W pixels, D width, M tokens to fit to.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from jepa.data.world import encode

COMPONENTS = 3


@dataclasses.dataclass(frozen=True)
class Palette:
    """From tokens to colours.

    Attributes:
      mean: `[D]`.
      axes: `[D, 3]`, orthonormal; the largest entry of each is positive, so that equal data give
        equal colours.
      low, high: `[3]`, the values that become 0 and 255.
      explained: `[3]`, share of the tokens' variance along each axis.
    """

    mean: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray
    explained: np.ndarray


def fit(tokens: np.ndarray, *, tails: float = 1.0) -> Palette:
    """Finds the main components of tokens `[M, D]`, in float64.

    Args:
      tokens: M at least 4, D at least 3.
      tails: per cent of the values at either end that are drawn in the extreme colour.

    Raises:
      ValueError: too few tokens or dimensions, or values that are not finite.
    """
    tokens = np.asarray(tokens, np.float64)
    if tokens.ndim != 2 or tokens.shape[0] <= COMPONENTS or tokens.shape[1] < COMPONENTS:
        raise ValueError(f"three components need [M > 3, D >= 3] tokens, not {tokens.shape}")
    if not np.isfinite(tokens).all():
        raise ValueError("tokens have values that are not finite")
    mean = tokens.mean(axis=0)
    centred = tokens - mean
    variances, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :COMPONENTS]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(COMPONENTS)])
    values = centred @ axes
    low, high = np.percentile(values, (tails, 100 - tails), axis=0)
    total = max(float(variances.sum()), np.finfo(np.float64).tiny)
    return Palette(mean, axes, low, high, np.maximum(variances[::-1][:COMPONENTS], 0) / total)


def paint(tokens: np.ndarray, palette: Palette) -> np.ndarray:
    """Returns the colours uint8 `[..., 3]` of tokens `[..., D]`; 128 where an axis is flat."""
    values = (np.asarray(tokens, np.float64) - palette.mean) @ palette.axes
    width = palette.high - palette.low
    shares = np.where(width > 0, (values - palette.low) / np.where(width > 0, width, 1), 0.5)
    return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def enlarge(colours: np.ndarray, frames: int, height: int, width: int) -> np.ndarray:
    """Returns colours `[t, h, w, 3]` as frames uint8 `[T, H, W, 3]`, each token a block.

    Raises:
      ValueError: the grid does not divide the clip.
    """
    grid, size = colours.shape[:3], (frames, height, width)
    if any(whole % part for whole, part in zip(size, grid, strict=True)):
        raise ValueError(f"a clip of {size} does not divide into {grid} tokens")
    for axis, (whole, part) in enumerate(zip(size, grid, strict=True)):
        colours = np.repeat(colours, whole // part, axis=axis)
    return colours


def beside(clips: np.ndarray, painted: np.ndarray, *, height: int = 128) -> np.ndarray:
    """Returns uint8 `[T, rows, columns, 3]`: a clip a row, frames left, colours right.

    Args:
      clips: uint8 `[B, T, H, W, 3]`.
      painted: the same shape.
      height: of a clip in the picture, in pixels; made even.
    """
    scale = max(1, round(height / clips.shape[2]))
    gap = 4
    rows = []
    for clip, colours in zip(clips, painted, strict=True):
        left, right = (x.repeat(scale, axis=1).repeat(scale, axis=2) for x in (clip, colours))
        between = np.full((*left.shape[:2], gap, 3), 255, np.uint8)
        rows.append(np.concatenate([left, between, right], axis=2))
        rows.append(np.full((len(clip), gap, rows[-1].shape[2], 3), 255, np.uint8))
    return np.concatenate(rows[:-1], axis=1)


def grid(clips: np.ndarray, painted: np.ndarray, *, count: int = 8, height: int = 72) -> np.ndarray:
    """Returns a picture uint8: for each clip a strip of frames, and below it their colours.

    Args:
      clips: uint8 `[B, T, H, W, 3]`.
      painted: the same shape.
      count: frames to show, evenly spread.
      height: of a frame in pixels.
    """
    gap, lines = 2, []
    picks = np.unique(np.linspace(0, clips.shape[1] - 1, count).round().astype(int))
    for clip, colours in zip(clips, painted, strict=True):
        for frames, how in (
            (clip, Image.Resampling.BICUBIC),
            (colours, Image.Resampling.NEAREST),
        ):
            lines.append(_strip(frames[picks], height, gap, how))
            lines.append(np.full((gap, lines[-1].shape[1], 3), 255, np.uint8))
        lines[-1] = lines[-1].repeat(4, axis=0)
    return np.concatenate(lines[:-1])


def _strip(frames: np.ndarray, height: int, gap: int, how: Image.Resampling) -> np.ndarray:
    width = max(1, round(frames.shape[2] * height / frames.shape[1]))
    parts: list[np.ndarray] = []
    for frame in frames:
        parts.append(np.asarray(Image.fromarray(frame).resize((width, height), how)))
        parts.append(np.full((height, gap, 3), 255, np.uint8))
    return np.concatenate(parts[:-1], axis=1)


def gif(frames: np.ndarray, fps: float = 4.0) -> bytes:
    """Returns frames uint8 `[T, H, W, 3]` as a GIF that goes round for ever."""
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
    )
    return buffer.getvalue()


def mp4(frames: np.ndarray, fps: int = 4) -> bytes:
    """Returns frames uint8 `[T, H, W, 3]` as an H.264 MP4; an odd last row or column is cut."""
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
    return encode.encode(frames[:, :height, :width], fps)
