"""Our parameters as a directory that `transformers` loads: safetensors, config.json, or nothing.

Tensors are made and written one after another; the directory appears under its name when all of it
is on the disk.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jepa.errors import UserError
from jepa.interop.layout import Layout
from jepa.interop.loading import Pending, flatten
from jepa.interop.tensors import CONFIG, DTYPES, INDEX, SINGLE

# Larger checkpoints are cut into files of at most this size, as Hugging Face's own are.
MOST_BYTES = 5_000_000_000
# Keys so begun are ours: what a model's other files say, beside its `config.json`.
OURS = "jepa_"
# What `transformers` calls the type of a model's tensors, now and before its version 4.56.
_TYPE_KEYS = ("dtype", "torch_dtype")
_TYPE_NAMES = ("float64", "float32", "bfloat16", "float16")
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def save(
    to: str | Path,
    params: Mapping[str, Any],
    layout: Layout,
    config: Mapping[str, Any],
    *,
    dtype: Any = None,
    most_bytes: int = MOST_BYTES,
    copies: Mapping[str, Path] | None = None,
) -> None:
    """Writes a checkpoint directory in a published layout.

    Args:
      to: the directory, which must not exist.
      params: nested dict of arrays that this process can read, or of `loading.Pending`.
      layout: of the model; a tensor called `FOLDER/NAME` goes into a file of that folder.
      config: what `config.json` says, and keys of ours, which are left out. The type that it
        names, to which `transformers` rounds what it loads, becomes that of the tensors.
      dtype: of all tensors; that of each parameter when absent.
      most_bytes: size from which tensors go into a further file.
      copies: further files by the name they get, and where they lie.

    Raises:
      UserError: a parameter is missing, unknown or of another shape; `to` exists already, or the
        disk refuses.
    """
    flat = flatten(params)
    check_params(flat, layout)
    made = _Made(flat, layout, None if dtype is None else np.dtype(dtype))
    with appearing(Path(to)) as directory:
        for folder, of_folder in _by_folder(made.names()).items():
            where = directory / folder
            where.mkdir(exist_ok=True)
            files = _split(made, of_folder, most_bytes)
            for file, names in files.items():
                with (where / file).open("wb") as out:
                    _write(out, made, names)
            if len(files) > 1:
                _write_index(where, made, files)
        theirs = {key: value for key, value in config.items() if not key.startswith(OURS)}
        write_json(directory / CONFIG, _typed(theirs, str(made.wide)))
        copy(copies or {}, directory)


def _typed(config: Any, dtype: str) -> Any:
    """Returns a `config.json` with the name of a type wherever one is named."""
    if not isinstance(config, Mapping):
        return config
    return {
        key: dtype if key in _TYPE_KEYS and value in _TYPE_NAMES else _typed(value, dtype)
        for key, value in config.items()
    }


def check_params(flat: Mapping[str, Any], layout: Layout) -> None:
    """Accounts for every parameter of ours, by "/"-joined path.

    Raises:
      UserError: one is missing, unknown or of another shape.
    """
    for path, part in layout.leaves.items():
        if path not in flat:
            raise UserError(f"the parameter {path} of shape {part.shape} is missing")
        if tuple(flat[path].shape) != part.shape:
            raise UserError(
                f"the parameter {path} has shape {tuple(flat[path].shape)} instead of {part.shape};"
                " give the model's own sizes"
            )
    unknown = sorted(flat.keys() - layout.leaves.keys())
    if unknown:
        raise UserError(f"the parameter {unknown[0]} has no place in the published model")


@contextlib.contextmanager
def appearing(to: Path) -> Iterator[Path]:
    """Gives a directory to fill that takes the name `to` when the block ends without an error.

    Raises:
      UserError: `to` exists, or the operating system refuses to write.
    """
    if to.exists():
        raise UserError(f"{to} exists already; remove it, or choose another name")
    partial = to.with_name(f"{to.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
        os.replace(partial, to)
        _sync(to.parent)
    except OSError as error:
        raise UserError(
            f"{to} cannot be written: {error.strerror or error}; free space or make its directory "
            "writable"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy(files: Mapping[str, Path], directory: Path) -> None:
    """Copies files, given by the name they get, into a directory or folders of it."""
    for name, source in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, directory / name)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as people read it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Made:
    """Their tensors, made of our parameters when asked."""

    def __init__(self, flat: Mapping[str, Any], layout: Layout, dtype: np.dtype | None):
        self._flat, self._pieces, self._derived = flat, layout.theirs(), layout.derived
        self._dtype = dtype
        self._held: tuple[str, np.ndarray] | None = None
        # A type that all of them fit into.
        self.wide = self._dtype or _widest([np.dtype(leaf.dtype) for leaf in flat.values()])

    def names(self) -> list[str]:
        """Returns all names, parameter by parameter.

        Those of wider numbers come first, so that all of them lie aligned.
        """
        names = [*self._pieces, *self._derived]
        return sorted(names, key=lambda name: -self.dtype(name).itemsize)

    def dtype(self, name: str) -> np.dtype:
        if name in self._derived and self._derived[name]().dtype.kind in "iu":
            return self._derived[name]().dtype
        if self._dtype is not None:
            return self._dtype
        if name in self._derived:
            return self.wide
        return np.dtype(self._flat[self._pieces[name][0]].dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._derived[name]().shape if name in self._derived else self._pieces[name][1].shape

    def nbytes(self, name: str) -> int:
        return math.prod(self.shape(name)) * self.dtype(name).itemsize

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._derived:
            return np.ascontiguousarray(self._derived[name](), self.dtype(name))
        path, piece = self._pieces[name]
        block = np.asarray(self._leaf(path)[piece.place])
        return np.ascontiguousarray(piece.to_theirs(block), self.dtype(name))

    def _leaf(self, path: str) -> Any:
        """Returns a parameter; one that is still to be read is kept until the next."""
        leaf = self._flat[path]
        if not isinstance(leaf, Pending):
            return leaf
        if self._held is None or self._held[0] != path:
            self._held = None
            self._held = path, leaf.read()
        return self._held[1]


def _widest(dtypes: Sequence[np.dtype]) -> np.dtype:
    """Returns a type that has the numbers of all floating ones."""
    floating = {dtype for dtype in dtypes if dtype.kind not in "iub"}
    most = max((dtype.itemsize for dtype in floating), default=0)
    widest = [dtype for dtype in floating if dtype.itemsize == most]
    # float16 and bfloat16 are of one size, and neither has the other's numbers.
    return widest[0] if len(widest) == 1 else np.dtype(np.float32)


def _by_folder(names: list[str]) -> dict[str, list[str]]:
    """Returns the tensors of each folder, "" for the directory itself."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition("/")[0], []).append(name)
    return found


def _split(made: _Made, names: list[str], most_bytes: int) -> dict[str, list[str]]:
    """Returns which tensors of a folder go into which file."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in names:
        nbytes = made.nbytes(name)
        if groups[-1] and size + nbytes > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    count = len(groups)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": names for i, names in enumerate(groups, 1)}


def _write(out: BinaryIO, made: _Made, names: list[str]) -> None:
    """Writes one safetensors file; its header comes first, so sizes are known beforehand."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype = made.dtype(name)
        if dtype not in _NAMES:
            raise UserError(f"safetensors has no type {dtype}; choose another with --dtype")
        start, end = end, end + made.nbytes(name)
        shape = list(made.shape(name))
        header[_bare(name)] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little"))
    out.write(text)
    for name in names:
        out.write(made[name].reshape(-1).view(np.uint8).data)


def _write_index(directory: Path, made: _Made, files: Mapping[str, list[str]]) -> None:
    total = sum(made.nbytes(name) for names in files.values() for name in names)
    weight_map = {_bare(name): file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / INDEX, index)


def _bare(name: str) -> str:
    """Returns a tensor's name in the file of its folder."""
    return name.rpartition("/")[2]
