"""Tube masks of V-JEPA (arXiv 2404.08471, section 3.2), V-JEPA 2 and V-JEPA 2.1.

The target is a union of blocks that last for the whole clip, the context is all the rest; a clip
gets one such pair for each kind of mask ("short": 8 blocks of 15 %, "long": 2 of 70 %). B clips;
Kc and Kt tokens of context and target; T, H, W and N as in `blocks`.

**Counts.** Kt is the expected size of the union, measured once on 1,536 masks from fixed random
numbers, or the share `masked` where that is given; Kc = N - Kt. Mind what the authors' code
does instead: it cuts contexts and targets to the smallest of a batch (of 24, a device), so that its
encoder sees fewer tokens than a union leaves on average (16x16: 23 % and 5 %, not 38 % and 18 %).
`masked` of 0.77 and 0.95 gives the encoder as many as there.

**unbiased** (default). The blocks of a mask, each of its own aspect, grow together until their
union has Kt tokens, as `blocks` tells.

**published.** What the authors' code draws, for comparisons: scale, aspect and length from
independent random numbers, one size for all blocks of a mask, and counts cut by dropping the
highest ids, which are the bottom of the last frames; so Kc + Kt < N. What differs: Kc and Kt are
fixed (the expected smallest of a batch of 24), and sizes are drawn for each clip, not once for a
batch, since a clip must not depend on its batch. A clip whose context or target is too small has
its places drawn again, 16 times at the most; then its blocks grow as in the other distribution.
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

_BATCH = 24
_BATCHES = 64
_MEASUREMENT = 255


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of mask.

    Attributes:
      name: of the pair in a sample.
      blocks: how many blocks make the union.
      scale: least and largest share of a frame's tokens in a block.
      aspect: least and largest ratio of its rows to its columns.
      temporal_scale: least and largest share of the tubelets for which a block lasts.
      masked: share of all tokens in the target, when it is not to follow from the blocks.
    """

    name: str
    blocks: int
    scale: tuple[float, float]
    aspect: tuple[float, float] = (0.75, 1.5)
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    masked: float | None = None


SHORT = Kind("short", 8, (0.15, 0.15))
LONG = Kind("long", 2, (0.7, 0.7))
# V-JEPA 2.1's for images.
IMAGE = Kind("image", 10, (0.15, 0.15))


