"""Multi-block masks of I-JEPA (arXiv 2301.08243, section 3 and appendix A.1).

M target blocks are predicted, each by itself, from one large context block without the targets.
B samples, M targets, Kc and Kt tokens of the context and of one target; T, H, W and N as in
`blocks`. On video (T > 1) all blocks last for the whole clip.

**Counts.** The authors' code lets block sizes vary between batches and cuts the context to the
smallest of a batch; here sizes are fixed. Kt is the mean area of a target. Kc is the expected
smallest context in a batch of 128 (theirs, a device), measured once on 2,048 masks from fixed
random numbers, but at most N - M Kt, which is there even if no two targets overlap. So the range
of `target_scale` counts by its mean, and `context_scale` only through Kc; aspects and places vary.

**unbiased** (default). Blocks grow to their counts, as `blocks` tells: targets over the whole grid,
the context block until it holds Kc tokens that are in no target.

**published.** What the authors' code draws, for comparisons: one random number drives scale and
aspect of the four targets, no block ever touches the last row or column, and counts are cut by
dropping the highest ids, that is, from the bottom. What differs: counts are fixed (Kt the smallest
area that can be drawn, Kc as above), and sizes are drawn for each sample, not once for a batch,
since a sample must not depend on its batch. A sample with fewer than Kc tokens left has its places
drawn again, 16 times at the most; then its targets share one place. The authors' code draws again
without end when a grid is too small for it; here that is a UserError.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jepa.errors import UserError, check_known
from jepa.masks import blocks
from jepa.masks.blocks import PUBLISHED, Grid

_BATCH = 128
_BATCHES = 16
_AREAS = 1024
# The streams of random numbers: of samples, and of the measurement of counts.
_SAMPLES, _MEASUREMENT = 0, 255


@dataclasses.dataclass(frozen=True)
class Multiblock:
    """M target blocks and one context block without them.

    Attributes:
      grid: tubelets, rows and columns of tokens.
      targets: M.
      target_scale: least and largest share of a frame's tokens in a target.
      target_aspect: least and largest ratio of its rows to its columns.
      context_scale: share of the context block, before the targets are taken out.
      context_tokens: Kc in one frame, when it is not to follow from the scales.
      minimum: least share of the tokens that the context must have; a config with less is refused.
      distribution: "unbiased" or "published".
      section: of the config, for messages.

    Raises:
      UserError: on a value out of range, or targets that leave too little context.
    """

    grid: Grid
    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    context_tokens: int | None = None
    minimum: float = 0.02
    distribution: str = blocks.UNBIASED
    section: str = dataclasses.field(default="masks", compare=False, repr=False)

    def __post_init__(self) -> None:
        check = blocks.Checker(self.section, self)
        check.common()
        check.whole("targets", 1024)
        for key, highest in (("target_scale", 1), ("target_aspect", np.inf), ("context_scale", 1)):
            check.pair(key, highest)
        if self.distribution == PUBLISHED and min(self.grid[1:]) < 2:
            raise UserError(
                f"{self.section}.distribution is 'published', whose blocks leave out the last row "
                f"and column, of which the grid has {self.grid[1]} and {self.grid[2]}; use "
                "'unbiased' or larger frames"
            )
        self._check_context(check)

    @staticmethod
    def parse(config: Mapping[str, Any], grid: Grid, section: str = "masks") -> Multiblock:
        """Makes one from a section of the config; keys left out take their defaults."""
        known = {field.name for field in dataclasses.fields(Multiblock)} - {"grid", "section"}
        values = dict(config.items())
        check_known(section, values, known)
        for key in ("target_scale", "target_aspect", "context_scale"):
            if key in values:
                values[key] = blocks.plain(values[key])
        return Multiblock(grid, **values, section=section)

    @property
    def counts(self) -> dict[str, int]:
        """{"context": Kc, "targets": Kt}, over all frames."""
        context, target = _cells(self)
        return {"context": context * self.grid[0], "targets": target * self.grid[0]}

    def spec(self, batch: int) -> dict[str, Any]:
        """(shape, dtype name) of each array of `sample` for a batch of that size."""
        counts = self.counts
        return {
            "context": ((batch, counts["context"]), "int32"),
            "targets": ((batch, self.targets, counts["targets"]), "int32"),
        }

    def sample(self, seed: int, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Draws masks as a pure function of the seed and each sample's index in the global order.

        Args:
          indices: int [B].

        Returns:
          Sorted token ids, int32: "context" [B, Kc] and "targets" [B, M, Kt]; no token is in the
          context and in a target, while targets may overlap.
        """
        indices = np.asarray(indices, np.int64)
        draw = _published if self.distribution == PUBLISHED else _unbiased
        context, targets = draw(self, seed, indices)
        batch, frames, cells = len(indices), self.grid[0], self.grid[1] * self.grid[2]
        target_ids = blocks.token_ids(targets.reshape(-1, cells), frames)
        return {
            "context": blocks.token_ids(context.reshape(batch, cells), frames),
            "targets": target_ids.reshape(batch, self.targets, -1),
        }

    def _check_context(self, check: blocks.Checker) -> None:
        cells = self.grid[1] * self.grid[2]
        wanted = blocks.fewest(self.minimum, cells)
        most = _most_context(self)
        if most < wanted:
            raise UserError(
                f"{self.section}.targets is {self.targets} and {self.section}.target_scale is "
                f"{self.target_scale}, which on a grid of {self.grid[1]}x{self.grid[2]} leave "
                f"{max(most, 0)} tokens for the context where {self.section}.minimum asks for "
                f"{wanted}; lower one of them, or use larger frames"
            )
        if self.context_tokens is not None:
            check.whole("context_tokens", most)


