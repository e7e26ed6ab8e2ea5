"""Random numbers as hashes of (seed, position, purpose), in NumPy, for all that must be resumable.

A position is the number of a sample in an endless global order. Whoever asks for the numbers of a
position gets the same ones: on any host, in any worker, after any restart; and those of a whole
batch in one vectorised step. Purposes below 2^40 are the data pipeline's (`data.sampling.Purpose`),
from there on the masks' (`masks.blocks`).
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def bits(seed: int, position: np.ndarray | int, purpose: np.ndarray | int) -> np.ndarray:
    """Hash (seed, position, purpose) to uint64, broadcast over positions and purposes.

    The finaliser is SplitMix64's (Steele, Lea and Flood, 2014), once for each of the three inputs.
    """
    with np.errstate(over="ignore"):
        state: np.ndarray = np.asarray(seed, np.uint64)
        for value in (purpose, position):
            state = _finalise(state + _GOLDEN) ^ np.asarray(value).astype(np.uint64)
        return _finalise(state + _GOLDEN)


def _finalise(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, position: np.ndarray | int, purpose: np.ndarray | int) -> np.ndarray:
    """Float64 in [0, 1), as `bits`."""
    return (bits(seed, position, purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53
