"""Where the planes of decoded clips are collected: in memory, or in files as they come."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data.cache import write_meta
from jepa.data.transforms import Planes

_HEADER = 128


class Memory:
    """Collects planes in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}

    def room(self) -> float:
        """Bytes that may be taken: half of what is free, as joining the parts copies them."""
        with contextlib.suppress(OSError):
            for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024 / 2
        return math.inf  # no such file outside Linux; a set that is too large will say so itself

    def add(self, planes: Planes, *, flat: bool) -> None:
        """Append a clip."""
        for name, plane in planes.items():
            self._parts.setdefault(name, []).append(plane.reshape(-1) if flat else plane)

    def finish(self, table: np.ndarray, bad: dict[int, str]) -> Planes:
        """Join the planes."""
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}


class Files:
    """Writes planes to `.npy` files in a directory as they come."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._raw: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._lengths: dict[str, int] = {}

    def room(self) -> float:
        """Free bytes."""
        return float(shutil.disk_usage(self._directory).free)

    def add(self, planes: Planes, *, flat: bool) -> None:
        """Append a clip."""
        for name, plane in planes.items():
            part = plane.reshape(-1) if flat else plane
            if name not in self._raw:
                self._raw[name] = open(self._directory / f"{name}.npy", "wb")  # noqa: SIM115
                self._raw[name].write(bytes(_HEADER))
                self._shapes[name], self._lengths[name] = part.shape[1:], 0
            self._raw[name].write(np.ascontiguousarray(part).data)
            self._lengths[name] += len(part)

    def finish(self, table: np.ndarray, bad: dict[int, str]) -> Planes:
        """Write the headers, the table and, last, the description."""
        for name, file in self._raw.items():
            file.seek(0)
            file.write(_npy_header((self._lengths[name], *self._shapes[name])))
            file.flush()
            os.fsync(file.fileno())
            file.close()
        np.save(self._directory / "clips.npy", table)
        write_meta(self._directory, kind="clips", bad=bad, clips=len(table))
        paths = {name: self._directory / f"{name}.npy" for name in self._raw}
        return {name: np.load(path, mmap_mode="r") for name, path in paths.items()}


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """A version 1.0 `.npy` header of a uint8 array, padded to a fixed length."""
    said = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    body = said.ljust(_HEADER - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body
