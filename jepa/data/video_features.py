"""Features of a split's clips on disk, as a frozen X-encoder gives them, read in the clips' place.

A directory of shards `00012.npy` `[n, N, D]`, each with a `00012.json` that says what could not be
read, and at last `meta.json`. A shard appears whole or not at all, so that what was interrupted
goes on behind the last one; without `meta.json` nothing is read.

B rows, N tokens, D width, n clips of a shard.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jepa.data.cache import read_meta
from jepa.data.clips import Clips, View
from jepa.data.schema import Record
from jepa.data.storage import storing, sync, write_atomically
from jepa.data.transforms import Planes
from jepa.errors import UserError

STREAM = "features"
DTYPES: Mapping[str, Any] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
_KIND = "video_features"
_META = "meta.json"
# A shard takes seconds to compute, and a large dataset has some thousands of them.
_SHARD_BYTES = 1 << 28
_OPEN = 64  # shards that a process keeps mapped


class VideoFeatures:
    """Features of the clips of one split, by number; memory-mapped and picklable.

    Attributes:
        path: The directory.
        fingerprint: Of all that made them.
        shape: (N, D).
        dtype: In which they are kept, and read.
        seconds: What it took to compute them.
        bad: {number: reason} of the clips that could not be read.
    """

    def __init__(self, path: str | Path):
        """Open; raises UserError when there is no complete set at `path`."""
        self.path = Path(path)
        meta = read_meta(self.path)
        if meta is None or meta.get("kind") != _KIND:
            raise UserError(
                f"data.video_features has {str(path)!r}, which holds no features of clips; "
                "compute them first or leave it empty"
            )
        self.fingerprint: str = meta["fingerprint"]
        self.shape: tuple[int, int] = tuple(meta["shape"])
        self.dtype = DTYPES[meta["dtype"]]
        self.seconds: float = meta["seconds"]
        self.bad = {int(number): str(reason) for number, reason in meta["bad"].items()}
        self._count, self._per_shard = int(meta["count"]), int(meta["per_shard"])
        self._shards: dict[int, np.ndarray] = {}
        for index in range(-(-self._count // self._per_shard)):
            self._shard(index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}

    def __len__(self) -> int:
        return self._count

    def _shard(self, index: int) -> np.ndarray:
        # Several threads read; one may clear what another has just found.
        shard = self._shards.get(index)
        if shard is None:
            if len(self._shards) >= _OPEN:
                self._shards.clear()
            rows = min(self._per_shard, self._count - index * self._per_shard)
            shard = _read(self.path, index, (rows, *self.shape), self.dtype)
            self._shards[index] = shard
        return shard

    def into(self, numbers: np.ndarray, out: np.ndarray, rows: np.ndarray) -> None:
        """Write the features of clips `numbers` [R] into rows `rows` [R] of `out` [B, N, D]."""
        shards, inside = np.divmod(numbers, self._per_shard)
        for index in np.unique(shards).tolist():
            chosen = shards == index
            out[rows[chosen]] = self._shard(index)[inside[chosen]]

    @staticmethod
    def whole(path: str | Path, fingerprint: str) -> bool:
        """Whether complete and undamaged features with this fingerprint lie at `path`."""
        try:
            return VideoFeatures(path).fingerprint == fingerprint
        except UserError:
            return False


class VideoFeaturesWriter:
    """Writes the features of a split, shard by shard; what is there already is kept."""

    def __init__(
        self, path: str | Path, fingerprint: str, count: int, shape: Sequence[int], dtype: str
    ):
        """Nothing is written yet.

        Args:
            path: Of the directory.
            fingerprint: Of all that decides the features; another one needs another `path`.
            count: Clips of the split.
            shape: (N, D).
            dtype: Of `DTYPES`.
        """
        self._path, self._fingerprint, self._count = Path(path), fingerprint, count
        self._shape, self._dtype = tuple(shape), dtype
        self._clip_bytes = math.prod(shape) * DTYPES[dtype].itemsize
        self.per_shard = max(1, min(count, _SHARD_BYTES // self._clip_bytes))

    def numbers(self, index: int) -> np.ndarray:
        """The clips of a shard, int64 [n]."""
        start = index * self.per_shard
        return np.arange(start, min(start + self.per_shard, self._count))

    def missing(self) -> list[int]:
        """The shards that are still to be computed.

        Raises:
            UserError: the disk has no room for them.
        """
        absent = [
            i
            for i in range(-(-self._count // self.per_shard))
            if self._noted(i, quietly=True) is None
        ]
        with storing(self._path):
            self._path.mkdir(parents=True, exist_ok=True)
            have = shutil.disk_usage(self._path).free
        need = sum(len(self.numbers(i)) for i in absent) * self._clip_bytes
        if need > 0.9 * have:
            raise UserError(
                f"the features of {self._count} clips take {need / 2**30:.1f} GiB more in "
                f"{self._path}, and {have / 2**30:.1f} GiB are free; make room there, or set "
                "config.model.x_encoder.cache_features to False"
            )
        return absent

    def write(
        self, index: int, features: np.ndarray, bad: Mapping[int, str], seconds: float
    ) -> None:
        """Write a shard.

        Args:
            index: Which.
            features: `[n, N, D]` in the type of the set, of `numbers(index)`.
            bad: {number: reason} of those that could not be read; their rows mean nothing.
            seconds: What it took to compute them.

        Raises:
            UserError: a value is not finite, or the disk refuses.
        """
        if not np.isfinite(features).all():
            raise UserError(
                f"the X-encoder's features are not finite in {self._dtype}; set "
                "config.model.x_encoder.cache_dtype to 'float32' if they are only too large for it"
            )
        partial = self._path / f"{index:05d}.{os.getpid()}.tmp"
        said = {"bad": {str(number): reason for number, reason in bad.items()}, "seconds": seconds}
        try:
            with storing(self._path):
                write_atomically(self._path / f"{index:05d}.json", json.dumps(said))
                with open(partial, "wb") as file:
                    # NumPy's format does not know bfloat16; its bits are kept as integers.
                    np.save(file, features.view(np.uint16) if self._short else features)
                sync(partial)
                os.replace(partial, _shard_path(self._path, index))
        finally:
            partial.unlink(missing_ok=True)

    def finish(self) -> None:
        """Write `meta.json`, after all shards; UserError if the disk refuses."""
        bad: dict[str, str] = {}
        seconds = 0.0
        for index in range(-(-self._count // self.per_shard)):
            noted = self._noted(index, quietly=False)
            assert noted is not None
            bad.update(noted["bad"])
            seconds += noted["seconds"]
        meta = {
            "kind": _KIND,
            "fingerprint": self._fingerprint,
            "count": self._count,
            "per_shard": self.per_shard,
            "shape": self._shape,
            "dtype": self._dtype,
            "seconds": seconds,
            "bad": bad,
        }
        write_atomically(self._path / _META, json.dumps(meta, indent=1))

    @property
    def _short(self) -> bool:
        return self._dtype == "bfloat16"

    def _noted(self, index: int, *, quietly: bool) -> dict[str, Any] | None:
        """What was said of a whole shard; None, or an error, where there is none."""
        shape = (len(self.numbers(index)), *self._shape)
        try:
            _read(self._path, index, shape, DTYPES[self._dtype])
            return json.loads((self._path / f"{index:05d}.json").read_text(encoding="utf-8"))
        except (UserError, OSError, ValueError):
            if quietly:
                return None
            raise


class FeatureClips(Clips):
    """The clips of a split as their features; no video is read."""

    def __init__(self, split: Any, view: View, path: str | Path):
        """Open the features at `path`.

        Raises:
            UserError: there are none, or of another number of clips.
        """
        super().__init__(split, view)
        self.features = VideoFeatures(path)
        if len(self.features) != len(split):
            raise UserError(
                f"data.video_features has {str(path)!r} with {len(self.features)} clips, and the "
                f"split {split.name!r} has {len(split)}; compute them again"
            )
        self._records: list[Record] | None = None
        if view.config.cache != "none":
            self._records = [split.record(i, video=False) for i in range(len(split))]

    def planes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """See `Clips.planes`."""
        return {STREAM: (self.features.shape, self.features.dtype.name)}

    def empty(self, batch: int) -> Planes:
        """See `Clips.empty`."""
        return {STREAM: np.empty((batch, *self.features.shape), self.features.dtype)}

    def load(
        self, numbers: np.ndarray, positions: np.ndarray, out: Planes, rows: np.ndarray
    ) -> tuple[list[Record | None], dict[int, str]]:
        """See `Clips.load`."""
        wanted = numbers.tolist()
        if self._records is None:
            records: list[Record | None] = [self.split.record(i, video=False) for i in wanted]
        else:
            records = [self._records[i] for i in wanted]
        bad = self.features.bad
        failed = {i: bad[number] for i, number in enumerate(wanted if bad else ()) if number in bad}
        self.features.into(numbers, out[STREAM], rows)
        return records, failed


def _shard_path(directory: Path, index: int) -> Path:
    return directory / f"{index:05d}.npy"


def _read(directory: Path, index: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A shard, mapped; NumPy refuses a file that is shorter than its header says."""
    path = _shard_path(directory, index)
    try:
        array = np.load(path, mmap_mode="r")
        array = array.view(dtype) if dtype.name == "bfloat16" else array
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"it holds {array.dtype}{list(array.shape)}")
        return array
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise UserError(
            f"{path} is no whole shard of features ({error}); delete it and run the same command "
            "again"
        ) from error
