"""What the samplers share: random numbers, rectangles, and blocks that grow to an exact count.

B masks, M blocks a mask, T frames (tubelets), H rows, W columns, N = T H W tokens. A token's id is
`(frame H + row) W + column`, as in `models.vit`.

**Growing.** A block of a given aspect and place is a family of nested rectangles: one of h rows has
`floor(u (H - h + 1))` rows above it, where u is uniform in (0, 1), so that at every size all places
are equally likely, the last row and column among them, and from one size to the next one row or
column joins at one of its borders. The *birth* of a token is the size at which the block reaches
it. The K tokens with the smallest births are therefore a compact block of exactly K tokens: a
rectangle, the last row or column of which may be partly filled, from an end that is drawn at
random. With several blocks, which grow together, the birth is the least of theirs; with tokens that
may not be taken, theirs is infinite. No step rejects and draws again, and mirroring u mirrors the
block, so nothing is preferred on the left or above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jepa import hashing
from jepa.errors import UserError

Grid = tuple[int, int, int]

UNBIASED, PUBLISHED = "unbiased", "published"
DISTRIBUTIONS = (UNBIASED, PUBLISHED)

# Draws of a place after which the published distributions give up (see `multiblock`, `tubes`).
ATTEMPTS = 16

# Purposes of `hashing` from here on are masks'.
_PURPOSE = 1 << 40
# Beside a birth, of the order of 1, what decides between tokens of the same row or column.
_TIE = 1e-9
# Frames outside a block's window are reached after all of those in it.
_FAR = 1e3


def uniforms(
    seed: int, indices: np.ndarray, count: int, *, stream: int = 0, attempt: int = 0
) -> np.ndarray:
    """Float64 [B, count] in (0, 1), a hash of (seed, index [B], stream, attempt, number)."""
    first = _PURPOSE + (stream << 32) + (attempt << 16)
    drawn = hashing.uniform(seed, np.asarray(indices)[:, None], first + np.arange(count))
    return drawn + 2.0**-54


def between(uniform: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Uniform numbers of (0, 1) stretched to `limits`."""
    return limits[0] + uniform * (limits[1] - limits[0])


