"""Batches from positions: which text, which frames, and what stands in for the unreadable.

B batch, P pairs of query and target a clip (the text streams have B P rows, clip by clip), K query
length, L text length, F features of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jepa import hashing
from jepa.data import tokenize, transforms
from jepa.data.cache import TextFeatures
from jepa.data.clips import Clips
from jepa.data.config import DataConfig
from jepa.data.labels import Labels
from jepa.data.sampling import Purpose
from jepa.data.schema import Record
from jepa.errors import UserError
from jepa.masks.config import Masks

# So many records drawn in place of one unreadable record, all unreadable, is no accident.
_ATTEMPTS = 16


class Texts:
    """Chooses the query and the target of a record and makes arrays of them."""

    def __init__(self, config: DataConfig, directory: Any | None):
        """`directory`: of the dataset whose own tokenizer `tokenizer="dataset"` means, or None."""
        path = tokenize.find_tokenizer(config.tokenizer, directory)
        query_path = tokenize.find_tokenizer(config.query_tokenizer or config.tokenizer, directory)
        prompt = tokenize.find_prompt(config.text_prompt, path)
        self.target = tokenize.Tokenizer(path, config.text_length, prompt)
        self.query = tokenize.Tokenizer(query_path, config.query_length)
        self.features = TextFeatures(config.text_features) if config.text_features else None
        weights = config.tasks
        total = sum(weights.values())
        self._captions = weights.get("caption", 0.0) / total
        self._levels = config.caption_levels
        self._weights = config.caption_weights

    def choose(
        self, record: Record, caption_queries: Sequence[str], uniforms: Sequence[Sequence[float]]
    ) -> list[tuple[str, str]]:
        """P pairs (query, target) of a record.

        Args:
            record: With captions or questions.
            caption_queries: Queries that ask for a caption that brings none of its own.
            uniforms: For each pair three numbers in [0, 1): for the task, the query, the target.

        Raises:
            UserError: the record has no text that may be a target, or there is no caption query.
        """
        levels = self._levels
        captions = [c for c in record.captions if not levels or c.level in levels]
        questions = [(q.query, q.answer) for q in record.questions]
        if not captions and not questions:
            raise UserError(
                f"record {record.key!r} has no question and no caption"
                + (f" of data.caption_levels={levels}" if levels else "")
                + "; remove it from the dataset or name other levels"
            )
        pairs: list[tuple[str, str]] = []
        fresh_captions, fresh_questions = list(captions), list(questions)
        for task, query, target in uniforms:
            if questions and not (captions and task < self._captions):
                fresh_questions = fresh_questions or list(questions)
                pairs.append(_take(fresh_questions, target))
                continue
            fresh_captions = fresh_captions or list(captions)
            weights = [self._weights.get(c.level, 1.0) for c in fresh_captions]
            caption = _take(fresh_captions, target, weights if self._weights else ())
            if not caption.query and not caption_queries:
                raise UserError(
                    "data.caption_query is empty and the dataset names no query either; set it "
                    "to a question that a caption answers"
                )
            pairs.append((caption.query or _pick(caption_queries, query), caption.text))
        return pairs

    def streams(self, queries: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
        """The streams `query` and `text` of these pairs, a row each."""
        if self.features is not None:
            text = {"features": self.features(targets)}
        else:
            text = self.target(targets)
        text["hash"] = tokenize.text_hashes(targets)
        return {"query": self.query(queries), "text": text}


def _pick(items: Sequence[Any], uniform: float) -> Any:
    return items[int(uniform * len(items))]


def _take(items: list[Any], uniform: float, weights: Sequence[float] = ()) -> Any:
    """Removes and returns one of the items, which are alike where there are no weights."""
    if not weights:
        return items.pop(int(uniform * len(items)))
    ends = np.cumsum(weights)
    index = int(np.searchsorted(ends, uniform * ends[-1], side="right"))
    return items.pop(min(index, len(items) - 1))


class Made(NamedTuple):
    """A host batch, and what became of the records that it was to be made of.

    Attributes:
        batch: The streams.
        keys: The record in each row, stand-ins included; with several datasets `number:key`.
        unreadable: {`dataset number:record number`: reason} of those that could not be decoded.
    """

    batch: dict[str, Any]
    keys: list[str]
    unreadable: dict[str, str]


class Assembler:
    """Host batches as a pure function of (seed, positions, picks); picklable."""

    def __init__(
        self,
        config: DataConfig,
        clips: Sequence[Clips],
        caption_queries: Sequence[Sequence[str]],
        texts: Texts | None,
        labels: Labels | None,
        masks: Masks | None,
        seed: int,
    ):
        """`texts`, `labels` and `masks`: None where `config.streams` has no such stream."""
        self.config, self.clips = config, list(clips)
        self.texts, self.labels, self.masks = texts, labels, masks
        self._queries = list(caption_queries)
        self._seed = seed

    def __call__(self, positions: np.ndarray, sets: np.ndarray, numbers: np.ndarray) -> Made:
        """Make the batch of B samples.

        A record that cannot be decoded is replaced by another of its dataset, drawn by a hash of
        (seed, position, attempt): the replacement, too, is the same everywhere.

        Args:
            positions: int64 [B], places in the global order.
            sets: int [B], which dataset.
            numbers: int [B], which record of it.

        Raises:
            UserError: a record has no text or no label where they are asked for, or replacements
                were unreadable again and again.
        """
        batch = len(positions)
        video = self.clips[0].empty(batch)
        records: list[Any] = [None] * batch
        unreadable: dict[str, str] = {}
        numbers = np.array(numbers)
        pending = np.arange(batch)
        for attempt in range(_ATTEMPTS):
            failed: list[int] = []
            for which in np.unique(sets[pending]).tolist():
                rows = pending[sets[pending] == which]
                found, reasons = self.clips[which].load(numbers[rows], positions[rows], video, rows)
                for row, record in zip(rows.tolist(), found, strict=True):
                    records[row] = record
                for i, reason in reasons.items():
                    unreadable[f"{which}:{numbers[rows[i]]}"] = reason
                    failed.append(int(rows[i]))
            if not failed:
                break
            pending = np.array(sorted(failed))
            draws = hashing.uniform(
                self._seed, positions[pending], int(Purpose.REPLACEMENT) + attempt
            )
            sizes = np.array([len(self.clips[which]) for which in sets[pending]])
            numbers[pending] = (draws * sizes).astype(numbers.dtype)
        else:
            raise UserError(
                f"{_ATTEMPTS} records in a row cannot be decoded, among them "
                f"{'; '.join(list(unreadable.values())[:3])}; check the dataset"
            )
        made: dict[str, Any] = {"video": transforms.stream(video)}
        if self.texts is not None:
            made.update(self._texts(self.texts, records, sets, positions))
        if self.labels is not None:
            made["label"] = self._labels(self.labels, records, sets, numbers)
        if self.masks is not None:
            made["masks"] = self.masks.sample(self._seed, positions)
        return Made(made, self._keys(records, sets, numbers), unreadable)

    def _keys(self, records: Sequence[Any], sets: np.ndarray, numbers: np.ndarray) -> list[str]:
        keys = [
            str(number) if record is None else record.key
            for record, number in zip(records, numbers.tolist(), strict=True)
        ]
        if len(self.clips) == 1:
            return keys
        return [f"{which}:{key}" for which, key in zip(sets.tolist(), keys, strict=True)]

    def _labels(
        self, labels: Labels, records: Sequence[Any], sets: np.ndarray, numbers: np.ndarray
    ) -> np.ndarray:
        made = np.empty(len(records), np.int32)
        for which in np.unique(sets).tolist():
            rows = np.flatnonzero(sets == which)
            split = self.clips[which].split
            found = labels.of(split, numbers[rows], [records[row] for row in rows.tolist()])
            labels.demand(found, split, numbers[rows])
            made[rows] = found
        return made

    def _texts(
        self, texts: Texts, records: Sequence[Record], sets: np.ndarray, positions: np.ndarray
    ) -> dict[str, Any]:
        parts = np.array([Purpose.TASK, Purpose.QUERY, Purpose.TARGET])
        purposes = np.arange(self.config.pairs_per_clip)[:, None] * Purpose.PAIR + parts
        draws = hashing.uniform(self._seed, positions[:, None, None], purposes).tolist()
        pairs = [
            pair
            for record, which, draw in zip(records, sets.tolist(), draws, strict=True)
            for pair in texts.choose(record, self._queries[which], draw)
        ]
        queries, targets = zip(*pairs, strict=True)
        return texts.streams(queries, targets)


def spec(assembler: Assembler, batch: int) -> dict[str, Any]:
    """Shapes and types of a batch, as `(shape, dtype name)` leaves."""
    config = assembler.config
    planes = assembler.clips[0].planes()
    video: Any = {name: ((batch, *shape), dtype) for name, (shape, dtype) in planes.items()}
    found: dict[str, Any] = {"video": video.get("rgb", video)}
    if assembler.texts is not None:
        found.update(_text_spec(config, assembler.texts, batch * config.pairs_per_clip))
    if assembler.labels is not None:
        found["label"] = ((batch,), "int32")
    if assembler.masks is not None:
        found["masks"] = assembler.masks.spec(batch)
    return found


def _text_spec(config: DataConfig, texts: Texts, pairs: int) -> dict[str, Any]:
    query, length = (pairs, config.query_length), (pairs, config.text_length)
    if texts.features is not None:
        text = {"features": ((pairs, texts.features.width), "float32")}
    else:
        text = {"ids": (length, "int32"), "mask": (length, "bool")}
    return {
        "query": {"ids": (query, "int32"), "mask": (query, "bool")},
        "text": {**text, "hash": ((pairs,), "int32")},
    }
