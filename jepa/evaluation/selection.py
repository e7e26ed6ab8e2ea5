"""Which clips, captions and questions a task asks about: fixed by the data and a seed alone.

Records are those of one split in order (`jepa.data.schema.Record`); an index is a position there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from jepa.data.schema import Question, Record
from jepa.errors import UserError

T = TypeVar("T")


def caption_of(record: Record, level: str) -> str | None:
    """Returns the first caption of this level, or None."""
    return next((caption.text for caption in record.captions if caption.level == level), None)


def distinct_captions(
    records: Sequence[Record], *, level: str, count: int, split: str
) -> list[tuple[int, str]]:
    """Returns the first `count` (index, caption) pairs whose captions differ pairwise.

    Raises:
      UserError: fewer than two clips have different captions of this level.
    """
    chosen: list[tuple[int, str]] = []
    seen: set[str] = set()
    for index, record in enumerate(records):
        text = caption_of(record, level)
        if text is not None and text not in seen:
            seen.add(text)
            chosen.append((index, text))
        if len(chosen) == count:
            break
    if len(chosen) < 2:
        levels = sorted({caption.level for record in records for caption in record.captions})
        raise UserError(
            f"evaluation.retrieval.level {level!r}: split {split!r} has fewer than two different "
            f"captions of this level; its levels are {levels}"
        )
    return chosen


def grouped_captions(
    records: Sequence[Record], *, level: str, groups: int | None, split: str
) -> list[tuple[int, str, str]]:
    """Returns (index, caption, group) of the clips of the first `groups` groups.

    A group counts when at least two of its clips have captions of this level and all of them
    differ: else its captions could not tell its clips apart.

    Raises:
      UserError: no group of the split can be used.
    """
    members: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for index, record in enumerate(records):
        text = caption_of(record, level)
        if record.group is not None and text is not None:
            members[record.group].append((index, text, record.group))
    usable = [
        rows
        for rows in members.values()
        if len(rows) > 1 and len({text for _, text, _ in rows}) == len(rows)
    ]
    if not usable:
        raise UserError(
            f"evaluation.hard.split {split!r}: no group has two clips with different captions of "
            f"level {level!r}; name a split with groups or set evaluation.hard to None"
        )
    return [row for rows in usable[:groups] for row in rows]


def balanced_questions(
    records: Sequence[Record], *, count: int, seed: int, split: str
) -> list[tuple[int, Question]]:
    """Returns up to `count` (index, question) pairs, spread over kinds and their answers.

    Kinds take turns, and within a kind its answers take turns, in a seeded order; so answers are
    as evenly frequent as the split allows and guessing the most frequent one gains little. A kind
    whose answers run out gives way to the others. Questions without candidates are not asked.

    Raises:
      UserError: the split has no question with candidates.
    """
    cells: dict[str, dict[str, list[tuple[int, Question]]]] = defaultdict(lambda: defaultdict(list))
    for index, record in enumerate(records):
        for question in record.questions:
            if question.candidates:
                cells[question.kind][question.answer].append((index, question))
    if not cells:
        raise UserError(
            f"evaluation.questions.split {split!r}: no question has candidates; "
            "name another split or set evaluation.questions to None"
        )
    rng = np.random.default_rng(seed)
    turns = [_take_turns(_shuffled(answers, rng)) for _, answers in sorted(cells.items())]
    chosen = _take_turns(turns)[:count]
    return sorted(chosen, key=lambda pair: (pair[0], pair[1].id))


def _shuffled(answers: dict[str, list[T]], rng: np.random.Generator) -> list[list[T]]:
    return [[rows[i] for i in rng.permutation(len(rows))] for _, rows in sorted(answers.items())]


def _take_turns(lists: Sequence[list[T]]) -> list[T]:
    """Interleaves lists: the first of each, the second of each, and so on."""
    longest = max(map(len, lists), default=0)
    return [rows[turn] for turn in range(longest) for rows in lists if turn < len(rows)]
