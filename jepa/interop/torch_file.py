"""PyTorch's checkpoint files, read without PyTorch and without running anything in them.

Such a file is a zip archive, stored without compression: `NAME/data.pkl` is a pickle of the
dictionaries, in which every tensor names a file `NAME/data/KEY` of raw numbers. A pickle can call
any function; this reader lets it name containers and tensors and refuses everything else.

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

from __future__ import annotations

import collections
import dataclasses
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jepa.errors import UserError
from jepa.interop.tensors import Entry

_STORAGES: Mapping[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LOCAL_HEADER = 30  # bytes before a zip member's name


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A file of raw numbers in the archive."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """What a pickle says of a tensor."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def entries(path: Path) -> dict[str, Entry]:
    """Returns the tensors of a file; names of nested dictionaries are joined by ".".

    Raises:
      UserError: the file is damaged, of PyTorch's format before 1.6, or would run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            listing = next((n for n in members if n.endswith("/data.pkl") or n == "data.pkl"), None)
            if listing is None:
                raise UserError(f"{path} is a zip file without data.pkl, so no PyTorch checkpoint")
            root = listing.removesuffix("data.pkl")
            order = f"{root}byteorder"
            if order in members and archive.read(order).strip() != b"little":
                raise UserError(f"{path} was written on a big-endian machine; save it on another")
            with archive.open(listing) as file:
                content = _Unpickler(file, path).load()
    except UserError:
        raise
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); download it again") from error
    except Exception as error:  # A broken pickle raises whatever its bytes happen to do.
        raise UserError(f"{path} is no PyTorch checkpoint that can be read ({error})") from error
    found: dict[str, _Tensor] = {}
    _flatten(content, "", found)
    if not found:
        raise UserError(f"{path} holds no tensors by name; save a model's state_dict")
    with path.open("rb") as file:
        return {
            name: _entry(path, name, tensor, members.get(f"{root}data/{tensor.storage.key}"), file)
            for name, tensor in found.items()
        }


class _Unpickler(pickle.Unpickler):
    """Lets a pickle make dictionaries, tensors and types of numbers, and nothing else."""

    def __init__(self, file: Any, path: Path):
        super().__init__(file, encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a name in the pickle stands for."""
        known: Callable[..., Any] | None = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module == "torch" and name in _STORAGES:
            return name
        if module == "torch" and name in _NUMBERS:
            return f"torch.{name}"
        raise UserError(
            f"{self._path} would run {module}.{name} when loaded, which is refused; save the "
            "model's state_dict alone"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that a tensor names."""
        kind, storage, key, _, count = pid
        if kind != "storage" or storage not in _STORAGES:
            raise UserError(f"{self._path} holds numbers of an unknown kind ({kind}, {storage})")
        return _Storage(str(key), np.dtype(_STORAGES[storage]), int(count))


def _tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


def _size(numbers: Any) -> tuple[int, ...]:
    return tuple(numbers)


_NUMBERS = frozenset(
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()  # noqa: SIM905
)
_KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): str,
}


def _flatten(content: Any, prefix: str, found: dict[str, _Tensor]) -> None:
    """Collects tensors in dictionaries and lists by their path."""
    if isinstance(content, _Tensor):
        found[prefix] = content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            _flatten(value, f"{prefix}.{name}" if prefix else str(name), found)
    elif isinstance(content, list | tuple):
        for i, value in enumerate(content):
            _flatten(value, f"{prefix}.{i}" if prefix else str(i), found)


def _entry(
    path: Path, name: str, tensor: _Tensor, member: zipfile.ZipInfo | None, file: Any
) -> Entry:
    """Returns where in the archive's file a tensor lies."""
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    size = storage.dtype.itemsize
    if member is None or member.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{path} lacks the numbers of {name}; download it again")
    within = zip(shape, strides, strict=True)
    reach = tensor.offset + 1 + sum((count - 1) * stride for count, stride in within)
    if 0 not in shape and (reach > storage.count or member.file_size < storage.count * size):
        raise UserError(f"{path} is damaged: {name} reaches beyond its numbers")
    if min((tensor.offset, *shape, *strides)) < 0:
        raise UserError(f"{path} is damaged: {name} has a negative size")
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER)
    skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = member.header_offset + _LOCAL_HEADER + skip + tensor.offset * size
    row_major = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Entry(path, start, shape, storage.dtype, None if strides == row_major else strides)
