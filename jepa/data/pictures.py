"""Crops and sizes of many small grey pictures at once, as matrix products.

R pictures, H W pixels of the source, S size.
"""

from __future__ import annotations

import numpy as np

_CHUNK = 4096


def crop_resize(pictures: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Cut a box out of each picture and resize it, linearly between pixels.

    Where pictures become smaller the linear filter is widened by as much, so that nothing is left
    out (antialiasing). Pixels around the box take part where the filter reaches beyond it.

    Args:
        pictures: uint8 [R, H, W].
        boxes: float [R, 4], (top, left, height, width) in shares of H and W.
        size: S.

    Returns:
        uint8 [R, S, S].
    """
    height, width = pictures.shape[1:]
    rows = _weights(boxes[:, 0] * height, boxes[:, 2] * height, height, size)
    columns = _weights(boxes[:, 1] * width, boxes[:, 3] * width, width, size)
    made = rows @ pictures.astype(np.float32) @ columns.transpose(0, 2, 1)
    return np.rint(made).astype(np.uint8)


def centre(pictures: np.ndarray, size: int) -> np.ndarray:
    """The centred square of each picture [R, H, W] at size S: uint8 [R, S, S]."""
    count, height, width = pictures.shape
    if (height, width) == (size, size):
        return pictures
    side = min(height, width)
    tall, wide = side / height, side / width
    box = np.array([[(1 - tall) / 2, (1 - wide) / 2, tall, wide]])
    made = np.empty((count, size, size), np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        made[part] = crop_resize(pictures[part], box, size)
    return made


def _weights(first: np.ndarray, length: np.ndarray, count: int, size: int) -> np.ndarray:
    """What each of `count` pixels gives to each of S, float32 [R, S, count]; rows sum to 1.

    Args:
        first, length: [R], where the S pixels begin and how far they reach, in source pixels.
    """
    scale = length / size
    middle = first[:, None] + (np.arange(size) + 0.5) * scale[:, None]
    distance = np.abs(np.arange(count) + 0.5 - middle[..., None])
    found = np.maximum(1 - distance / np.maximum(scale, 1)[:, None, None], 0)
    return (found / found.sum(axis=-1, keepdims=True)).astype(np.float32)
