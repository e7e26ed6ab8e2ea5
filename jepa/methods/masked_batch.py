"""What the masked methods read of a batch: clips, and images beside them, each with its masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from jepa.methods.base import Batch

# The stream of a second batch, of images, beside the clips; it has a video and masks of its own.
IMAGES = "images"


@dataclasses.dataclass(frozen=True)
class Mask:
    """What one kind of mask hides of a batch.

    Attributes:
      name: of the kind.
      context: int `[B, Kc]`, what is seen.
      targets: int `[B, M, Kt]`, blocks that are predicted, each by itself; or `[B, Kt]`, one block.
      number: of the kind, in a fixed order; its mask token where there is one for each.
    """

    name: str
    context: Any
    targets: Any
    number: int

    @property
    def blocks(self) -> tuple[int, int]:
        """M and Kt."""
        *blocks, size = self.targets.shape[1:]
        return (*blocks, 1)[0], size


def parts(batch: Batch) -> Iterator[tuple[Any, tuple[Mask, ...]]]:
    """(video stream, its masks) of a batch: the clips, and the images where there are any."""
    masks = tuple(_masks(batch["masks"], "", 0))
    yield batch["video"], masks
    if IMAGES in batch:
        images = batch[IMAGES]
        yield images["video"], tuple(_masks(images["masks"], f"{IMAGES}/", len(masks)))


def _masks(masks: Batch, prefix: str, first: int) -> Iterator[Mask]:
    # Not a mapping: a kind of tubes may have that name.
    if not isinstance(masks.get("context", {}), Mapping):
        yield Mask(f"{prefix}blocks", masks["context"], masks["targets"], first)
        return
    for number, name in enumerate(sorted(masks), first):
        yield Mask(f"{prefix}{name}", masks[name]["context"], masks[name]["target"], number)
