"""What is computed once and read as if it were data: features of texts, and decoded clips.

Both are directories of memory-mapped arrays, written under a temporary name and renamed into place,
so that a half-written one is never read. F features of a text, n frames of a clip.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data.storage import storing
from jepa.errors import UserError

_META = "meta.json"


@contextlib.contextmanager
def new_directory(path: Path, *, stays: Callable[[], bool]) -> Iterator[Path]:
    """Write a directory that appears at `path` complete or not at all.

    Args:
        path: Of the directory.
        stays: Asked at the end where there is one already: whether it is kept (another process
            made the same one meanwhile) or replaced (it is damaged, or of another kind).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        # mkdtemp makes it private; a dataset is shared like the files beside it.
        temporary.chmod(0o755)
        if path.exists():
            if stays():
                return
            old = temporary.with_name(temporary.name + "-old")
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                os.rename(path, old)
            shutil.rmtree(old, ignore_errors=True)
        try:
            os.rename(temporary, path)
        except OSError:
            if not (path.exists() and stays()):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_meta(path: Path) -> dict[str, Any] | None:
    """The description of a cache directory, or None where there is no complete one."""
    try:
        return json.loads((path / _META).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_meta(path: Path, **values: Any) -> None:
    """Write the description of a cache directory."""
    (path / _META).write_text(json.dumps(values, indent=1), encoding="utf-8")


def _keys(texts: Sequence[str]) -> np.ndarray:
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), "<u8")


class TextFeatures:
    """Vectors of texts on disk, e.g. of a frozen Y-encoder tower; memory-mapped and picklable.

    Texts are found by a 64-bit hash among sorted ones, so a set of any size costs no memory.

    Attributes:
        path: The directory.
        fingerprint: What made them (tower, weights, tokenizer), as the writer said it.
        width: F.
    """

    def __init__(self, path: str | Path):
        """Open; raises UserError when there is no complete and undamaged set at `path`."""
        self.path = Path(path)
        meta = read_meta(self.path)
        if meta is None or meta.get("kind") != "text_features":
            raise UserError(
                f"data.text_features is {str(path)!r}, but that is no directory of text features; "
                "compute them first or set it to None"
            )
        self.fingerprint: str = meta["fingerprint"]
        self.width: int = meta["width"]
        self._shape = meta["count"], meta["width"]
        self._open()

    def _open(self) -> None:
        try:
            self._index = np.load(self.path / "index.npy", mmap_mode="r")
            self._features = np.load(self.path / "features.npy", mmap_mode="r")
            if (*self._index.shape, *self._features.shape[1:]) != self._shape:
                raise ValueError(f"they are not {self._shape[0]} vectors of {self._shape[1]}")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"the text features in {self.path} are damaged ({error}); delete that directory "
                "and compute them again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_index", "_features")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._index)

    @staticmethod
    def write(
        path: str | Path, texts: Sequence[str], features: np.ndarray, fingerprint: str
    ) -> TextFeatures:
        """Write float16 or float32 `features` [N, F] of N texts, atomically.

        Replaces what lies there, unless it is whole and says the same `fingerprint`: of several
        processes that compute the same features the first one's stay.

        Raises:
            UserError: the counts differ, a value is not finite, the type is another, or the disk
                refuses.
        """
        features = np.asarray(features)
        if features.ndim != 2 or len(features) != len(texts):
            raise UserError(
                f"{len(texts)} texts need features [{len(texts)}, F], not {list(features.shape)}"
            )
        if features.dtype not in (np.float16, np.float32):
            raise UserError(f"text features must be float16 or float32, not {features.dtype}")
        if not np.isfinite(features).all():
            raise UserError("text features hold values that are not finite")
        index, first = np.unique(_keys(texts), return_index=True)
        path = Path(path)
        with (
            storing(path),
            new_directory(path, stays=lambda: TextFeatures.whole(path, fingerprint)) as directory,
        ):
            np.save(directory / "index.npy", index)
            np.save(directory / "features.npy", features[first])
            write_meta(
                directory,
                kind="text_features",
                fingerprint=fingerprint,
                count=len(index),
                width=features.shape[1],
            )
        return TextFeatures(path)

    @staticmethod
    def whole(path: str | Path, fingerprint: str) -> bool:
        """Whether complete and undamaged features with this fingerprint lie at `path`."""
        try:
            return TextFeatures(path).fingerprint == fingerprint
        except UserError:
            return False

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Features of B texts, float32 [B, F]; UserError naming one that has none."""
        keys = _keys(texts)
        rows = np.minimum(np.searchsorted(self._index, keys), len(self._index) - 1)
        missing = np.flatnonzero(self._index[rows] != keys)
        if len(missing):
            raise UserError(
                f"{self.path} has no features of the text {texts[missing[0]]!r}; compute the "
                "features of this dataset's texts again"
            )
        return self._features[rows].astype(np.float32)
