"""Drawing: signed distance functions over a small window around each object, antialiased.

T frames, H = W = 64 pixels. x grows to the right, y downwards, in pixels; pixel (0, 0) covers the
square from 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

FRAME = 64
#: The canvas is larger than the frame by this many pixels on each side, for the camera to shake in.
SHAKE = 1

_INNER = 0.42  # inner radius of the five-pointed star, in outer radii
_HOLE = 0.5  # inner radius of the ring
_ARM = 0.34  # half width of an arm of the cross
_SIDE = 0.8  # half side of the square


@dataclass
class Track:
    """One object over T frames: `xy` [T, 2] px, `angle` [T] rad, `rgb` [T, 3], `alpha` [T]."""

    colour: str
    shape: str
    size: str
    radius: float
    xy: np.ndarray
    angle: np.ndarray
    rgb: np.ndarray
    alpha: np.ndarray


@dataclass
class Box:
    """A rectangle in front of every object, or behind: `rect` is x0, y0, x1, y1 in px."""

    rect: tuple[float, float, float, float]
    rgb: tuple[float, float, float]
    front: bool = True


@dataclass
class Backdrop:
    """What is behind the objects: a gradient, a texture, and a floor from `floor` px down."""

    top: np.ndarray
    bottom: np.ndarray
    tilt: float
    texture: np.ndarray  # [G, G] of about -1..1, stretched over the canvas
    strength: float
    floor: float | None = None
    floor_rgb: np.ndarray = field(default_factory=lambda: np.full(3, 60.0))


def distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in px to a shape at the origin: negative inside, near exact at the edge."""
    if shape == "circle":
        return np.sqrt(x * x + y * y) - radius
    if shape == "ring":
        middle, half = radius * (1 + _HOLE) / 2, radius * (1 - _HOLE) / 2
        return np.abs(np.sqrt(x * x + y * y) - middle) - half
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - radius * _SIDE
    if shape == "triangle":
        lean = np.abs(x) * (math.sqrt(3) / 2) - y * 0.5
        return np.maximum(lean, y) - radius * 0.5
    if shape == "cross":
        ax, ay = np.abs(x), np.abs(y)
        return np.maximum(np.minimum(ax, ay) - radius * _ARM, np.maximum(ax, ay) - radius)
    if shape == "star":
        return _star(x, y, radius)
    raise ValueError(f"unknown shape {shape!r}")


def _star(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Fold the plane into half of one of five points; there the outline is one straight edge."""
    sector = 2 * math.pi / 5
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - sector * np.round(angle / sector))
    reach = np.sqrt(x * x + y * y)
    u, v = reach * np.cos(angle), reach * np.sin(angle)
    tip = np.array([radius, 0.0])
    notch = radius * _INNER * np.array([math.cos(sector / 2), math.sin(sector / 2)])
    edge = notch - tip
    normal = np.array([edge[1], -edge[0]]) / math.hypot(*edge)
    return (u - tip[0]) * np.float32(normal[0]) + v * np.float32(normal[1])


def paint_backdrop(backdrop: Backdrop) -> np.ndarray:
    """The empty canvas, float32 [H + 2, W + 2, 3]."""
    side = FRAME + 2 * SHAKE
    ramp = np.linspace(0, 1, side, dtype=np.float32)
    mix = ramp[:, None] * math.cos(backdrop.tilt) + ramp[None, :] * math.sin(backdrop.tilt)
    mix = (mix / (math.cos(backdrop.tilt) + math.sin(backdrop.tilt)))[..., None]
    image = (backdrop.top * (1 - mix) + backdrop.bottom * mix).astype(np.float32)
    grain = _stretch(backdrop.texture, side) * backdrop.strength
    if backdrop.floor is not None:
        depth = np.clip(np.arange(side) - SHAKE + 1 - backdrop.floor, 0, 1).astype(np.float32)
        depth = depth[:, None, None]
        image = image * (1 - depth) + backdrop.floor_rgb.astype(np.float32) * depth
        grain = grain * (1 + depth[..., 0])
    return np.clip(image + grain[..., None], 4, 150)


def _stretch(grid: np.ndarray, side: int) -> np.ndarray:
    """Bilinear enlargement of a [G, G] grid to [side, side]."""
    at = np.linspace(0, len(grid) - 1, side)
    low = np.minimum(at.astype(int), len(grid) - 2)
    part = (at - low).astype(np.float32)
    rows = grid[low] * (1 - part[:, None]) + grid[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def render(
    backdrop: Backdrop, tracks: list[Track], boxes: list[Box], shake: np.ndarray
) -> np.ndarray:
    """Frames, uint8 [T, 64, 64, 3]. `shake` int [T, 2] moves the camera by -1, 0 or 1 px."""
    count = len(shake)
    canvas = np.repeat(paint_backdrop(backdrop)[None], count, axis=0)
    for box in boxes:
        if not box.front:
            _draw_box(canvas, box)
    for track in tracks:
        _draw_track(canvas, track)
    for box in boxes:
        if box.front:
            _draw_box(canvas, box)
    frames = np.empty((count, FRAME, FRAME, 3), np.uint8)
    for t, (dx, dy) in enumerate(shake + SHAKE):
        frames[t] = canvas[t, dy : dy + FRAME, dx : dx + FRAME] + 0.5
    return frames


def _draw_box(canvas: np.ndarray, box: Box) -> None:
    x0, y0, x1, y1 = (v + SHAKE for v in box.rect)
    at = np.arange(canvas.shape[1])
    across = np.clip(np.minimum(at + 1, x1) - np.maximum(at, x0), 0, 1)
    along = np.clip(np.minimum(at + 1, y1) - np.maximum(at, y0), 0, 1)
    rows, columns = np.flatnonzero(along), np.flatnonzero(across)
    if not len(rows) or not len(columns):
        return
    y, x = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    cover = (along[y, None] * across[None, x]).astype(np.float32)[..., None]
    canvas[:, y, x] += cover * (np.asarray(box.rgb, np.float32) - canvas[:, y, x])


def _draw_track(canvas: np.ndarray, track: Track) -> None:
    count, side = canvas.shape[:2]
    half = math.ceil(track.radius) + 2
    corner = np.floor(track.xy).astype(int) - half + SHAKE
    span = np.arange(2 * half + 1, dtype=np.float32) + 0.5
    offset = (corner - SHAKE - track.xy).astype(np.float32)
    x = np.broadcast_to((offset[:, 0, None] + span)[:, None, :], (count, len(span), len(span)))
    y = np.broadcast_to((offset[:, 1, None] + span)[:, :, None], x.shape)
    if track.shape not in ("circle", "ring"):
        cos = np.cos(track.angle).astype(np.float32)[:, None, None]
        sin = np.sin(track.angle).astype(np.float32)[:, None, None]
        x, y = x * cos + y * sin, y * cos - x * sin
    cover = np.clip(0.5 - distance(track.shape, x, y, track.radius), 0, 1)
    cover = (cover * track.alpha.astype(np.float32)[:, None, None])[..., None]
    rgb = track.rgb.astype(np.float32)
    for t in range(count):
        left, top = corner[t]
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + len(span), side), min(top + len(span), side)
        if x0 >= x1 or y0 >= y1 or track.alpha[t] == 0:
            continue
        part = cover[t, y0 - top : y1 - top, x0 - left : x1 - left]
        here = canvas[t, y0:y1, x0:x1]
        here += part * (rgb[t] - here)
