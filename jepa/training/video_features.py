"""Features of a frozen X-encoder, computed once and then read in the place of the clips.

The counterpart of `features` for clips: a frozen X-encoder that sees a clip in one way alone gives
the same tokens at every step. They are computed on the mesh, from the parameters of the train
state, when a phase begins; another run, or another phase, with the same weights, clips and view
finds them on disk. What was interrupted goes on behind the last whole shard.

B clips, N tokens, D width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jepa.data import clips, sources, transforms
from jepa.data.config import DataConfig
from jepa.data.evalset import EvalSet
from jepa.data.jobs import Progress
from jepa.data.prefetch import put
from jepa.data.video_features import DTYPES, VideoFeatures, VideoFeaturesWriter
from jepa.errors import UserError
from jepa.methods.base import Method
from jepa.parallel import hosts
from jepa.parallel import mesh as meshes
from jepa.training import fingerprint
from jepa.training.features import check_writable

VERSION = 1
BATCH = 32  # clips for each part of the batch; rounded up where a shard is not a multiple

# Of the config, what decides the frames of a clip; see `clips.View`.
_SEEN = ("frames", "fps", "size", "pixels", "frame_control")
_WHY = "config.model.x_encoder.cache_features keeps the features of one view"


@dataclasses.dataclass(frozen=True)
class Tower:
    """What a method says of a frozen tower over clips, as its `cached_video_tower`.

    Attributes:
      part: of the parameters, a key.
      encode: jittable: (those parameters, video stream of B clips) -> `[B, N, D]`.
      dtype: in which the features are kept, of `jepa.data.video_features.DTYPES`.
    """

    part: str
    encode: Callable[[Any, Any], jax.Array]
    dtype: str


class Stopped(Exception):
    """The run was told to stop; the shards that are whole are kept."""


def tower_of(method: Method) -> Tower | None:
    """Returns the tower whose features are to be cached; None where there is none."""
    found: tuple[str, Any, str] | None = getattr(method, "cached_video_tower", lambda: None)()
    return None if found is None else Tower(*found)


def check(data: ConfigDict, method: Method) -> None:
    """Checks, before anything runs, that the features of these clips can be cached.

    Raises:
      UserError: a type that does not exist, something of the view is drawn at random, or a source
        has no directory for caches.
    """
    tower = tower_of(method)
    if tower is None:
        return
    if tower.dtype not in DTYPES:
        raise UserError(
            f"config.model.{tower.part}.cache_dtype is {tower.dtype!r}; it can be one of "
            f"{', '.join(DTYPES)}"
        )
    parsed = DataConfig.parse(data)
    parsed.check_one_view(_WHY)
    if parsed.images:
        raise UserError(
            f"config.model.{tower.part}.cache_features is True, but data.images mixes images in, "
            "which have no cache; set one of them otherwise"
        )
    for path, _ in parsed.sources:
        if not sources.is_dataset(path):
            raise UserError(
                f"config.model.{tower.part}.cache_features is True, but {path} has no directory "
                "for caches; set it to False, or prepare a dataset"
            )


def cache_video_features(
    data: ConfigDict,
    method: Method,
    params: Mapping[str, Any],
    mesh: Mesh,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> ConfigDict:
    """Returns `data` with `video_features` set, having computed what was missing.

    Does nothing unless the method offers `cached_video_tower`, a tuple of the fields of `Tower`.

    Args:
      data: the section; `check` holds.
      method: what is trained.
      params: of the train state, on `mesh`.
      mesh: whose data and fsdp axes cut a batch of clips.
      stopped: asked after each batch.

    Raises:
      UserError: as `check`; features that are not finite, too many unreadable clips, no room.
      Stopped: `stopped` said so.
    """
    tower = tower_of(method)
    if tower is None or data.get("video_features"):
        return data
    check(data, method)
    parsed = dataclasses.replace(DataConfig.parse(data), streams=("video",), text_features=None)
    arguments = params[tower.part]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    out = jax.eval_shape(tower.encode, shapes, _clip(parsed))
    of_tower = _digest(tower, arguments, parsed)
    paths = []
    for path, _ in parsed.sources:
        one = dataclasses.replace(parsed, path=path, mixture=())
        source = sources.open_source(path, parsed.split)
        said = f"{of_tower} {source.split.digest}"
        found = hashlib.blake2b(said.encode(), digest_size=8).hexdigest()
        directory = Path(path) / "cache" / f"video_features-{found}"
        if _absent(directory, found):
            if jax.process_index() == 0:
                check_writable(directory.parent, "features of a dataset's clips")
            shape = out.shape[1:]
            writer = VideoFeaturesWriter(directory, found, len(source.split), shape, tower.dtype)
            _compute(one, tower, arguments, mesh, writer, stopped)
        paths.append(str(directory))
    data = data.copy_and_resolve_references()
    with data.unlocked():
        data.video_features = tuple(paths)
    return data


def spent(data: ConfigDict) -> float:
    """Returns the seconds that it took to compute the cached features that `data` names."""
    return sum(VideoFeatures(path).seconds for path in data.get("video_features") or ())


def _clip(config: DataConfig) -> Any:
    """The video stream of a batch of one, as shapes."""
    shapes: Any = {
        name: jax.ShapeDtypeStruct((1, *shape), np.dtype(dtype))
        for name, (shape, dtype) in clips.planes(config).items()
    }
    return transforms.stream(shapes)


def _digest(tower: Tower, arguments: Any, config: DataConfig) -> str:
    """Of all that decides the features but the clips: program, weights, view and storage."""
    digest = hashlib.sha256()
    text = fingerprint.program(tower.encode, arguments, _clip(config))
    seen = {key: getattr(config, key) for key in _SEEN}
    digest.update(f"{VERSION} {jax.default_backend()} {tower.dtype} {seen} {text}".encode())
    fingerprint.add_arrays(digest, arguments)
    return digest.hexdigest()


def _absent(directory: Path, found: str) -> bool:
    """Whether there are no such features, as the first process sees it."""
    return bool(_agreed(np.array(not VideoFeatures.whole(directory, found))))


def _agreed(value: np.ndarray) -> np.ndarray:
    return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(value)


def _compute(
    config: DataConfig,
    tower: Tower,
    arguments: Any,
    mesh: Mesh,
    writer: VideoFeaturesWriter,
    stopped: Callable[[], bool],
) -> None:
    view = EvalSet(config, config.split)
    several = jax.process_count() > 1
    # Replicated results can be read by every process; one process reads the parts.
    out = (meshes.replicated if several else meshes.batch_sharding)(mesh)

    def run(arguments: Any, video: Any) -> jax.Array:
        return tower.encode(arguments, video).astype(tower.dtype)

    program = jax.jit(run, out_shardings=out)
    total = -(-len(view) // writer.per_shard)
    absent = np.zeros(total, bool)
    if jax.process_index() == 0:
        absent[writer.missing()] = True
    absent = _agreed(absent)
    count = sum(len(writer.numbers(index)) for index in np.flatnonzero(absent).tolist())
    shown = Progress("encoding the clips once", count, "clip", main=jax.process_index() == 0)
    with jax.set_mesh(mesh), shown as progress:
        for index in np.flatnonzero(absent).tolist():
            begin = time.perf_counter()
            numbers = writer.numbers(index)
            parts, bad = [], {}
            for video, valid in _batches(view, numbers, mesh):
                parts.append(np.asarray(jax.device_get(program(arguments, video)))[:valid])
                progress.add(valid)
                if stopped():
                    raise Stopped
            bad = _bad(view, numbers)
            features = np.concatenate(parts)
            if jax.process_index() == 0:
                writer.write(index, features, bad, time.perf_counter() - begin)
    if jax.process_index() == 0:
        writer.finish()
    hosts.barrier("read the features of clips")


def _batches(view: EvalSet, numbers: np.ndarray, mesh: Mesh) -> Any:
    """Yields (video stream on the mesh, number of real clips); each process decodes its part."""
    batch = BATCH * meshes.batch_shards(mesh)
    for valid, video in view.batches(batch, numbers, meshes.batch_part(mesh)):
        yield put(video, meshes.batch_sharding(mesh)), valid


def _bad(view: EvalSet, numbers: np.ndarray) -> dict[int, str]:
    """{number: reason} of the clips that could not be read, by whatever process."""
    own = {n: view.unreadable[n] for n in numbers.tolist() if n in view.unreadable}
    if jax.process_count() == 1:
        return own
    flags = np.isin(numbers, list(own))
    anywhere = np.asarray(multihost_utils.process_allgather(flags)).any(axis=0)
    elsewhere = "another process could not read it; see its log"
    return {n: own.get(n, elsewhere) for n in numbers[anywhere].tolist()}
