"""Published checkpoints opened without reading them: names, shapes and types first, data on demand.

Three forms are understood: one safetensors file, a directory of them with an index
(`model.safetensors.index.json`), and PyTorch's zip files (`.pt`, `.pth`, `.bin`; see `torch_file`).
In all of them a tensor is a run of bytes in a file. Files are read, never mapped: pages of a mapped
file count as memory of the process, and a checkpoint would be in it twice.

Source of the format: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jepa.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"
# NumPy's type of every type that a safetensors header names.
DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_ABOUT = "__metadata__"
_LONGEST_HEADER = 100_000_000
_ZIP = b"PK\x03\x04"


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
      file: which file.
      offset: of its first number, in bytes.
      shape: of the tensor.
      dtype: of its numbers, little-endian.
      strides: distance between neighbours in each dimension, in numbers; None when row-major.
    """

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors:
    """The tensors of a checkpoint, by name.

    Attributes:
      path: what was opened.
      config: the `config.json` beside the tensors, or None where there is none.
      metadata: what the header of a single safetensors file says beside its tensors.
    """

    def __init__(
        self,
        path: Path,
        entries: Mapping[str, Entry],
        config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
    ):
        """Holds what `open_tensors` found."""
        self.path, self.config, self.metadata = path, config, dict(metadata or {})
        self._entries = dict(entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def directory(self) -> Path:
        """Where the files lie that go with the tensors, also where one file was opened."""
        return folder(self.path)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Returns the type of a tensor."""
        return self._entries[name].dtype

    def nbytes(self) -> int:
        """Returns the size of all tensors, in bytes."""
        return sum(entry.nbytes for entry in self._entries.values())

    def beside(self, prefix: str, others: Tensors) -> Tensors:
        """Returns these tensors and others, whose names then begin with `PREFIX/`."""
        entries = {f"{prefix}/{name}": entry for name, entry in others._entries.items()}
        return Tensors(self.path, {**self._entries, **entries}, self.config, self.metadata)

    def with_config(self, config: Mapping[str, Any]) -> Tensors:
        """Returns these tensors with another `config`."""
        return Tensors(self.path, self._entries, config, self.metadata)

    def split(self, name: str, names: Sequence[str]) -> Tensors:
        """Returns these tensors with one cut along its first dimension into equal parts.

        Raises:
          UserError: it cannot be cut so.
        """
        entries = dict(self._entries)
        entry = entries.pop(name)
        rows, rest = divmod((*entry.shape, 0)[0], len(names))
        if rest or not rows:
            raise UserError(
                f"{self.path}: {name} of shape {entry.shape} is not {len(names)} in one; take the "
                "model's own file"
            )
        step = math.prod(entry.shape[1:]) if entry.strides is None else entry.strides[0]
        for i, part in enumerate(names):
            entries[part] = dataclasses.replace(
                entry,
                offset=entry.offset + i * rows * step * entry.dtype.itemsize,
                shape=(rows, *entry.shape[1:]),
            )
        return Tensors(self.path, entries, self.config, self.metadata)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Reads a tensor, or some rows (of the first dimension) of it, from the disk.

        Raises:
          UserError: the file ends early or cannot be read.
        """
        entry = self._entries[name]
        if not entry.shape:
            return self._read(entry, entry.offset, 1).reshape(())
        first, last, _ = rows.indices(entry.shape[0])
        shape = (max(last - first, 0), *entry.shape[1:])
        if entry.strides is None:
            row = math.prod(entry.shape[1:])
            start = entry.offset + first * row * entry.dtype.itemsize
            return self._read(entry, start, math.prod(shape)).reshape(shape)
        start = entry.offset + first * entry.strides[0] * entry.dtype.itemsize
        steps = zip(shape, entry.strides, strict=True)
        reach = 1 + sum((size - 1) * stride for size, stride in steps) if math.prod(shape) else 0
        window = self._read(entry, start, reach)
        strides = [stride * entry.dtype.itemsize for stride in entry.strides]
        return np.lib.stride_tricks.as_strided(window, shape, strides, writeable=False)

    def _read(self, entry: Entry, start: int, count: int) -> np.ndarray:
        try:
            found = np.fromfile(entry.file, entry.dtype, count, offset=start)
        except OSError as error:
            raise UserError(f"{entry.file} cannot be read ({error.strerror or error})") from error
        if len(found) < count:
            raise UserError(f"{entry.file} ends within a tensor; download it again")
        return found


def folder(path: Path) -> Path:
    """Returns the directory of a checkpoint that is named by itself or by a file in it."""
    return path if path.is_dir() else path.parent


def open_tensors(path: str | Path) -> Tensors:
    """Opens a checkpoint.

    Args:
      path: a safetensors or PyTorch file, or a directory as Hugging Face lays them out.

    Raises:
      UserError: nothing is there, or what is there is truncated, damaged or something else.
    """
    path = Path(path)
    if path.is_dir():
        return Tensors(path, _directory(path), read_config(path))
    if not path.exists():
        raise UserError(f"{path} cannot be read: it does not exist; name a file or directory")
    try:
        with path.open("rb") as file:
            magic = file.read(len(_ZIP))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    if magic == _ZIP:
        from jepa.interop import torch_file  # which needs Entry

        return Tensors(path, torch_file.entries(path))
    config = read_config(path.parent) if path.name == SINGLE else None
    header, base = _header(path)
    about = header.pop(_ABOUT, None)
    return Tensors(path, _entries(path, header, base), config, about)


def read_config(directory: Path) -> dict[str, Any] | None:
    """Returns a directory's `config.json`, None where there is none.

    Raises:
      UserError: it is no JSON object.
    """
    path = directory / CONFIG
    return read_json(path) if path.exists() else None


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON file that holds an object.

    Raises:
      UserError: it is absent or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object; take the model's own file")
    return found


def _directory(path: Path) -> dict[str, Entry]:
    """Returns the entries of a directory, over all files that its index names."""
    if (path / INDEX).exists():
        return _indexed(path, read_json(path / INDEX).get("weight_map"))
    if (path / SINGLE).exists():
        return _safetensors(path / SINGLE)
    raise UserError(
        f"{path} has neither {SINGLE} nor {INDEX}; name the directory that has one, or a file"
    )


def _indexed(path: Path, weight_map: Any) -> dict[str, Entry]:
    plain = isinstance(weight_map, dict) and all(
        isinstance(file, str) and Path(file).name == file for file in weight_map.values()
    )
    if not plain:
        raise UserError(f"{path / INDEX} has no weight_map of names to files beside it")
    files = {file: _safetensors(path / file) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in files[file]:
            raise UserError(f"{path / INDEX} places {name} in {file}, which has no such tensor")
    found: dict[str, Entry] = {}
    for file, entries in files.items():
        for name, entry in entries.items():
            if weight_map.get(name) != file:
                raise UserError(f"{path / file} holds {name}, which {INDEX} does not place there")
            found[name] = entry
    return found


def _safetensors(path: Path) -> dict[str, Entry]:
    """Returns the entries of one file."""
    header, base = _header(path)
    header.pop(_ABOUT, None)
    return _entries(path, header, base)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Returns what a file's header says, and where the numbers begin."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 0 < length <= min(size - 8, _LONGEST_HEADER):
                raise UserError(
                    f"{path} cannot be read as safetensors: it is another file, or the beginning "
                    "of one; download it again"
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read as safetensors: its header is no JSON; download it again"
        ) from error
    if not isinstance(header, dict):
        raise UserError(f"{path} cannot be read as safetensors: its header is no JSON object")
    return header, 8 + length


def _entries(path: Path, header: Mapping[str, Any], base: int) -> dict[str, Entry]:
    """Returns the entries of a header; the file's size must be what they promise."""
    found = {name: _entry(path, name, about, base) for name, about in header.items()}
    size = path.stat().st_size
    promised = max((e.offset + e.nbytes for e in found.values()), default=base)
    if size < promised:
        raise UserError(
            f"{path} is truncated: it has {size:,} bytes of {promised:,}; download it again"
        )
    if size > promised or sum(e.nbytes for e in found.values()) != promised - base:
        raise UserError(f"{path} is damaged: its tensors do not fill it exactly; download it again")
    return found


def _entry(path: Path, name: str, about: Any, base: int) -> Entry:
    try:
        dtype, shape = np.dtype(DTYPES[about["dtype"]]), tuple(int(n) for n in about["shape"])
        start, end = (int(n) for n in about["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the header says of {name} what cannot be ({error})") from error
    entry = Entry(path, base + start, shape, dtype)
    if min((start, *shape)) < 0 or end - start != entry.nbytes:
        raise UserError(f"{path} is damaged: {name} has other bytes than its shape {shape} needs")
    return entry
