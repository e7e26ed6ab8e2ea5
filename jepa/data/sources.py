"""Opens what `data.path` and `data.mixture` name, and says where its caches and tokenizer lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa.data import folder, idx, images, tfds_video
from jepa.data.assemble import Texts
from jepa.data.clips import CachedClips, Clips, EncodedClips, View
from jepa.data.config import DataConfig
from jepa.data.dataset import Dataset
from jepa.data.labels import Labels
from jepa.data.raw import RawClips
from jepa.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of one dataset.

    Attributes:
        path: As the config says it.
        split: Its records, as `dataset.Split`.
        caption_queries: Queries that ask for a caption.
        directory: Of its caches and its tokenizer; None where it has no place of its own.
        classes: Of each label the class names, in the order that numbers them: a dataset's sorted,
            those of other sources as they bring them. Equal for all splits.
    """

    path: str
    split: Any
    caption_queries: tuple[str, ...]
    directory: Path | None
    classes: Mapping[str, tuple[str, ...]]


# What `data.path` may begin with, and who reads what comes behind it. Anything else is a dataset.
_IN_PLACE: Mapping[str, Callable[[str, str], Any]] = {
    images.PREFIX: tfds_video.open_split,
    idx.PREFIX: idx.IdxSplit,
    folder.PREFIX: folder.FolderSplit,
}


def is_dataset(path: str) -> bool:
    """Whether a path names the directory of a dataset, not a set that is read in place."""
    return not path.startswith(tuple(_IN_PLACE))


def open_source(path: str, split: str) -> Source:
    """Open a split of a dataset directory, or of a set that is read in place.

    Raises:
        UserError: it does not exist, has no such split, or the split is empty.
    """
    if is_dataset(path):
        dataset = Dataset.open(path)
        queries = tuple(dataset.caption_queries)
        classes = {label: tuple(sorted(values)) for label, values in dataset.attributes.items()}
        source = Source(path, dataset.split(split), queries, dataset.directory, classes)
    else:
        prefix = next(prefix for prefix in _IN_PLACE if path.startswith(prefix))
        found = _IN_PLACE[prefix](path.removeprefix(prefix), split)
        classes = {images.LABEL: found.classes} if found.classes else {}
        source = Source(path, found, (images.QUERY,), None, classes)
    if not len(source.split):
        raise UserError(f"split {split!r} of {path} is empty; fill it, or name another one")
    return source


def open_texts(config: DataConfig, sources: Sequence[Source]) -> Texts:
    """The tokenizers and features of a config; UserError where they are ambiguous or absent."""
    own = "dataset" in (config.tokenizer, config.query_tokenizer)
    if own and len(sources) > 1:
        raise UserError(
            "data.tokenizer is 'dataset', but data.mixture has several datasets, each with its "
            "own; set it to 'minilm' or to the path of one tokenizer.json"
        )
    return Texts(config, sources[0].directory)


def open_labels(config: DataConfig, sources: Sequence[Source]) -> Labels:
    """The classes of `data.label`, on which the sources must agree.

    Raises:
        UserError: a source does not define the label, or two have other classes of it.
    """
    name = config.label
    for source in sources:
        if not source.classes.get(name):
            known = ", ".join(sorted(source.classes)) or "none"
            raise UserError(
                f"data.label is {name!r}, which {source.path} does not define (it has {known}); "
                "name one that it has, or take 'label' out of data.streams"
            )
    first = sources[0]
    for source in sources:
        if source.classes[name] != first.classes[name]:
            raise UserError(
                f"data.label is {name!r}, of which {first.path} has {len(first.classes[name])} "
                f"classes and {source.path} has {len(source.classes[name])} or others; mix "
                "datasets of the same classes"
            )
    return Labels(name, first.classes[name])


def open_clips(source: Source, view: View) -> Clips:
    """The clips of a source, cached as the config says (this is where a cache is built)."""
    cache = view.config.cache
    if cache == "disk" and source.directory is None:
        raise UserError(
            f"data.cache is 'disk', but {source.path} has no directory for it; set it to 'memory'"
        )
    if view.config.fps is not None and not getattr(source.split, "timed", True):
        raise UserError(
            f"data.fps is {view.config.fps:g}, but TFDS keeps no frame rate of the videos of "
            f"{source.path}; set it to None, which spreads data.frames over the clip"
        )
    if isinstance(source.split, idx.IdxSplit):
        return RawClips(source.split, view)
    if cache == "none":
        return EncodedClips(source.split, view)
    if cache == "memory":
        return CachedClips(source.split, view, None)
    assert source.directory is not None
    return CachedClips(source.split, view, source.directory / "cache")


def caption_queries(config: DataConfig, source: Source) -> tuple[str, ...]:
    """The config's caption queries, else the dataset's."""
    return config.caption_query or source.caption_queries
