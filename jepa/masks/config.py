"""A sampler of masks from a section of the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from jepa.errors import UserError
from jepa.masks.blocks import Grid
from jepa.masks.multiblock import Multiblock
from jepa.masks.tubes import Tubes

SAMPLERS: Mapping[str, type[Multiblock] | type[Tubes]] = {"multiblock": Multiblock, "tubes": Tubes}


class Masks(Protocol):
    """What the loader and the methods use of a sampler; picklable, equal when its masks are."""

    @property
    def grid(self) -> Grid:
        """Tubelets, rows and columns of tokens."""

    @property
    def counts(self) -> dict[str, Any]:
        """Numbers of tokens, by the names of the arrays of `sample`."""

    def spec(self, batch: int) -> dict[str, Any]:
        """(shape, dtype name) of each array of `sample`."""

    def sample(self, seed: int, indices: np.ndarray) -> dict[str, Any]:
        """Token ids of the samples `indices` [B], as a pure function of (seed, index)."""


def from_config(config: Mapping[str, Any], grid: Grid, section: str = "masks") -> Masks:
    """Makes the sampler that `sampler` names, from its other keys.

    Args:
      config: a ConfigDict or dict: {"sampler": "multiblock" or "tubes", and options}.
      grid: tubelets, rows and columns of tokens, as from `VideoTransformer.grid`.
      section: where it stands in the config, for messages.

    Raises:
      UserError: on an unknown key, a value out of range, or masks that the grid cannot hold.
    """
    values = dict(config.items())
    name = values.pop("sampler", None)
    if name not in SAMPLERS:
        raise UserError(
            f"{section}.sampler is {name!r}; it must be one of {', '.join(sorted(SAMPLERS))}"
        )
    return SAMPLERS[name].parse(values, grid, section)
