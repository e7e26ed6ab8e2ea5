"""The stream `label`: the class of each record as its place in the list of classes.

B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jepa.data.schema import Record
from jepa.errors import UserError


class Labels:
    """Class indices of one label; picklable.

    Attributes:
        name: The label, a key of `Record.labels`.
        classes: Names of the classes; an index is a place in this tuple.
    """

    def __init__(self, name: str, classes: Sequence[str]):
        self.name = name
        self.classes = tuple(classes)
        self._index = {value: place for place, value in enumerate(self.classes)}

    def of(self, split: Any, numbers: np.ndarray, records: Sequence[Record]) -> np.ndarray:
        """Classes of records `numbers` [B] of a split.

        Args:
            split: Where they come from. One that knows its classes beforehand has `class_ids`,
                int32 [n], and its records are not looked at.
            numbers: int [B].
            records: B records without their bytes.

        Returns:
            int32 [B]; -1 where a record does not have the label.

        Raises:
            UserError: a record has a value that is not among the classes.
        """
        ids = getattr(split, "class_ids", None)
        if ids is not None:
            return ids[numbers]
        return np.array([self._find(record) for record in records], np.int32)

    def demand(self, ids: np.ndarray, split: Any, numbers: np.ndarray) -> None:
        """Raise UserError naming a record of `of` that has no label."""
        missing = np.flatnonzero(ids < 0)
        if len(missing):
            key = split.record(int(numbers[missing[0]]), video=False).key
            raise UserError(
                f"record {key!r} has no label {self.name!r}, which data.label asks for; name one "
                "that every record has, or take the others out of the dataset"
            )

    def _find(self, record: Record) -> int:
        value = record.labels.get(self.name)
        if value is None:
            return -1
        place = self._index.get(value)
        if place is None:
            raise UserError(
                f"record {record.key!r} has {self.name} {value!r}, which is not among the classes "
                f"of its dataset ({', '.join(self.classes[:8])}); add it to `attributes` in "
                "dataset.json"
            )
        return place
