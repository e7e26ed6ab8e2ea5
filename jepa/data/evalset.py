"""One split in its own order, seen the same way every time: for evaluation."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import logging

from jepa.batch_part import WHOLE, BatchPart
from jepa.data import sources, transforms
from jepa.data.clips import View, check_unreadable
from jepa.data.config import DataConfig
from jepa.data.schema import Record
from jepa.errors import UserError


class EvalSet:
    """The clips of one split, each once and in order: middle window, centre crop, unmirrored.

    Neither captions nor labels are needed; `data.streams` says what there is beside the video.

    Of a mixture, the first dataset is the one that is evaluated. `data.frame_control` applies as in
    training; its random numbers depend on the record alone.

    Attributes:
        dataset: The opened source (`sources.Source`).
        texts: The tokenizers of the config (`texts.query`, `texts.target`) and the features; None
            without the stream "text".
        caption_queries: Queries that ask for a caption.
        classes: Names of the classes of `data.label`; () without the stream "label".
        unreadable: {record index: reason} of the clips that were read here; they are mid-grey, and
            logged.
    """

    def __init__(
        self, data_config: DataConfig | Mapping[str, Any], split: str, limit: int | None = None
    ):
        """Open; `limit` takes the first records only.

        Raises:
            UserError: a bad key or value, or a missing or empty split.
        """
        config = DataConfig.parse(data_config)
        self._config = config
        path = config.sources[0][0]
        self.dataset = sources.open_source(path, split)
        self.texts = (
            sources.open_texts(config, [self.dataset]) if "text" in config.streams else None
        )
        self._labels = (
            sources.open_labels(config, [self.dataset]) if "label" in config.streams else None
        )
        self.classes: tuple[str, ...] = self._labels.classes if self._labels is not None else ()
        self.caption_queries = sources.caption_queries(config, self.dataset)
        self._clips = sources.open_clips(self.dataset, View(config, seed=0, random=False))
        self._count = len(self._clips) if limit is None else min(limit, len(self._clips))
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return self._count

    @functools.cached_property
    def records(self) -> list[Record]:
        """The records in order, without their encoded bytes; read when first asked for."""
        return [self.dataset.split.record(i, video=False) for i in range(len(self))]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Classes of the records in order, int32 [n], places in `classes`; -1 for one of none.

        Raises:
            UserError: without the stream "label"; a record has a value that is no class.
        """
        if self._labels is None:
            raise UserError(
                f"data.streams is {self._config.streams!r}; add 'label' to it for the classes"
            )
        known = hasattr(self.dataset.split, "class_ids")
        records = [] if known else self.records
        return self._labels.of(self.dataset.split, np.arange(len(self)), records)

    def batches(
        self,
        batch_size: int,
        numbers: np.ndarray | None = None,
        part: BatchPart = WHOLE,
    ) -> Iterator[tuple[int, np.ndarray | transforms.Planes]]:
        """Yield `(valid, video)`: the video stream of `batch_size` clips, the first `valid` real.

        The last batch is padded with mid-grey clips, so that every batch has the same shape.

        Args:
            batch_size: B.
            numbers: Records to give, in this order, int [n]; all of them by default.
            part: Of each batch only these rows are read and given, for a process among several
                (`jepa.parallel.mesh.batch_part`). `valid` is of the whole batch.

        Raises:
            UserError: more than `data.max_bad_fraction` of the clips cannot be decoded (of at
                least 1000, where the split has so many; of a part, its share of them).
        """
        wanted = np.arange(len(self)) if numbers is None else np.asarray(numbers, np.int64)
        starts = range(0, len(wanted), batch_size)
        rows = part.rows(batch_size)
        threads = self._config.reading_threads
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque[tuple[int, Future[Any]]] = deque()
            for start in starts:
                whole = wanted[start : start + batch_size]
                own = whole[rows[rows < len(whole)]]
                ahead.append((len(whole), pool.submit(self._batch, own, len(rows))))
                if len(ahead) > threads:
                    yield self._noted(part.shares, *ahead.popleft())
            while ahead:
                yield self._noted(part.shares, *ahead.popleft())

    def _batch(self, numbers: np.ndarray, size: int) -> tuple[Any, dict[int, str]]:
        config = self._config
        video = transforms.empty((size, config.frames), config.size, config.pixels, grey=True)
        rows = np.arange(len(numbers))
        _, failed = self._clips.load(numbers, numbers, video, rows)
        for i in failed:
            grey = transforms.empty((config.frames,), config.size, config.pixels, grey=True)
            for name, plane in grey.items():
                video[name][i] = plane
        reasons = {int(numbers[i]): reason for i, reason in failed.items()}
        return transforms.stream(video), reasons

    def _noted(self, shares: int, valid: int, made: Future[Any]) -> tuple[int, Any]:
        video, reasons = made.result()
        for number, reason in reasons.items():
            if number not in self.unreadable:
                logging.warning("unreadable, its clip is grey in this evaluation: %s", reason)
        self.unreadable.update(reasons)
        check_unreadable(
            self.unreadable.values(),
            len(self._clips) // shares,
            self._config.max_bad_fraction,
            seen=len(self) // shares,
        )
        return valid, video