def _unbiased(masks: Multiblock, seed: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Context bool [B, H, W] and targets bool [B, M, H, W]."""
    (_, height, width), count = masks.grid, masks.targets
    batch = len(indices)
    context_count, target_count = _cells(masks)
    drawn = blocks.uniforms(seed, indices, 5 * count + 4, stream=_SAMPLES)
    each, rest = drawn[:, : 5 * count].reshape(batch * count, 5), drawn[:, 5 * count :]
    aspect = blocks.between(each[:, 0], masks.target_aspect)
    born = blocks.births(each[:, 1:3], aspect, height, width)
    targets = blocks.smallest(born, each[:, 3:], target_count)
    targets = targets.reshape(batch, count, height, width)
    # The context block has the shape of the grid, which on a square one is the published aspect 1.
    born = blocks.births(rest[:, :2], height / width, height, width)
    born[targets.any(axis=1)] = np.inf
    return blocks.smallest(born, rest[:, 2:], context_count), targets


def _published(masks: Multiblock, seed: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_unbiased`."""
    context_count, target_count = _cells(masks)
    count = masks.targets
    _, height, width = masks.grid
    sizes = blocks.uniforms(seed, indices, 2, stream=_SAMPLES)
    target_size = _target_size(masks, sizes[:, 0], 1)
    context_size = _context_size(masks, sizes[:, 1], 1)
    context = np.zeros((len(indices), height * width), bool)
    targets = np.zeros((len(indices), count, height * width), bool)
    pending = np.arange(len(indices))
    for attempt in range(1, blocks.ATTEMPTS + 2):
        drawn = blocks.uniforms(
            seed, indices[pending], 2 * count + 2, stream=_SAMPLES, attempt=attempt
        )
        if attempt > blocks.ATTEMPTS:
            drawn[:, : 2 * count] = np.tile(drawn[:, :2], count)
        size, around = [n[pending] for n in target_size], [n[pending] for n in context_size]
        free, painted = _paint(masks, size, around, drawn, 1)
        enough = free.sum(axis=1) >= context_count
        done = pending[enough]
        context[done] = blocks.lowest(free[enough], context_count)
        flat = painted[enough].reshape(-1, height * width)
        targets[done] = blocks.lowest(flat, target_count).reshape(-1, count, height * width)
        pending = pending[~enough]
        if not len(pending):
            break
    return context, targets


def _paint(
    masks: Multiblock, size: Any, around: Any, drawn: np.ndarray, margin: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles at random places that keep off the last `margin` rows and columns.

    Args:
      size, around: (rows [B], columns [B]) of the targets and of the context block.
      drawn: [B, 2 M + 2].

    Returns:
      Context block without targets bool [B, H W], targets bool [B, M, H W].
    """
    _, height, width = masks.grid
    batch, count = len(drawn), masks.targets
    pairs = drawn.reshape(batch, count + 1, 2)
    spans = []
    for axis, length in enumerate((height, width)):
        lengths = np.repeat(size[axis][:, None], count + 1, axis=1)
        lengths[:, count] = around[axis]
        first = blocks.places(pairs[..., axis], length - margin - lengths + 1)
        spans.append(blocks.span(first, lengths, length))
    rows, columns = spans
    painted = (rows[..., :, None] & columns[..., None, :]).reshape(batch, count + 1, -1)
    targets = painted[:, :count]
    return painted[:, count] & ~targets.any(axis=1), targets


def _target_size(masks: Multiblock, uniform: np.ndarray, margin: int) -> Any:
    """Rows and columns of targets: one random number for the scale and for the aspect."""
    _, height, width = masks.grid
    area = np.floor(height * width * blocks.between(uniform, masks.target_scale))
    aspect = blocks.between(uniform, masks.target_aspect)
    return blocks.rectangle(np.maximum(area, 1), aspect, height - margin, width - margin)


def _context_size(masks: Multiblock, uniform: np.ndarray, margin: int) -> Any:
    _, height, width = masks.grid
    area = np.floor(height * width * blocks.between(uniform, masks.context_scale))
    aspect = np.full(len(uniform), 1.0 if margin else height / width)
    return blocks.rectangle(np.maximum(area, 1), aspect, height - margin, width - margin)


def _most_context(masks: Multiblock) -> int:
    """Tokens of one frame that are left for the context in every sample."""
    _, height, width = masks.grid
    low, mean, high = _target_areas(masks)
    if masks.distribution != PUBLISHED:
        return height * width - masks.targets * mean
    rows, columns = _context_size(masks, np.array([2.0**-54]), 1)
    return int(rows[0] * columns[0]) - high


@functools.lru_cache(maxsize=64)
def _target_areas(masks: Multiblock) -> tuple[int, int, int]:
    """Least, mean (rounded, at least 1) and largest area of a target."""
    margin = int(masks.distribution == PUBLISHED)
    rows, columns = _target_size(masks, (np.arange(_AREAS) + 0.5) / _AREAS, margin)
    areas = rows * columns
    return int(areas.min()), max(round(float(areas.mean())), 1), int(areas.max())


@functools.lru_cache(maxsize=64)
def _cells(masks: Multiblock) -> tuple[int, int]:
    """Kc and Kt in one frame."""
    low, mean, _ = _target_areas(masks)
    margin = int(masks.distribution == PUBLISHED)
    target = low if margin else mean
    if masks.context_tokens is not None:
        return masks.context_tokens, target
    wanted = blocks.fewest(masks.minimum, masks.grid[1] * masks.grid[2])
    expected = max(_expected_context(masks, margin), wanted)
    return min(expected, _most_context(masks)), target


def _expected_context(masks: Multiblock, margin: int) -> int:
    """Mean over batches, each of one size, of the smallest context in 128 samples."""
    middles = (np.arange(_BATCHES) + 0.5) / _BATCHES
    # Every size of a target meets some size of the context block; 7 is prime to the 16 batches.
    pairing = middles[np.arange(_BATCHES) * 7 % _BATCHES]
    size = [np.repeat(n, _BATCH) for n in _target_size(masks, middles, margin)]
    around = [np.repeat(n, _BATCH) for n in _context_size(masks, pairing, margin)]
    samples = np.arange(_BATCHES * _BATCH)
    drawn = blocks.uniforms(0, samples, 2 * masks.targets + 2, stream=_MEASUREMENT)
    free, _ = _paint(masks, size, around, drawn, margin)
    return int(free.sum(axis=1).reshape(_BATCHES, _BATCH).min(axis=1).mean())
