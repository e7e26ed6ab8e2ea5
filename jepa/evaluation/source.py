"""Where the suite gets clips, texts and classes: a narrow view of `jepa.data`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jepa.data import images, sources, tokenize, transforms
from jepa.data.clips import View
from jepa.data.config import DataConfig
from jepa.data.dataset import Dataset
from jepa.data.evalset import EvalSet
from jepa.data.schema import Record
from jepa.errors import UserError


class Source(Protocol):
    """What the suite needs of data."""

    attributes: Mapping[str, Mapping[str, Sequence[str]]]
    caption_query: str
    frame_control: str

    def records(self, split: str) -> Sequence[Record]:
        """Returns the records of a split in order, without encoded video."""

    def clips(self, split: str, control: str, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Yields (valid count, video stream) over some clips, in this order.

        `control` "none" adds nothing to what the run's own `frame_control` takes away.
        """

    def frames(self, split: str, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Returns uint8 RGB frames `[T, H, W, 3]` of some clips, as the model sees them."""

    def encode_queries(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the stream `query` of these texts."""

    def encode_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the stream `text` of these texts."""


class DatasetSource:
    """The dataset of a `data` section.

    Texts are always tokenized here, also where training reads cached features: class texts and
    candidate answers need not be among the texts that were cached.

    Attributes:
      attributes: label -> value -> class texts; empty for a dataset that defines none.
      caption_query: the query that asks for a caption: the config's first, else the dataset's.
      frame_control: what the run's model never sees, in training or here: `data.frame_control`.
    """

    def __init__(self, data_config: DataConfig | Mapping[str, Any], batch_size: int = 32):
        """Opens the dataset.

        Args:
          data_config: the `data` section.
          batch_size: clips decoded at once.
        """
        config = DataConfig.parse(data_config)
        # A cache would decode the whole of a split for the few clips that are looked at.
        self._config = dataclasses.replace(config, cache="none", text_features=None)
        self._batch_size = batch_size
        self.frame_control = config.frame_control
        self._sets: dict[str, EvalSet] = {}
        path = config.sources[0][0]
        self.attributes: Mapping[str, Mapping[str, Sequence[str]]] = {}
        queries = config.caption_query
        if not sources.is_dataset(path):
            queries = queries or (images.QUERY,)
        else:
            dataset = Dataset.open(path)
            self.attributes = dataset.attributes
            queries = queries or tuple(dataset.caption_queries)
        if not queries:
            raise UserError(
                "data.caption_query is empty and the dataset names none; set it to the question "
                "that a caption answers"
            )
        self.caption_query = queries[0]
        directory = path if sources.is_dataset(path) else None
        query = tokenize.find_tokenizer(config.query_tokenizer or config.tokenizer, directory)
        target = tokenize.find_tokenizer(config.tokenizer, directory)
        prompt = tokenize.find_prompt(config.text_prompt, target)
        self._query = tokenize.Tokenizer(query, config.query_length)
        self._target = tokenize.Tokenizer(target, config.text_length, prompt)

    def records(self, split: str) -> Sequence[Record]:
        """Returns the records of a split in order, without encoded video."""
        if split not in self._sets:
            self._sets[split] = EvalSet(self._config, split)
        return self._sets[split].records

    def clips(self, split: str, control: str, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Yields (valid count, video stream) over some clips, in this order."""
        config = self._config
        if control != "none":
            config = dataclasses.replace(config, frame_control=control)
        evaluated = EvalSet(config, split, max(indices, default=0) + 1)
        yield from evaluated.batches(self._batch_size, np.asarray(indices, np.int64))

    def frames(self, split: str, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Returns uint8 RGB frames `[T, H, W, 3]` of some clips, as the model sees them."""
        if not indices:
            return {}
        config = dataclasses.replace(self._config, pixels="rgb")
        opened = sources.open_source(config.sources[0][0], split)
        clips = sources.open_clips(opened, View(config, seed=0, random=False))
        numbers = np.unique(np.asarray(indices, np.int64))
        video = transforms.empty((len(numbers), config.frames), config.size, "rgb", grey=True)
        _, failed = clips.load(numbers, numbers, video, np.arange(len(numbers)))
        for row in failed:  # as the model saw it
            grey = transforms.empty((config.frames,), config.size, "rgb", grey=True)
            video["rgb"][row] = grey["rgb"]
        return dict(zip(numbers.tolist(), np.asarray(transforms.stream(video)), strict=True))

    def encode_queries(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the stream `{"ids", "mask"}` of these texts."""
        return self._query(texts)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the stream `{"ids", "mask", "hash"}` of these texts."""
        return {**self._target(texts), "hash": tokenize.text_hashes(texts)}