@dataclasses.dataclass(frozen=True)
class Tubes:
    """Pairs of a context and a target, a pair for each kind of mask.

    Attributes:
      grid: tubelets, rows and columns of tokens.
      kinds: of masks, by unique names.
      minimum: least share of the tokens that a context must have; a config with less is refused.
      distribution: "unbiased" or "published".
      section: of the config, for messages.

    Raises:
      UserError: on a value out of range, or blocks that leave too little context.
    """

    grid: Grid
    kinds: tuple[Kind, ...] = (SHORT, LONG)
    minimum: float = 0.02
    distribution: str = blocks.UNBIASED
    section: str = dataclasses.field(default="masks", compare=False, repr=False)

    def __post_init__(self) -> None:
        check = blocks.Checker(self.section, self)
        check.common()
        names = [kind.name for kind in self.kinds]
        if not 1 <= len(names) == len(set(names)) < _MEASUREMENT:
            raise UserError(f"{self.section}.kinds has the names {names}; give at least one, once")
        for kind in self.kinds:
            self._check(kind)

    @staticmethod
    def parse(config: Mapping[str, Any], grid: Grid, section: str = "masks") -> Tubes:
        """Makes one from a section of the config; keys left out take their defaults.

        `kinds` maps names to the other attributes of `Kind`; scales may be one number.
        """
        known = {field.name for field in dataclasses.fields(Tubes)} - {"grid", "section"}
        values = dict(config.items())
        check_known(section, values, known)
        if "kinds" in values:
            if not hasattr(values["kinds"], "items"):
                raise UserError(
                    f"{section}.kinds is {values['kinds']!r}; give a section for each kind, such "
                    "as {'short': {'blocks': 8, 'scale': 0.15}}"
                )
            values["kinds"] = tuple(
                _parse_kind(name, kind, f"{section}.kinds.{name}")
                for name, kind in values["kinds"].items()
            )
        return Tubes(grid, **values, section=section)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """{name of the kind: {"context": Kc, "target": Kt}}."""
        pairs = {kind.name: _counts(self, kind) for kind in self.kinds}
        return {name: {"context": kc, "target": kt} for name, (kc, kt) in pairs.items()}

    def spec(self, batch: int) -> dict[str, Any]:
        """(shape, dtype name) of each array of `sample` for a batch of that size."""
        return {
            name: {part: ((batch, count), "int32") for part, count in pair.items()}
            for name, pair in self.counts.items()
        }

    def sample(self, seed: int, indices: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Draws masks as a pure function of the seed and each clip's index in the global order.

        Args:
          indices: int [B].

        Returns:
          {name of the kind: {"context": int32 [B, Kc], "target": int32 [B, Kt]}}, sorted token ids
          without a common one.
        """
        indices = np.asarray(indices, np.int64)
        draw = _published if self.distribution == PUBLISHED else _unbiased
        return {
            kind.name: draw(self, kind, seed, indices, stream)
            # By name, since a config may forget the order that its keys were given in.
            for stream, kind in enumerate(sorted(self.kinds, key=lambda kind: kind.name))
        }

    def _check(self, kind: Kind) -> None:
        section = f"{self.section}.kinds.{kind.name}"
        check = blocks.Checker(section, kind)
        check.whole("blocks", 1024)
        for key, most in (("scale", 1), ("aspect", np.inf), ("temporal_scale", 1)):
            check.pair(key, most)
        if kind.masked is not None:
            check.share("masked")
            if self.distribution == PUBLISHED:
                raise UserError(
                    f"{section}.masked is {kind.masked:g}, but {self.section}.distribution is "
                    "'published', where counts follow from the blocks; take one of them out"
                )
        wanted = blocks.fewest(self.minimum, int(np.prod(self.grid)))
        context, target = _counts(self, kind)
        if context >= wanted and target:
            return
        keys = "blocks and scale" if kind.masked is None else "masked"
        few = f"{context} tokens for the context, where {self.section}.minimum asks for {wanted}"
        raise UserError(
            f"{section} is {kind.blocks} blocks of scale {kind.scale}, masked {kind.masked}; on a "
            f"grid of {'x'.join(map(str, self.grid))} that leaves "
            f"{few if target else 'no token for the target'}; {'lower' if target else 'raise'} "
            f"its {keys}, or use larger frames"
        )


def _parse_kind(name: str, config: Mapping[str, Any], section: str) -> Kind:
    if not hasattr(config, "items"):
        raise UserError(
            f"{section} is {config!r}; give a section, such as {{'blocks': 8, 'scale': 0.15}}"
        )
    known = {field.name for field in dataclasses.fields(Kind)} - {"name"}
    values = dict(config.items())
    check_known(section, values, known)
    for key in ("blocks", "scale"):
        if key not in values:
            raise UserError(f"{section} has no key {key!r}; give it, as in {key}={_EXAMPLES[key]}")
    for key in ("scale", "aspect", "temporal_scale"):
        if key in values:
            values[key] = blocks.plain(values[key])
    return Kind(name, **values)


_EXAMPLES = {"blocks": "8", "scale": "0.15"}


def _unbiased(
    masks: Tubes, kind: Kind, seed: int, indices: np.ndarray, stream: int
) -> dict[str, np.ndarray]:
    frames = masks.grid[0] if _whole(masks.grid, kind) else 1
    target = _grown(masks, kind, seed, indices, stream).reshape(len(indices), -1)
    return {
        "context": blocks.token_ids(~target, frames),
        "target": blocks.token_ids(target, frames),
    }


def _grown(masks: Tubes, kind: Kind, seed: int, indices: np.ndarray, stream: int) -> np.ndarray:
    """Targets that grew: bool [B, H, W] for all frames alike, or else [B, T, H, W]."""
    (frames, height, width), batch = masks.grid, len(indices)
    drawn = blocks.uniforms(seed, indices, 5 * kind.blocks + 3, stream=stream)
    each = drawn[:, :-3].reshape(batch, kind.blocks, 5)
    aspect = blocks.between(each[..., 0], kind.aspect)
    count = _target_count(masks, kind)
    if _whole(masks.grid, kind):
        born = blocks.births(each[..., 1:3], aspect, height, width).min(axis=1)
        return blocks.smallest(born, drawn[:, -3:-1], count // frames)
    length = _length(masks.grid, kind, each[..., 3])
    first = blocks.places(each[..., 4], frames - length + 1)
    born = np.full((batch, height, width, frames), np.inf)
    for i in range(kind.blocks):
        grown = blocks.births(each[:, i, 1:3], aspect[:, i], height, width)
        np.minimum(born, blocks.later(grown, first[:, i], length[:, i], frames), out=born)
    return blocks.smallest(born, drawn[:, -3:], count).transpose(0, 3, 1, 2)


def _published(
    masks: Tubes, kind: Kind, seed: int, indices: np.ndarray, stream: int
) -> dict[str, np.ndarray]:
    batch, tokens = len(indices), int(np.prod(masks.grid))
    frames = masks.grid[0] if _whole(masks.grid, kind) else 1
    kept, masked = _counts(masks, kind)
    size = _size(masks.grid, kind, blocks.uniforms(seed, indices, 3, stream=stream, attempt=1))
    target = np.zeros((batch, tokens // frames), bool)
    pending = np.arange(batch)
    for attempt in range(2, blocks.ATTEMPTS + 2):
        drawn = blocks.uniforms(
            seed, indices[pending], 3 * kind.blocks, stream=stream, attempt=attempt
        )
        union = _union(masks.grid, kind, [n[pending] for n in size], drawn)
        found = union.sum(axis=1) * frames
        enough = (found >= masked) & (tokens - found >= kept)
        target[pending[enough]] = union[enough]
        pending = pending[~enough]
        if not len(pending):
            break
    else:
        grown = _grown(masks, kind, seed, indices[pending], stream)
        target[pending] = grown.reshape(len(pending), -1)
    return {
        "context": blocks.lowest_ids(~target, frames, kept),
        "target": blocks.lowest_ids(target, frames, masked),
    }


def _whole(grid: Grid, kind: Kind) -> bool:
    """Whether every block lasts for all frames."""
    return max(int(grid[0] * kind.temporal_scale[0]), 1) == grid[0]


def _length(grid: Grid, kind: Kind, uniform: np.ndarray) -> np.ndarray:
    share = blocks.between(uniform, kind.temporal_scale)
    return np.maximum((grid[0] * share).astype(np.int64), 1)


def _size(grid: Grid, kind: Kind, drawn: np.ndarray) -> list[np.ndarray]:
    """Frames, rows and columns, each [B], of the blocks of published masks; `drawn` [B, 3]."""
    _, height, width = grid
    area = np.floor(height * width * blocks.between(drawn[:, 1], kind.scale))
    aspect = blocks.between(drawn[:, 2], kind.aspect)
    rows, columns = blocks.rectangle(np.maximum(area, 1), aspect, height, width)
    return [_length(grid, kind, drawn[:, 0]), rows, columns]


def _union(grid: Grid, kind: Kind, size: list[np.ndarray], drawn: np.ndarray) -> np.ndarray:
    """The union of blocks of one size at random places; `drawn` [B, 3 blocks].

    Returns:
      Bool [B, H W] for all frames alike where blocks last for all of them, or else [B, N].
    """
    batch = len(drawn)
    uniform = drawn.reshape(batch, kind.blocks, 3)
    spans = []
    for axis, extent in enumerate(grid):
        length = np.repeat(size[axis][:, None], kind.blocks, axis=1)
        first = blocks.places(uniform[..., axis], extent - length + 1)
        spans.append(blocks.span(first, length, extent))
    frames, rows, columns = spans
    if _whole(grid, kind):
        return blocks.cover(rows, columns).reshape(batch, -1)
    planes = (rows[..., :, None] & columns[..., None, :]).reshape(batch, kind.blocks, -1)
    return blocks.cover(frames, planes).reshape(batch, -1)


def _counts(masks: Tubes, kind: Kind) -> tuple[int, int]:
    """Kc and Kt."""
    target, tokens = _target_count(masks, kind), int(np.prod(masks.grid))
    if masks.distribution != PUBLISHED:
        return tokens - target, target
    wanted = blocks.fewest(masks.minimum, tokens)
    _, least_context, least_target = _measured(masks.grid, kind)
    return (
        min(max(least_context, wanted), tokens - target),
        min(max(least_target, 1), target),
    )


def _target_count(masks: Tubes, kind: Kind) -> int:
    """Tokens in targets that grow: whole tubes where blocks are."""
    frames, height, width = masks.grid
    share = kind.masked
    if share is None:
        share = _measured(masks.grid, kind)[0] / (frames * height * width)
    if _whole(masks.grid, kind):
        return round(share * height * width) * frames
    return round(share * frames * height * width)


@functools.lru_cache(maxsize=64)
def _measured(grid: Grid, kind: Kind) -> tuple[float, int, int]:
    """Mean union; smallest context and smallest target of a batch of 24, rounded down.

    Over 64 batches, each with one size of blocks, as the authors' code draws them.
    """
    frames = grid[0]
    if frames > 1 and _whole(grid, kind):
        mean, context, target = _measured((1, *grid[1:]), kind)
        return mean * frames, context * frames, target * frames
    sizes = blocks.uniforms(0, np.arange(_BATCHES), 3, stream=_MEASUREMENT)
    # The aspect, which matters most, in even steps.
    sizes[:, 2] = (np.arange(_BATCHES) + 0.5) / _BATCHES
    size = [np.repeat(n, _BATCH) for n in _size(grid, kind, sizes)]
    samples = _BATCHES + np.arange(_BATCHES * _BATCH)
    drawn = blocks.uniforms(0, samples, 3 * kind.blocks, stream=_MEASUREMENT)
    unions = _union(grid, kind, size, drawn).sum(axis=1).reshape(_BATCHES, _BATCH)
    context = int((np.prod(grid) - unions.max(axis=1)).mean())
    return float(unions.mean()), context, int(unions.min(axis=1).mean())
