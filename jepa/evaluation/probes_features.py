"""Frozen features of many clips, computed once and kept on disk.

A set of features lies in `DIRECTORY/KEY/`: `features.npy`, read as a memory map, and `meta.json`.
The key is a digest of all that decides the numbers: the encoder (its parameters and its config),
how clips are seen, the split, which of its records, and what is kept of each. So a set is never
taken for another one; a damaged one is computed again.

Letters: n clips, B clips a batch, N tokens, F features.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.experimental import multihost_utils

from jepa.data import cache, storage
from jepa.data.config import DataConfig
from jepa.data.evalset import EvalSet
from jepa.data.jobs import Progress
from jepa.errors import UserError
from jepa.evaluation import probes_embedding
from jepa.methods.base import Method, Params
from jepa.nn.frames import Video, to_rgb
from jepa.parallel import hosts
from jepa.parallel import mesh as meshes
from jepa.parallel.partition import path_name

log = logging.getLogger("jepa")

VERSION = 1
STORAGE = ("float32", "float16", "bfloat16")
# What of the section `data` decides how evaluation sees a clip; see `clips.View`.
_SEEN = ("frames", "fps", "size", "pixels", "frame_control")
_CHUNK = 1 << 24


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What turns clips into features.

    Attributes:
      name: for progress and messages.
      digest: of everything that decides the features of given frames.
      arguments: a tree of arrays, laid out on the mesh.
      apply: `(arguments, video stream) -> {"pooled": [B, F], "tokens": [B, N, F]}`; pixels have no
        tokens. Traced.
      exempt: whether `probe.most_features` does not apply, as for a control that has no pooling.
    """

    name: str
    digest: str
    arguments: Any
    apply: Callable[[Any, Video], dict[str, jax.Array]]
    exempt: bool = False


def of_method(
    method: Method, params: Params, state: Params, described: Any, *, pooling: str, name: str
) -> Encoder:
    """Returns the frozen encoder of a method, read through `embed`.

    Args:
      method: gives `tokens["video"]` `[B, N, F]` and `pooled["video"]` `[B, F]` for a batch that
        has a video and nothing else.
      params: the parameters to probe; of a method with a target encoder its moving average.
      state: the mutable state.
      described: what of the config makes the network, as JSON.
      pooling: "mean" takes the method's pooled vector, "all" every token, one behind the other.
      name: for progress and messages.
    """
    digest = digest_of_words([VERSION, "method", described, pooling, digest_of((params, state))])
    return Encoder(name, digest, (params, state), reader(method, pooling))


def reader(method: Method, pooling: str) -> Callable[[Any, Video], dict[str, jax.Array]]:
    """Returns `Encoder.apply` of a method, for the arguments `(params, state)`; see `of_method`."""

    def apply(arguments: Any, video: Video) -> dict[str, jax.Array]:
        of_params, of_state = arguments
        outputs = method.embed(of_params, of_state, {"video": video})
        if "video" not in outputs.pooled or "video" not in outputs.tokens:
            raise UserError(
                f"{type(method).__name__}.embed gives no pooled['video'] and tokens['video'] for a "
                "batch of clips alone, and these are what probes read; let it return them"
            )
        tokens = outputs.tokens["video"]
        flat = tokens.reshape(tokens.shape[0], -1)
        return {
            "pooled": flat if pooling == "all" else outputs.pooled["video"],
            "tokens": tokens,
        }

    return apply


def of_pixels(size: int, *, grey: bool, name: str = "pixels") -> Encoder:
    """Returns the control that has no network: RGB in 0..1, all numbers of a clip in a row.

    Args:
      size: frames larger than this are scaled down to it (linearly, antialiased).
      grey: whether the three channels are always equal, and one is kept.
      name: for progress and messages.
    """

    def apply(arguments: Any, video: Video) -> dict[str, jax.Array]:
        del arguments
        rgb = to_rgb(video)
        batch, frames, height, width, _ = rgb.shape
        if max(height, width) > size:
            rgb = jax.image.resize(rgb, (batch, frames, size, size, 3), "linear")
        return {"pooled": (rgb[..., :1] if grey else rgb).reshape(batch, -1)}

    return Encoder(name, digest_of_words([VERSION, "pixels", size, grey]), {}, apply, exempt=True)


