"""Which clips a probe may learn from, which choose its settings, and which it is tested on.

n records of a split, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jepa.data import sources
from jepa.data.config import DataConfig
from jepa.data.evalset import EvalSet
from jepa.errors import UserError


@dataclasses.dataclass(frozen=True)
class Labelled:
    """One label of two splits.

    Attributes:
      name: of the label.
      classes: names of the C classes.
      train, test: int32 `[n]`, the class of each record of the split; -1 for one of none.
      groups: `[n]` of the test split: clips that differ in one thing only share a number.
      digest: of the two splits.
    """

    name: str
    classes: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray
    groups: np.ndarray
    digest: str


def read(
    data: DataConfig,
    names: tuple[str, ...],
    *,
    train: str,
    test: str,
    limit: int | None,
    section: str = "probe",
) -> Mapping[str, Labelled]:
    """Returns the labels of two splits by name.

    Args:
      data: the section `data`; its first source is read.
      names: of labels.
      train: the split whose labels train.
      test: the split that measures.
      limit: test on the first so many records only; None for all.
      section: of the config that names splits and labels, for messages.

    Raises:
      UserError: a split or label does not exist, or nobody has the label.
    """
    if train == test:
        raise UserError(
            f"{section}.train_split and {section}.test_split are both {train!r}; a probe that is "
            "tested on the labels it has seen measures its memory: name another split"
        )
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    # A cache of clips would decode a whole split, and no clip is looked at here.
    data = dataclasses.replace(data, streams=("video",), cache="none")
    classes, groups, digest = {}, np.zeros(0, np.int64), ""
    for side, split, most in (("train", train, None), ("test", test, limit)):
        view = EvalSet(data, split, most)
        digest += f"{view.dataset.split.digest} "
        known = getattr(view.dataset.split, "class_ids", None)
        records = view.records if known is None else []
        numbers = np.arange(len(view))
        for name in names:
            if not view.dataset.classes.get(name):
                has = ", ".join(sorted(view.dataset.classes)) or "none"
                raise UserError(
                    f"{section}.labels (or data.label, where they are empty) has {name!r}, which "
                    f"{view.dataset.path} does not define; name one that it has: {has}"
                )
            own = dataclasses.replace(data, label=name)
            labels = sources.open_labels(own, [view.dataset])
            ids = labels.of(view.dataset.split, numbers, records)
            if np.all(ids < 0):
                raise UserError(
                    f"{section}.labels has {name!r}, which no record of split {split!r} has; name "
                    "another label or split"
                )
            found[name][side], classes[name] = ids, labels.classes
        if side == "test":
            marks = [record.group or record.key for record in records]
            groups = np.unique(marks, return_inverse=True)[1] if marks else numbers
    return {
        name: Labelled(name, classes[name], sides["train"], sides["test"], groups, digest)
        for name, sides in found.items()
    }


def draw(ids: np.ndarray, count: int | None, *, seed: int) -> np.ndarray:
    """Returns the labelled records that are trained on, int, in order.

    Args:
      ids: int `[n]`, classes; records with -1 are never drawn.
      count: how many; None, or more than there are, for all. The classes take turns, so that each
        has as many as the others for as long as it lasts.
      seed: decides which.
    """
    labelled = np.flatnonzero(ids >= 0)
    if count is None or count >= len(labelled):
        return labelled
    order = np.random.default_rng([seed, 0]).permutation(labelled)
    # The place of each record among those of its class; the classes take turns by it.
    turn = np.zeros(len(order), np.int64)
    for value in np.unique(ids[order]):
        of_class = ids[order] == value
        turn[of_class] = np.arange(of_class.sum())
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])


def hold_out(ids: np.ndarray, share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits labelled records into those that fit and those that choose, int places in `ids`.

    Args:
      ids: int `[r]`, their classes.
      share: of each class that is held out: rounded, but at least one where a class has two.
      seed: decides which.
    """
    rng = np.random.default_rng([seed, 1])
    held = []
    for value in np.unique(ids):
        places = rng.permutation(np.flatnonzero(ids == value))
        number = min(max(round(share * len(places)), 1), len(places) - 1)
        held.append(places[:number])
    out = np.sort(np.concatenate(held))
    if not len(out):
        raise UserError(
            "no class has two labelled training clips, so none can be held out to choose a probe's "
            "settings; raise probe.train_labels"
        )
    return np.setdiff1d(np.arange(len(ids)), out), out