def places(uniform: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """Integers in 0 .. choices - 1, equally likely."""
    return np.minimum(uniform * choices, choices - 1).astype(np.int64)


def rectangle(
    area: np.ndarray, aspect: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a rectangle of about `area` tokens, cut to `height` by `width`.

    Args:
      area: tokens wanted; aspect: rows over columns.
    """
    rows = np.rint(np.sqrt(area * aspect))
    columns = np.rint(np.sqrt(area / aspect))
    return (
        np.clip(rows, 1, height).astype(np.int64),
        np.clip(columns, 1, width).astype(np.int64),
    )


def span(first: np.ndarray, length: np.ndarray, size: int) -> np.ndarray:
    """Bool [..., size], true from `first` for `length`; both [...]."""
    distance = np.arange(size) - np.asarray(first)[..., None]
    return (distance >= 0) & (distance < np.asarray(length)[..., None])


def cover(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bool [B, H, W], the union of blocks given as spans [B, M, H] and [B, M, W]."""
    union = np.zeros((len(rows), rows.shape[-1], columns.shape[-1]), bool)
    for block in range(rows.shape[1]):
        union |= rows[:, block, :, None] & columns[:, block, None, :]
    return union


def births(anchors: np.ndarray, aspect: np.ndarray | float, height: int, width: int) -> np.ndarray:
    """Sizes at which blocks reach each token.

    Args:
      anchors: [..., 2] in (0, 1), the u of the rows and of the columns.
      aspect: [...], rows over columns.

    Returns:
      [..., H, W] square roots of areas, in tokens.
    """
    root = np.sqrt(np.asarray(aspect, np.float64))[..., None]
    rows = _lengths(anchors[..., 0], height) / root
    columns = _lengths(anchors[..., 1], width) * root
    return np.maximum(rows[..., :, None], columns[..., None, :])


def _lengths(anchor: np.ndarray, size: int) -> np.ndarray:
    """The least lengths of nested intervals that hold each of `size` places; [...] -> [..., size].

    That of length n begins at floor(u (size - n + 1)); solved for n.
    """
    u = anchor[..., None]
    place = np.arange(size)
    begins = np.floor(size + 1 - (place + 1) / u) + 1
    ends = np.ceil((place + 1 - u * (size + 1)) / (1 - u))
    return np.clip(np.maximum(begins, ends), 1, size)


def later(born: np.ndarray, first: np.ndarray, length: np.ndarray, frames: int) -> np.ndarray:
    """Births [B, H, W] of a block in `length` [B] frames from `first` on -> [B, H, W, T]."""
    distance = np.arange(frames) - first[:, None]
    outside = np.maximum(np.maximum(-distance, distance - length[:, None] + 1), 0)
    return born[..., None] + _FAR * outside[:, None, None, :]


def smallest(born: np.ndarray, mirrors: np.ndarray, count: int) -> np.ndarray:
    """The `count` tokens born first in each row, ties in reading order from a random corner.

    Args:
      born: [B, ...] births over a grid of any number of axes.
      mirrors: [B, axes] in (0, 1), which axes are read backwards.

    Returns:
      Bool [B, ...], `count` of them true in each row.
    """
    batch, *sizes = born.shape
    tie = np.zeros(batch)
    for axis, size in enumerate(sizes):
        forward = np.arange(size)
        read = np.where(mirrors[:, axis, None] < 0.5, forward, forward[::-1])
        tie = tie[..., None] * size + read.reshape(batch, *[1] * axis, size)
    key = (born + _TIE * tie).reshape(batch, -1)
    if count >= key.shape[1]:
        return np.ones(born.shape, bool)
    # Values are found three times as fast as places.
    taken = key <= np.partition(key, count - 1, axis=1)[:, count - 1 : count]
    if np.count_nonzero(taken) != batch * count:  # equal keys, by a freak of rounding
        taken[:] = False
        first = np.argpartition(key, count - 1, axis=1)[:, :count]
        np.put_along_axis(taken, first, True, axis=1)
    return taken.reshape(born.shape)


def lowest(mask: np.ndarray, count: int) -> np.ndarray:
    """The first `count` true tokens of each row of bool [B, N], which must have as many."""
    return mask & (np.cumsum(mask, axis=1) <= count)


def token_ids(mask: np.ndarray, frames: int = 1) -> np.ndarray:
    """Sorted ids int32 [B, K] of the true tokens of bool [B, cells], equally many in each row.

    Args:
      mask: over the cells of one frame, and then for all `frames`; or over all tokens.
    """
    batch, cells = mask.shape
    # Faster than the columns that `nonzero` gives of two axes.
    flat = np.flatnonzero(mask).reshape(batch, 1, -1)
    chosen = (flat - cells * np.arange(batch)[:, None, None]).astype(np.int32)
    ids = chosen + np.int32(cells) * np.arange(frames, dtype=np.int32)[:, None]
    return ids.reshape(batch, -1)


def lowest_ids(mask: np.ndarray, frames: int, count: int) -> np.ndarray:
    """As `token_ids`, of rows with different numbers of true cells: the `count` lowest ids."""
    starts = mask.shape[1] * np.arange(frames)[:, None]
    ids = np.empty((len(mask), count), np.int32)
    for row, cells in enumerate(mask):
        ids[row] = (starts + np.flatnonzero(cells)).reshape(-1)[:count]
    return ids


def fewest(minimum: float, tokens: int) -> int:
    """The tokens of `tokens` that a share `minimum` asks for, at least one."""
    return max(1, math.ceil(minimum * tokens - 1e-9))


class Checker:
    """Raises UserErrors that name a key of a config's section, its value and the mend."""

    def __init__(self, section: str, options: object):
        self._section, self._options = section, options

    def __call__(self, holds: Callable[[Any], bool], key: str, mend: str) -> None:
        """Raises UserError unless `holds` of the value of `key`."""
        value = getattr(self._options, key)
        if not holds(value):
            raise UserError(f"{self._section}.{key} is {value!r}; {mend}")

    def pair(self, key: str, highest: float) -> None:
        """Raises UserError unless `key` is (low, high) above 0 and at most `highest`."""
        limit = f" up to {highest:g}" if highest < math.inf else ""

        def holds(value: Any) -> bool:
            if not isinstance(value, tuple) or len(value) != 2 or not all(map(_real, value)):
                return False
            return 0 < value[0] <= value[1] <= highest

        self(holds, key, f"it must be (low, high), above 0{limit}")

    def whole(self, key: str, highest: int) -> None:
        """Raises UserError unless `key` is an integer from 1 to `highest`."""
        self(
            lambda value: isinstance(value, int) and 1 <= value <= highest and value is not True,
            key,
            f"it must be a whole number from 1 to {highest}",
        )

    def share(self, key: str) -> None:
        """Raises UserError unless `key` is a number from 0 to below 1."""
        self(lambda value: _real(value) and 0 <= value < 1, key, "it must be from 0 to below 1")

    def common(self) -> None:
        """Checks `grid`, `minimum` and `distribution`."""
        self(
            lambda grid: len(grid) == 3 and all(isinstance(n, int) and n >= 1 for n in grid),
            "grid",
            "it must be three whole numbers: tubelets, rows and columns of tokens",
        )
        self.share("minimum")
        self(
            lambda value: value in DISTRIBUTIONS,
            "distribution",
            f"it must be one of {', '.join(DISTRIBUTIONS)}",
        )


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any) -> Any:
    """A number as the pair (number, number), a list as a tuple: how ConfigDicts give pairs."""
    if _real(value):
        return float(value), float(value)
    return tuple(value) if isinstance(value, list) else value
