"""Train batches in an order that depends on (seed, step) alone.

This module and `order` are those that import Grain.

Grain gives the global order (shuffle, repeat, mix), the threads and the worker processes. The batch
at step k is made of positions k B .. k B + B - 1 of that order; each host makes its rows of it, so
that the global array is the same, row by row, on any number of hosts. (Grain's ElasticIterator
deals rows out in turn, which permutes them with the number of hosts.) Every random choice of a
sample is a hash of (seed, position); see `hashing`.

B global batch, b = B / hosts rows of this host.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from jepa.batch_part import WHOLE, BatchPart
from jepa.data import assemble, sources
from jepa.data.assemble import Assembler, Made
from jepa.data.clips import Clips, View, check_unreadable
from jepa.data.config import DataConfig
from jepa.data.jobs import start_worker
from jepa.data.joint import JointLoader, images_config
from jepa.data.order import ENDLESS, Order
from jepa.data.video_features import FeatureClips
from jepa.errors import UserError
from jepa.masks import config as masks_config
from jepa.masks.config import Masks

_POSITION = "position"
_DIGESTS = "digests"
_IMAGES = 1 << 31
_RESTARTS = 3  # of worker processes, without a batch between
_CLOSING = 10.0  # seconds for threads and worker processes to end by themselves
_KILLED = "terminated unexpectedly"  # what Grain 0.2.18 says of them, in a RuntimeError


class _Batches:
    """Host batches from a position on, as a Grain source of random access; picklable."""

    def __init__(
        self, assembler: Assembler, order: Order, first: int, stride: int, rows: np.ndarray
    ):
        self._assembler, self._order = assembler, order
        self._first, self._stride, self._rows = first, stride, rows

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Made:
        positions = self._first + int(index) * self._stride + self._rows
        return self._assembler(positions, *self._order(positions))


class TrainLoader:
    """Endless iterator of host-local batches (nested dicts of NumPy arrays).

    Attributes:
        element_spec: `jax.ShapeDtypeStruct` of every array of a host-local batch.
        unreadable: {record: reason} of the records that could not be decoded so far.
        timeout: Seconds that a step may wait for a batch.
    """

    def __init__(
        self,
        config: DataConfig,
        assembler: Assembler,
        order: Order,
        *,
        global_batch: int,
        part: BatchPart,
    ):
        self._config, self._assembler, self._order = config, assembler, order
        self._global_batch = global_batch
        self._rows = part.rows(global_batch)
        self._position = 0
        self._records = sum(len(clips) for clips in assembler.clips)
        self._digests = [str(clips.split.digest) for clips in assembler.clips]
        self._iterator: Any = None
        self._keys: list[str] = []
        self.timeout: float = config.timeout
        self.unreadable: dict[str, str] = {}
        self.element_spec = _structs(assemble.spec(assembler, len(self._rows)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        made = self._made()
        self._position += self._global_batch
        self._keys = made.keys
        self._note(made.unreadable)
        return made.batch

    def _made(self) -> Made:
        """What the next batch is made of, by new worker processes where one was killed.

        A batch depends on its position alone, so they make the very batches of the old ones.
        """
        for _ in range(_RESTARTS):
            iterator = self._iterator
            try:
                if iterator is None:
                    iterator = self._iterator = self._start()
                return next(iterator)
            except RuntimeError as error:
                # Not those that `close` killed, called from another thread.
                if _KILLED not in str(error) or self._iterator is not iterator:
                    raise
                logging.warning("a data worker was killed; starting data.workers anew (%s)", error)
                self.close()
        raise UserError(
            f"data workers were killed {_RESTARTS} times in a row, most likely for want of memory; "
            f"make data.workers={self._config.workers} smaller, or 0 for threads"
        )

    @property
    def vocabulary(self) -> dict[str, int | None]:
        """One more than the largest token id of the streams `query` and `text`.

        None for a stream that brings cached features instead of ids, or is not in the batch. A
        model whose table of tokens is smaller than this would look up rows that it does not have.
        """
        texts = self._assembler.texts
        if texts is None:
            return {"query": None, "text": None}
        return {
            "query": texts.query.vocabulary_size,
            "text": texts.target.vocabulary_size if texts.features is None else None,
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the stream `label` numbers; () without that stream."""
        labels = self._assembler.labels
        return labels.classes if labels is not None else ()

    @property
    def masks(self) -> Masks | None:
        """The sampler of the stream `masks`, which knows its counts; None without that stream."""
        return self._assembler.masks

    def state(self) -> dict[str, Any]:
        """JSON that `restore` goes on from, the same on all hosts.

        `position`, the one number that moves: samples that the batches handed out so far took from
        the global order, on all hosts. `digests`: of the splits that they come from.
        """
        return {_POSITION: self._position, _DIGESTS: list(self._digests)}

    def record_keys(self) -> list[str]:
        """The keys of the records in the last batch, a row each; see `assemble.Made`."""
        return self._keys

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()`, whatever host it came from and however many there were.

        Raises:
            UserError: it is no state, or a dataset is not the one that it came from.
        """
        if _POSITION not in state or int(state[_POSITION]) < 0:
            raise UserError(f"{dict(state)} is no state of a loader; the checkpoint is damaged")
        self._check_digests(state.get(_DIGESTS))
        self.close()
        self._position = int(state[_POSITION])

    def close(self) -> None:
        """End threads and processes. `next` would start them again."""
        iterator, self._iterator = self._iterator, None
        if hasattr(iterator, "close"):
            _close(iterator)

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> Any:
        config = self._config
        batches = _Batches(
            self._assembler,
            self._order,
            self._position,
            self._global_batch,
            self._rows,
        )
        threads = 1 if config.workers else config.reading_threads
        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
        dataset = grain.MapDataset.source(batches).to_iter_dataset(read)
        if config.workers:
            # Grain 0.2.18 reads absl flags here, which only programs under absl.app have parsed
            # (google/grain#1355).
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(
                num_workers=config.workers, per_worker_buffer_size=2
            )
            dataset = dataset.mp_prefetch(options, worker_init_fn=start_worker)
        return iter(dataset)

    def _check_digests(self, digests: Sequence[str] | None) -> None:
        """Raise UserError unless these are the splits' digests; None: from before they were kept.

        With other records, or as many in another order, the same position means other samples.
        """
        if digests is None:
            return
        paths = [path for path, _ in self._config.sources]
        if len(digests) != len(paths):
            raise UserError(
                f"this run began with {len(digests)} datasets, and data.mixture now has "
                f"{len(paths)}; give the old ones, or begin anew in another --workdir"
            )
        for path, now, then in zip(paths, self._digests, digests, strict=True):
            if now != then:
                raise UserError(
                    f"the split {self._config.split!r} of {path} has changed since this run began "
                    f"(digest {now[:12]}, in the checkpoint {str(then)[:12]}); bring the old one "
                    "back, or begin anew in another --workdir"
                )

    def _note(self, unreadable: Mapping[str, str]) -> None:
        new = {key: reason for key, reason in unreadable.items() if key not in self.unreadable}
        if not new:
            return
        for reason in new.values():
            logging.warning("unreadable, another record stands in: %s", reason)
        self.unreadable.update(new)
        check_unreadable(
            self.unreadable.values(),
            self._records,
            self._config.max_bad_fraction,
            seen=self._position,
        )


def _close(iterator: Any) -> None:
    """Ends Grain's threads and worker processes; processes that hang are killed.

    Grain waits for a thread that waits for them, and hears of a killed one only.
    """
    ending = threading.Thread(target=iterator.close, daemon=True)
    ending.start()
    ending.join(_CLOSING)
    if ending.is_alive():
        for worker in multiprocessing.active_children():
            worker.kill()
        ending.join(_CLOSING)


def make_train_loader(
    data_config: DataConfig | Mapping[str, Any],
    *,
    global_batch: int,
    seed: int,
    part: BatchPart = WHOLE,
) -> TrainLoader | JointLoader:
    """Open the datasets of a config for training; builds the decoded cache where one is wanted.

    Args:
        data_config: See `config.DataConfig`.
        global_batch: B, rows over all hosts.
        seed: Of the order and of every random choice.
        part: Which rows of the batch this host makes (`jepa.parallel.mesh.batch_part`). Hosts whose
            devices hold the same rows (a tensor axis across hosts) take the same part.

    Raises:
        UserError: a bad key or value, a missing or empty dataset, hosts that do not divide B.
    """
    config = DataConfig.parse(data_config)
    clips = _open(config, global_batch, "train.global_batch", seed, part)
    if not config.images:
        return clips
    images, rows = images_config(config)
    # Another seed, or equal positions would draw equal numbers for a clip and an image.
    return JointLoader(clips, _open(images, rows, "data.images.batch", seed ^ _IMAGES, part))


def _open(
    config: DataConfig,
    global_batch: int,
    key: str,
    seed: int,
    part: BatchPart,
) -> TrainLoader:
    """As `make_train_loader`, of one stream; `key` says in the config how large its batch is."""
    if global_batch < 1 or global_batch % part.count:
        raise UserError(
            f"{key} is {global_batch}, which {part.shares} hosts do not divide; "
            f"make it a multiple of {part.count}"
        )
    opened = [sources.open_source(path, config.split) for path, _ in config.sources]
    texts = sources.open_texts(config, opened) if "text" in config.streams else None
    labels = sources.open_labels(config, opened) if "label" in config.streams else None
    masks = None
    if "masks" in config.streams:
        masks = masks_config.from_config(config.masks, config.grid, "data.masks")
    view = View(config, seed)
    clips = _open_clips(config, opened, view)
    queries = [sources.caption_queries(config, source) for source in opened]
    order = Order([len(part) for part in clips], [w for _, w in config.sources], seed)
    return TrainLoader(
        config,
        Assembler(config, clips, queries, texts, labels, masks, seed),
        order,
        global_batch=global_batch,
        part=part,
    )


def _open_clips(config: DataConfig, opened: Sequence[sources.Source], view: View) -> list[Clips]:
    if not config.video_features:
        return [sources.open_clips(source, view) for source in opened]
    clips: list[Clips] = [
        FeatureClips(source.split, view, path)
        for source, path in zip(opened, config.video_features, strict=True)
    ]
    for path, each in zip(config.video_features, clips, strict=True):
        if each.planes() != clips[0].planes():
            raise UserError(
                f"data.video_features has {path!r} with {each.planes()}, and "
                f"{config.video_features[0]!r} with {clips[0].planes()}; compute them alike"
            )
    return clips


def _structs(spec: Any) -> Any:
    # Worker processes import this module and have no use for JAX.
    import jax

    if isinstance(spec, dict):
        return {key: _structs(value) for key, value in spec.items()}
    shape, dtype = spec
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))
