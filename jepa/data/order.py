"""The endless global order of samples: which record stands at which position.

It depends on (seed, sizes, weights) alone. Grain shuffles large datasets and mixes several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from jepa import hashing
from jepa.data.sampling import Purpose

ENDLESS = 1 << 50
_SMALL = 1 << 16


class Order:
    """The endless global order: position -> (dataset, record). Picklable.

    Each dataset is shuffled anew in each of its epochs; within an epoch every record comes once.
    Datasets alternate by weight in a fixed pattern.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        self._parts: list[_Epochs | _Shuffled] = []
        for which, size in enumerate(sizes):
            own = int(hashing.bits(seed, which, Purpose.ORDER) >> np.uint64(33))
            self._parts.append(_Epochs(size, own) if size <= _SMALL else _Shuffled(size, own))
        self._pattern: Any = None
        if len(sizes) > 1:
            places = [grain.MapDataset.source(_Places(which)) for which in range(len(sizes))]
            self._pattern = grain.MapDataset.mix(places, weights)

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(dataset int64 [B], record int64 [B]) at `positions` [B]."""
        positions = np.asarray(positions, np.int64)
        if self._pattern is None:
            return np.zeros_like(positions), self._parts[0](positions)
        drawn = np.array([self._pattern[position] for position in positions.tolist()], np.int64)
        sets, places = drawn[:, 0], drawn[:, 1]
        numbers = np.empty_like(places)
        for which in np.unique(sets).tolist():
            rows = sets == which
            numbers[rows] = self._parts[which](places[rows])
        return sets, numbers


class _Places:
    """(dataset, place in its own endless order), as a Grain source."""

    def __init__(self, which: int):
        self._which = which

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self._which, int(index)


class _Shuffled:
    """Records of a large dataset at places of its endless order, by Grain's shuffle."""

    def __init__(self, size: int, seed: int):
        self._order = grain.MapDataset.range(size).shuffle(seed).repeat()

    def __call__(self, places: np.ndarray) -> np.ndarray:
        return np.array([self._order[place] for place in places.tolist()], np.int64)


class _Epochs:
    """Records of a small dataset at places of its endless order.

    Grain's shuffle walks through 2^16 places to find one of a few: 0.25 ms a record for a set of
    256, 10 ms for one of 5. A permutation held in memory costs nothing at these sizes.
    """

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._held: tuple[int, np.ndarray] = -1, np.empty(0, np.int64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        epochs, insides = np.divmod(places, self._size)
        numbers = np.empty_like(insides)
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            numbers[rows] = self._permutation(epoch)[insides[rows]]
        return numbers

    def _permutation(self, epoch: int) -> np.ndarray:
        held, permutation = self._held
        if held != epoch:
            drawn = hashing.bits(self._seed, np.arange(self._size), Purpose.EPOCH + epoch)
            permutation = np.argsort(drawn, kind="stable")
            self._held = epoch, permutation
        return permutation
