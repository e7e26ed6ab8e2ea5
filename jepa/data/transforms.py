"""From decoded frames to uint8 arrays of one size: crop, resize, colour.

T frames, S size, H W pixels of the source. A frame becomes planes: `{"rgb": [S, S, 3]}` or
`{"y": [S, S], "uv": [S/2, S/2, 2]}` (4:2:0, BT.601, luma 16-235). The tags of the source are
respected: full range and other matrices are converted, an untagged video is BT.601 in limited range
(swscale's convention), so that "rgb" and "yuv420" show the same colours.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

Planes = dict[str, np.ndarray]

# FFmpeg's numbers of matrices that are BT.601: unspecified, BT.470BG, SMPTE 170M.
_BT601 = (2, 5, 6)
_LIMITED = (0, 1)
_GREY = {"rgb": 128, "y": 126, "uv": 128}

_AT_ONCE = 1 << 19

_local = threading.local()


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle of a frame, in shares of its height and width."""

    top: float
    left: float
    height: float
    width: float

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels, all even so that chroma is cut with luma."""
        tall = _even(self.height * height, 2, height)
        wide = _even(self.width * width, 2, width)
        top = _even(self.top * height, 0, height - tall)
        left = _even(self.left * width, 0, width - wide)
        return top, left, tall, wide


def _even(value: float, low: int, high: int) -> int:
    return max(low, min(2 * round(value / 2), high - high % 2))


def random_boxes(
    uniforms: np.ndarray,
    aspect: float,
    scale: tuple[float, float] = (0.3, 1.0),
    ratio: tuple[float, float] = (0.75, 1.35),
) -> np.ndarray:
    """Draw the boxes of random resized crops.

    The area is uniform in `scale`, the logarithm of the aspect uniform in `ratio`; a side that
    would not fit is cut to the frame (no rejection, so the cost is fixed).

    Args:
        uniforms: [..., 4] in [0, 1): area, ratio, top, left.
        aspect: Width over height of the frames.
        scale: Smallest and largest share of the frame's area.
        ratio: Smallest and largest width over height of the box.

    Returns:
        Float64 [..., 4]: top, left, height and width in shares of the frame, as in `Box`.
    """
    area = scale[0] + uniforms[..., 0] * (scale[1] - scale[0])
    low, high = np.log(ratio)
    shape = np.exp(low + uniforms[..., 1] * (high - low)) / aspect
    height = np.minimum(1.0, (area / shape) ** 0.5)
    width = np.minimum(1.0, (area * shape) ** 0.5)
    top, left = uniforms[..., 2] * (1 - height), uniforms[..., 3] * (1 - width)
    return np.stack([top, left, height, width], axis=-1)


@dataclasses.dataclass(frozen=True)
class Converter:
    """Turns a decoded frame into planes of size S; `__call__` is thread-safe.

    Attributes:
        size: S; None keeps the source's own size (cut to even numbers), in 4:2:0.
        pixels: "rgb" or "yuv420".
        box: What to cut out before resizing; None for the centred square.
    """

    size: int | None
    pixels: str = "rgb"
    box: Box | None = None

    def __call__(self, frame: av.VideoFrame) -> Planes:
        """Planes of one frame; rotated upright where the file asks for it."""
        whole = self.size is None or self.box is not None
        planes = native(frame) if whole else self._centre(frame, self.size)
        turns = quarter_turns(frame)
        if turns:
            planes = {name: np.rot90(plane, turns) for name, plane in planes.items()}
        if self.size is None or self.box is None:
            return planes
        return crop_resize(planes, self.box, self.size, self.pixels)

    def _centre(self, frame: av.VideoFrame, size: int | None) -> Planes:
        assert size is not None
        short = min(frame.height, frame.width)
        # Even, so that the centre can be cut out of 4:2:0 planes.
        height, width = (
            size if side == short else 2 * round(side * size / short / 2)
            for side in (frame.height, frame.width)
        )
        planes = _planes(_scale(frame, height, width, self.pixels))
        return cut(planes, (height - size) // 4 * 2, (width - size) // 4 * 2, size, size)


def quarter_turns(frame: av.VideoFrame) -> int:
    """How often a frame is to be turned counterclockwise to be upright, as a player does it."""
    return round(frame.rotation / 90) % 4


def native(frame: av.VideoFrame) -> Planes:
    """4:2:0 planes at the frame's own size, cut to even numbers."""
    return _planes(_scale(frame, frame.height // 2 * 2, frame.width // 2 * 2, "yuv420"))


def crop_resize(planes: Planes, box: Box, size: int, pixels: str) -> Planes:
    """Cut `box` out of 4:2:0 planes and resize it to S x S in "rgb" or "yuv420"."""
    top, left, height, width = box.pixels(*planes["y"].shape)
    part = cut(planes, top, left, height, width)
    flat = np.concatenate(
        [part["y"].ravel(), part["uv"][..., 0].ravel(), part["uv"][..., 1].ravel()]
    )
    frame = av.VideoFrame.from_ndarray(flat.reshape(height * 3 // 2, width), "yuv420p")
    frame.color_range, frame.colorspace = ColorRange.MPEG, Colorspace.ITU601
    return _planes(_scale(frame, size, size, pixels))


def cut(planes: Planes, top: int, left: int, height: int, width: int) -> Planes:
    """Cut a rectangle (even in 4:2:0) out of planes; a view."""
    found = {}
    for name, plane in planes.items():
        k = 2 if name == "uv" else 1
        rows = slice(top // k, (top + height) // k)
        found[name] = plane[rows, left // k : (left + width) // k]
    return found


def flip(planes: Mapping[str, np.ndarray]) -> Planes:
    """Mirror `[..., H, W]` or `[..., H, W, C]` planes left to right; a view."""
    return {k: v[..., ::-1] if k == "y" else v[..., ::-1, :] for k, v in planes.items()}


def mirror(planes: Planes, rows: np.ndarray) -> None:
    """Mirror rows of `[B, T, ...]` planes in place."""
    for name, plane in planes.items():
        # So many at once that the copy between stays in the processor's cache.
        step = max(1, _AT_ONCE // max(1, plane[:1].nbytes))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            plane[part] = flip({name: plane[part]})[name]


def shapes(size: int, pixels: str) -> dict[str, tuple[int, ...]]:
    """Shape of each plane of one S x S frame."""
    if pixels == "rgb":
        return {"rgb": (size, size, 3)}
    return {"y": (size, size), "uv": (size // 2, size // 2, 2)}


def empty(lead: tuple[int, ...], size: int, pixels: str, *, grey: bool = False) -> Planes:
    """Uint8 planes with leading dimensions `lead`: uninitialised, or mid-grey."""
    found = {k: np.empty(lead + shape, np.uint8) for k, shape in shapes(size, pixels).items()}
    if grey:
        for name, plane in found.items():
            plane.fill(_GREY[name])
    return found


def stream(planes: Planes) -> np.ndarray | Planes:
    """Planes as the batch carries them: the RGB array itself, or `{"y", "uv"}`."""
    return planes.get("rgb", planes)


def _scale(frame: av.VideoFrame, height: int, width: int, pixels: str) -> av.VideoFrame:
    same = (frame.height, frame.width) == (height, width)
    if pixels == "rgb":
        if same and frame.format.name == "rgb24":
            return frame
        return _reformatter().reformat(frame, width=width, height=height, format="rgb24")
    tagged = frame.colorspace in _BT601 and frame.color_range in _LIMITED
    if same and tagged and frame.format.name == "yuv420p":
        return frame
    return _reformatter().reformat(
        frame,
        width=width,
        height=height,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU601,
        dst_color_range=ColorRange.MPEG,
    )


def _reformatter() -> VideoReformatter:
    # It caches swscale's tables, which cost more than converting a small frame.
    if not hasattr(_local, "reformatter"):
        _local.reformatter = VideoReformatter()
    return _local.reformatter


def _planes(frame: av.VideoFrame) -> Planes:
    """Planes of an rgb24 or yuv420p frame; views of its memory (which they keep) where they can."""
    if frame.format.name == "rgb24":
        return {"rgb": frame.to_ndarray()}
    height, width = frame.height, frame.width
    # `to_ndarray` would join the planes (a copy), only to have them taken apart again.
    luma, *chroma = frame.planes
    uv = np.empty((height // 2, width // 2, 2), np.uint8)
    for channel, plane in enumerate(chroma):
        uv[..., channel] = _view(plane, height // 2, width // 2)
    return {"y": _view(luma, height, width), "uv": uv}


def _view(plane: Any, height: int, width: int) -> np.ndarray:
    # Lines are padded to what the decoder's vector instructions like.
    return np.frombuffer(plane, np.uint8).reshape(height, -1)[:, :width]
