"""The tasks of the suite: each says which vectors it needs and scores them when it has them.

A task is planned from records alone and knows no model. `needs` are (clip index, query) pairs of
one split under one frame control; `texts` are the texts to compare with. Tasks that need the same
pair share one forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jepa.data.schema import Question, Record
from jepa.errors import UserError
from jepa.evaluation import (
    intervals,
    question_answering,
    retrieval,
    selection,
    zero_shot,
)
from jepa.evaluation.embedding import Pair

Vectors = Mapping[Pair, np.ndarray]
Texts = Mapping[str, np.ndarray]


@dataclasses.dataclass
class Scored:
    """What a task found: numbers for `evaluation.json`, and arrays that the report draws from.

    Attributes:
      numbers: nested dict of `Measure`, plain values and lists.
      evidence: arrays and lists by name; see the task.
    """

    numbers: dict[str, Any]
    evidence: dict[str, Any]


class Task(Protocol):
    """One question to a model; see the module's docstring."""

    @property
    def split(self) -> str:
        """The split that the clips are of."""

    @property
    def control(self) -> str:
        """What is taken away from the clips; see `data.frame_control`."""

    @property
    def needs(self) -> Sequence[Pair]:
        """The (clip index, query) pairs whose predictions are compared."""

    @property
    def texts(self) -> Sequence[str]:
        """The texts whose target vectors are compared."""

    def score(self, videos: Vectors, texts: Texts) -> Scored:
        """Returns the numbers and what they were made from."""


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Text-to-video and video-to-text among clips with pairwise different captions.

    Evidence: `indices` [N], `captions` [N], `scores` [N texts, N clips], `videos` [N, S],
    `ranks` {"text_to_video", "video_to_text"} each [N].
    """

    split: str
    query: str
    level: str
    captions: Sequence[tuple[int, str]]
    seed: int
    control: str = "none"

    @property
    def needs(self) -> list[Pair]:
        """See `Task`."""
        return [(index, self.query) for index, _ in self.captions]

    @property
    def texts(self) -> list[str]:
        """See `Task`."""
        return [text for _, text in self.captions]

    def score(self, videos: Vectors, texts: Texts) -> Scored:
        """See `Task`."""
        clips = np.stack([videos[pair] for pair in self.needs])
        lines = np.stack([texts[text] for text in self.texts])
        numbers = retrieval.both_directions(lines, clips, seed=self.seed)
        scores, own = lines @ clips.T, np.arange(len(lines))
        return Scored(
            {
                "split": self.split,
                "count": len(lines),
                "level": self.level,
                "query": self.query,
                **numbers,
            },
            {
                "indices": [index for index, _ in self.captions],
                "captions": self.texts,
                "scores": scores,
                "videos": clips,
                "ranks": {
                    "text_to_video": retrieval.ranks(scores, own),
                    "video_to_text": retrieval.ranks(scores.T, own),
                },
            },
        )


@dataclasses.dataclass(frozen=True)
class Hard:
    """For each caption the right clip among those of its group, which differ in little.

    Every caption counts once. Evidence: `indices`, `captions`, `groups`, `hits` [N], `scores`.
    """

    split: str
    query: str
    level: str
    captions: Sequence[tuple[int, str, str]]
    control: str = "none"

    @property
    def needs(self) -> list[Pair]:
        """See `Task`."""
        return [(index, self.query) for index, _, _ in self.captions]

    @property
    def texts(self) -> list[str]:
        """See `Task`."""
        return [text for _, text, _ in self.captions]

    def score(self, videos: Vectors, texts: Texts) -> Scored:
        """See `Task`."""
        clips = np.stack([videos[pair] for pair in self.needs])
        lines = np.stack([texts[text] for text in self.texts])
        groups = [group for _, _, group in self.captions]
        scores = lines @ clips.T
        hits, chances = retrieval.within_groups(scores, np.array(groups))
        back, _ = retrieval.within_groups(scores.T, np.array(groups))
        chance = float(chances.mean())
        return Scored(
            {
                "split": self.split,
                "count": len(hits),
                "groups": len(set(groups)),
                "level": self.level,
                "query": self.query,
                "text_to_video": intervals.clustered_proportion(hits, np.array(groups), chance),
                "video_to_text": intervals.clustered_proportion(back, np.array(groups), chance),
            },
            {
                "indices": [index for index, _, _ in self.captions],
                "captions": self.texts,
                "groups": groups,
                "hits": hits,
                "scores": scores,
            },
        )


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """The nearest class text for each label.

    Attributes:
      queries: label -> the query under which its clips are embedded.
      clips: label -> the (index, value) pairs of the clips that have the label.
      prompts: label -> value -> its class texts, in the dataset's order.

    Evidence: label -> `indices`, `truth` [N], `shares` [N, classes].
    """

    split: str
    queries: Mapping[str, str]
    clips: Mapping[str, Sequence[tuple[int, str]]]
    prompts: Mapping[str, Mapping[str, Sequence[str]]]
    control: str = "none"

    @property
    def needs(self) -> list[Pair]:
        """See `Task`."""
        return [
            (index, self.queries[label]) for label, rows in self.clips.items() for index, _ in rows
        ]

    @property
    def texts(self) -> list[str]:
        """See `Task`."""
        return [
            text for values in self.prompts.values() for texts in values.values() for text in texts
        ]

    def score(self, videos: Vectors, texts: Texts) -> Scored:
        """See `Task`."""
        labels, evidence = {}, {}
        for label, rows in self.clips.items():
            prompts = self.prompts[label]
            classes = list(prompts)
            flat = [(number, text) for number, name in enumerate(classes) for text in prompts[name]]
            clips = np.stack([videos[index, self.queries[label]] for index, _ in rows])
            truth = np.array([classes.index(value) for _, value in rows])
            shares = zero_shot.classify(
                clips,
                np.stack([texts[text] for _, text in flat]),
                np.array([number for number, _ in flat]),
                len(classes),
            )
            labels[label] = {
                "query": self.queries[label],
                "prompts": len(flat),
                **zero_shot.summary(truth, shares, classes),
            }
            evidence[label] = {
                "indices": [index for index, _ in rows],
                "truth": truth,
                "shares": shares,
            }
        return Scored({"split": self.split, "labels": labels}, evidence)


@dataclasses.dataclass(frozen=True)
class Questions:
    """The nearest of each question's candidate answers.

    Evidence: `hits` [N], `chosen` [N texts], `questions` [(index, Question)], `clips` [N keys].
    """

    split: str
    questions: Sequence[tuple[int, Question]]
    keys: Sequence[str]
    control: str = "none"

    @property
    def needs(self) -> list[Pair]:
        """See `Task`."""
        return [(index, question.query) for index, question in self.questions]

    @property
    def texts(self) -> list[str]:
        """See `Task`."""
        return [text for _, question in self.questions for text in question.candidates]

    def score(self, videos: Vectors, texts: Texts) -> Scored:
        """See `Task`."""
        answers = sorted(set(self.texts))
        row = {text: number for number, text in enumerate(answers)}
        chosen, hits = question_answering.nearest(
            np.stack([videos[pair] for pair in self.needs]),
            np.stack([texts[text] for text in answers]),
            [[row[text] for text in question.candidates] for _, question in self.questions],
            [row[question.answer] for _, question in self.questions],
        )
        numbers = question_answering.summary(
            hits,
            kinds=[question.kind for _, question in self.questions],
            answers=[question.answer for _, question in self.questions],
            chances=[1 / len(question.candidates) for _, question in self.questions],
            clips=self.keys,
        )
        return Scored(
            {"split": self.split, "count": len(hits), **numbers},
            {
                "hits": hits,
                "chosen": [answers[number] for number in chosen],
                "questions": list(self.questions),
                "clips": list(self.keys),
            },
        )


def plan_zero_shot(
    records: Sequence[Record],
    *,
    split: str,
    labels: Sequence[str],
    attributes: Mapping[str, Mapping[str, Sequence[str]]],
    queries: Mapping[str, str],
) -> ZeroShot:
    """Plans zero-shot classification over all `records` that have a label.

    Raises:
      UserError: a label without class texts, a value outside them, or no clip with the label.
    """
    clips = {}
    for label in labels:
        if label not in attributes:
            raise UserError(
                f"evaluation.zero_shot.labels has {label!r}, for which the dataset has no class "
                f"texts; it has {', '.join(sorted(attributes)) or 'none'}"
            )
        rows = [
            (i, record.labels[label]) for i, record in enumerate(records) if label in record.labels
        ]
        if not rows:
            raise UserError(
                f"evaluation.zero_shot.labels has {label!r}, which no clip of split {split!r} has"
            )
        strange = {value for _, value in rows} - set(attributes[label])
        if strange:
            raise UserError(
                f"split {split!r}: {label} {sorted(strange)[0]!r} has no class text; the dataset's "
                f"classes are {', '.join(attributes[label])}"
            )
        clips[label] = rows
    return ZeroShot(split, queries, clips, {label: attributes[label] for label in labels})


def plan_retrieval(
    records: Sequence[Record], *, split: str, query: str, level: str, count: int, seed: int
) -> Retrieval:
    """Plans retrieval among the first `count` clips with pairwise different captions."""
    captions = selection.distinct_captions(records, level=level, count=count, split=split)
    return Retrieval(split, query, level, captions, seed)


def plan_hard(
    records: Sequence[Record],
    *,
    split: str,
    query: str,
    level: str,
    groups: int | None,
    control: str = "none",
) -> Hard:
    """Plans retrieval within the first `groups` usable groups (None for all)."""
    captions = selection.grouped_captions(records, level=level, groups=groups, split=split)
    return Hard(split, query, level, captions, control)


def plan_questions(
    records: Sequence[Record], *, split: str, count: int, seed: int, control: str = "none"
) -> Questions:
    """Plans `count` questions, spread over kinds and answers."""
    chosen = selection.balanced_questions(records, count=count, seed=seed, split=split)
    return Questions(split, chosen, [records[index].key for index, _ in chosen], control)