def digest_of(tree: Any) -> str:
    """Returns a digest of every bit of every array of a tree, and of the arrays' paths."""
    found = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        whole = getattr(leaf, "is_fully_addressable", True)
        host = np.asarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))
        found.update(f"{path_name(path)} {host.dtype} {host.shape}".encode())
        found.update(np.ascontiguousarray(host).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def seen(data: DataConfig) -> dict[str, Any]:
    """What of a section `data` decides the pixels that evaluation shows of a clip."""
    return {key: getattr(data, key) for key in _SEEN}


class FeatureStore:
    """Computes features on a mesh, or finds them on disk.

    Every process of a multi-host run must make the same calls, and sees the same directory.
    """

    def __init__(
        self, directory: str | Path, mesh: jax.sharding.Mesh, *, batch_size: int, storage: str
    ):
        """Opens the cache.

        Args:
          directory: where sets lie.
          mesh: where the encoder's arguments lie; batches are cut over its data and fsdp axes.
          batch_size: clips a batch; rounded up to a multiple of the batch parts of the mesh.
          storage: of `STORAGE`, the type in which tokens are kept. Pooled features are float32.
        """
        shards = meshes.batch_shards(mesh)
        self.batch_size = -(-batch_size // shards) * shards
        self._directory, self._mesh, self._storage = Path(directory), mesh, storage
        self._programs: dict[tuple[str, tuple[str, ...]], Callable[..., Any]] = {}
        self.computed = 0

    def get(
        self,
        encoder: Encoder,
        data: DataConfig,
        split: str,
        numbers: np.ndarray,
        kinds: Sequence[str],
    ) -> dict[str, np.ndarray]:
        """Returns the features of some records.

        Args:
          encoder: what computes them.
          data: how clips are seen; its first source is read.
          split: of that source.
          numbers: int `[n]`, the records.
          kinds: "pooled" and "tokens".

        Returns:
          `{"pooled": float32 [n, F], "tokens": [n, N, F]}` of the kinds asked for, memory-mapped.

        Raises:
          UserError: a feature is not finite, a clip cannot be read, or the disk is full.
        """
        view = EvalSet(dataclasses.replace(data, streams=("video",)), split)
        paths = {kind: self._path(encoder, data, view, numbers, kind) for kind in kinds}
        found = {kind: _read(path) for kind, path in paths.items()}
        missing = _agreed([kind for kind in kinds if found[kind] is None], kinds)
        if missing:
            writers = {kind: self._begin(paths[kind], kind, len(numbers)) for kind in missing}
            self._compute(encoder, data, view, numbers, writers)
            hosts.barrier("read features")
            for kind in missing:
                found[kind] = _read(paths[kind])
        self.computed += len(missing)
        result = {}
        for kind, array in found.items():
            if array is None:
                raise UserError(
                    f"the features in {paths[kind]} are damaged as soon as they are written; "
                    "check the disk"
                )
            result[kind] = array
        return result

    def _path(
        self, encoder: Encoder, data: DataConfig, view: EvalSet, numbers: np.ndarray, kind: str
    ) -> Path:
        records = hashlib.blake2b(np.asarray(numbers, "<i8").tobytes(), digest_size=8).hexdigest()
        said = [VERSION, encoder.digest, seen(data), view.dataset.split.digest, records, kind]
        return self._directory / f"{kind}-{digest_of_words([*said, self._type(kind)])}"

    def _type(self, kind: str) -> str:
        return self._storage if kind == "tokens" else "float32"

    def _begin(self, path: Path, kind: str, count: int) -> _Writer:
        return _Writer(path, self._type(kind), count, f"{kind} features")

    def _compute(
        self,
        encoder: Encoder,
        data: DataConfig,
        view: EvalSet,
        numbers: np.ndarray,
        writers: Mapping[str, _Writer],
    ) -> None:
        kinds = tuple(sorted(writers))
        program = self._program(encoder, kinds)
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.set_mesh(self._mesh))
            name = f"features of {view.dataset.split.name} ({encoder.name})"
            main = jax.process_index() == 0
            shown = stack.enter_context(Progress(name, len(numbers), "clip", main=main))
            open_writers = {kind: stack.enter_context(writers[kind]) for kind in kinds}
            found = probes_embedding.embedded(
                functools.partial(program, encoder.arguments),
                view,
                numbers,
                batch_size=self.batch_size,
                mesh=self._mesh,
            )
            for arrays in found:
                for kind, rows in arrays.items():
                    open_writers[kind].append(rows)
                shown.add(len(rows))

    def _program(self, encoder: Encoder, kinds: tuple[str, ...]) -> Callable[..., Any]:
        key = (encoder.digest, kinds)
        if key not in self._programs:
            several = jax.process_count() > 1
            # Replicated results can be read by every process; one process reads the parts.
            out = meshes.replicated if several else meshes.batch_sharding

            def run(arguments: Any, video: Video) -> dict[str, jax.Array]:
                found = encoder.apply(arguments, video)
                if any(kind not in found for kind in kinds):
                    raise UserError(
                        f"{encoder.name} has no tokens, which the attentive probe reads; leave it "
                        "out of --probes here"
                    )
                return {kind: found[kind].astype(self._type(kind)) for kind in kinds}

            self._programs[key] = jax.jit(run, out_shardings=out(self._mesh))
        return self._programs[key]


class _Writer:
    """Writes one set, row by row, into a directory that appears when it is complete."""

    def __init__(self, path: Path, dtype: str, count: int, what: str):
        self._path, self._dtype, self._count, self._what = path, dtype, count, what
        self._stack = contextlib.ExitStack()
        self._rows: np.memmap | None = None
        self._at = 0

    def __enter__(self) -> _Writer:
        if jax.process_index() == 0:
            made = cache.new_directory(self._path, stays=lambda: _read(self._path) is not None)
            with storage.storing(self._path):
                self._made = self._stack.enter_context(made)
        return self

    def append(self, rows: np.ndarray) -> None:
        """Adds `[b, ...]`; UserError where one is not finite."""
        if not np.isfinite(rows.astype(np.float32)).all():
            raise UserError(
                f"the {self._what} are not finite in {self._dtype}; take an earlier checkpoint "
                "(--checkpoint=STEP), or set probe.storage to 'float32' if they are only too large"
            )
        if jax.process_index() != 0:
            return
        with storage.storing(self._path):
            if self._rows is None:
                # NumPy's format does not know bfloat16; its bits are kept as integers.
                kept = np.uint16 if self._dtype == "bfloat16" else np.dtype(self._dtype)
                self._rows = np.lib.format.open_memmap(
                    self._made / "features.npy", "w+", kept, (self._count, *rows.shape[1:])
                )
            rows = rows.view(self._rows.dtype)
            self._rows[self._at : self._at + len(rows)] = rows
            self._at += len(rows)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with storage.storing(self._path), self._stack:
            if self._rows is not None:
                self._rows.flush()
                self._rows = None
                file = self._made / "features.npy"
                storage.sync(file)
                cache.write_meta(self._made, dtype=self._dtype, crc=_crc(file))


def _read(path: Path) -> np.ndarray | None:
    """The array of a set, or None where there is no whole one."""
    if not path.is_dir():
        return None
    meta, file = cache.read_meta(path), path / "features.npy"
    try:
        if meta is None or _crc(file) != meta["crc"]:
            raise ValueError("its contents are not those that were written")
        array = np.load(file, mmap_mode="r")
        return array.view(ml_dtypes.bfloat16) if meta["dtype"] == "bfloat16" else array
    except (OSError, ValueError, KeyError, EOFError) as error:
        log.warning("the features in %s are damaged (%s); they are computed again", path, error)
        return None


def _crc(path: Path) -> int:
    found = 0
    with open(path, "rb") as file:
        while part := file.read(_CHUNK):
            found = zlib.crc32(part, found)
    return found


def _agreed(missing: list[str], kinds: Sequence[str]) -> list[str]:
    """What is missing, as the first process sees it."""
    if jax.process_count() == 1:
        return missing
    flags = np.array([kind in missing for kind in kinds])
    told = np.asarray(multihost_utils.broadcast_one_to_all(flags))
    return [kind for kind, absent in zip(kinds, told, strict=True) if absent]


def digest_of_words(said: Any) -> str:
    """Returns a digest of what JSON can say."""
    text = json.dumps(said, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def batches(rows: np.ndarray, size: int, *, seed: int, epochs: int) -> Iterator[np.ndarray]:
    """Yields `epochs` permutations of `rows`, cut into parts of `size`; the rest of each is left.

    Args:
      rows: int `[n]`, n at least `size`.
      size: of a batch.
      seed: decides the order.
      epochs: how often each row comes, less what is left over.
    """
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        for start in range(0, len(order) - size + 1, size):
            yield np.sort(order[start : start + size])


def rows_of(features: np.ndarray, rows: np.ndarray) -> jax.Array:
    """Returns rows of a memory-mapped array on the device, in the type they are kept in."""
    return jnp.asarray(np.ascontiguousarray(features[rows]))
