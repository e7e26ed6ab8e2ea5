"""Which clips an encoder takes for alike: exact nearest neighbours, and a picture of them.

Letters: Q queries, N clips, S dimensions, k neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jepa.evaluation import pictures

_CHUNK = 1024
_INK, _SOFT, _PAPER = (29, 33, 41), (93, 101, 115), (255, 255, 255)


def nearest(
    queries: np.ndarray, vectors: np.ndarray, k: int, *, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest vectors by cosine similarity, exactly.

    Args:
      queries: `[Q, S]`, of any length.
      vectors: `[N, S]`, of any length.
      k: neighbours wanted.
      own: int `[Q]`, the place of each query among the vectors, which is left out; None if the
        queries are no vectors of these.

    Returns:
      Places int `[Q, k]`, nearest first (of equal ones the first in order), and similarities.

    Raises:
      ValueError: fewer than k vectors to choose from.
    """
    available = len(vectors) - (own is not None)
    if not 1 <= k <= available:
        raise ValueError(f"k is {k}, but there are {available} vectors to choose from")
    base = _unit(vectors)
    places = np.empty((len(queries), k), np.int64)
    similarities = np.empty((len(queries), k))
    for start in range(0, len(queries), _CHUNK):
        part = slice(start, start + _CHUNK)
        scores = _unit(queries[part]) @ base.T
        if own is not None:
            scores[np.arange(len(scores)), own[part]] = -np.inf
        # Everything as near as the k-th takes part, so that ties are settled by order.
        least = np.partition(scores, -k, axis=1)[:, -k]
        for row, line in enumerate(scores):
            near = np.flatnonzero(line >= least[row])
            order = near[np.argsort(-line[near], kind="stable")][:k]
            places[start + row], similarities[start + row] = order, line[order]
    return places, similarities


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def sheet(
    clips: Mapping[int, np.ndarray],
    queries: Sequence[int],
    places: np.ndarray,
    similarities: np.ndarray,
    *,
    words: Mapping[int, str] | None = None,
    height: int = 64,
    frames: int = 3,
) -> np.ndarray:
    """Draws a row a query: the clip, and its neighbours from left to right.

    Args:
      clips: uint8 `[T, H, W, 3]` frames of every clip that appears, by number.
      queries: numbers of the queries.
      places, similarities: `[Q, k]` of their neighbours; places are numbers of clips.
      words: what to write below a clip, by number.
      height: of a frame in pixels.
      frames: to show of a clip: evenly spread, the first and the last among them.

    Returns:
      A picture uint8 `[rows, columns, 3]`.
    """
    words = words or {}
    shown = max(1, min(frames, *(len(clip) for clip in clips.values())))
    cells = {number: pictures.strip(clip, shown, height=height) for number, clip in clips.items()}
    width = max(cell.shape[1] for cell in cells.values())
    size, gap = 11, 12
    line, head = size + 4, size + 8
    font = ImageFont.load_default(size)
    step_x, step_y = width + gap, height + 2 * line + gap
    columns = places.shape[1] + 1
    picture = Image.new("RGB", (step_x * columns + 2 * gap, head + step_y * len(queries)), _PAPER)
    draw = ImageDraw.Draw(picture)

    def text(x: int, y: int, said: str, ink: tuple[int, int, int]) -> None:
        while said and draw.textlength(said, font=font) > width:
            said = said[:-2].rstrip("…") + "…" if len(said) > 2 else ""
        draw.text((x, y), said, fill=ink, font=font)

    text(gap, 3, "query", _INK)
    text(step_x + 2 * gap, 3, "nearest first", _INK)
    for row, query in enumerate(queries):
        y = head + row * step_y
        for column, number in enumerate([query, *places[row].tolist()]):
            x = gap + column * step_x + (gap if column else 0)
            picture.paste(Image.fromarray(cells[number]), (x, y))
            similarity = "" if column == 0 else f"{similarities[row, column - 1]:.3f}"
            text(x, y + height + 2, words.get(number, "") or similarity, _INK)
            if words.get(number):
                text(x, y + height + 2 + line, similarity, _SOFT)
        x = gap + step_x - gap // 2 + gap // 4
        draw.line([(x, y), (x, y + height)], fill=_SOFT, width=1)
    return np.asarray(picture)
