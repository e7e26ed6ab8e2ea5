"""Which frames, and every other random choice, as a pure function of (seed, position).

B batch, T frames, n frames in a clip. A position is the number of a sample in the endless global
order; the sample at position p of seed s makes the same choices on every host, in every worker and
after every restart: choices are hashes of (seed, position, purpose), see `jepa.hashing`.
"""

from __future__ import annotations

import enum

import numpy as np

from jepa.hashing import uniform


class Purpose(enum.IntEnum):
    """What a random number is for; numbers for different purposes are independent."""

    ORDER = 0
    TASK = 1
    QUERY = 2
    TARGET = 3
    WINDOW = 4
    FRAME = 5
    FLIP = 6
    CROP = 8  # and the three after it: area, ratio, top, left
    REPLACEMENT = 1 << 10  # plus the attempt
    PAIR = 1 << 12  # times the pair's number, plus TASK, QUERY or TARGET
    PERMUTATION = 1 << 20  # plus the frame
    EPOCH = 1 << 32  # plus the epoch


def frame_indices(
    count: np.ndarray,
    rate: np.ndarray,
    *,
    frames: int,
    fps: float | None,
    offset: np.ndarray,
) -> np.ndarray:
    """Choose T frames of each clip.

    Without `fps` the clip is cut into T equal stretches and each gives the frame at the same
    relative place `offset`, so motion keeps its pace. With `fps` the frames are `rate / fps` apart
    in a window that lies at `offset` of the room there is. A clip that is too short for either
    gives its frames in order and then repeats the last one.

    Args:
        count: int [B], frames in each clip.
        rate: float [B], frames per second of each clip.
        frames: T.
        fps: Target rate in frames per second, or None.
        offset: float [B] in [0, 1); 0.5 for the middle.

    Returns:
        int64 [B, T], non-decreasing in each row.
    """
    count = np.asarray(count, np.int64)[:, None]
    offset = np.asarray(offset, np.float64)[:, None]
    steps = np.arange(frames)
    if fps is None:
        spread = np.floor((steps + offset) * count / frames)
        chosen = np.where(count >= frames, spread, steps)
    else:
        step = np.asarray(rate, np.float64)[:, None] / fps
        room = np.maximum(count - 1 - step * (frames - 1), 0.0)
        # The small number keeps products such as 3 * (8 / 24) from falling below their integer.
        chosen = np.floor(offset * (np.floor(room) + 1)) + np.floor(steps * step + 1e-6)
    return np.minimum(chosen.astype(np.int64), count - 1)


def control_frames(
    indices: np.ndarray, control: str, *, seed: int, positions: np.ndarray
) -> np.ndarray:
    """Take the order of frames, or all but one, out of int [B, T] `indices`.

    "single" repeats one random frame of each row, "shuffled" permutes each row at random; "none"
    and "blank" (which is a matter of pixels) change nothing.
    """
    batch, frames = indices.shape
    if control == "single":
        chosen = (uniform(seed, positions, Purpose.FRAME) * frames).astype(np.int64)
        return np.repeat(indices[np.arange(batch), chosen][:, None], frames, axis=1)
    if control == "shuffled":
        purposes = Purpose.PERMUTATION + np.arange(frames)
        order = np.argsort(uniform(seed, positions[:, None], purposes[None]), axis=1)
        return np.take_along_axis(indices, order, axis=1)
    return indices
