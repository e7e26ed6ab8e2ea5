"""Probes: what a frozen encoder's features say about labels it never saw.

Every probe is fitted on labels of one split and measured on another; its settings are chosen on a
part of the former. `Suite.measure` takes any `Encoder`, so that a trained network, the same network
at its random start and raw pixels go through one protocol.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.evaluation import (
    intervals,
    probes_attentive,
    probes_features,
    probes_finetune,
    probes_knn,
    probes_labels,
    probes_linear,
)
from jepa.evaluation.probes_config import PROBES, check
from jepa.evaluation.probes_features import Encoder, FeatureStore
from jepa.evaluation.probes_labels import Labelled


@dataclasses.dataclass(frozen=True)
class Fold:
    """The clips of one label and seed, as places in arrays of features.

    Attributes:
      fit, held: int, places among the training features; together all that is trained on.
      test: int, places among the test features.
      train_ids, test_ids: the class of every place, int.
      classes: C.
      seed: of the draw.
    """

    fit: np.ndarray
    held: np.ndarray
    test: np.ndarray
    train_ids: np.ndarray
    test_ids: np.ndarray
    classes: int
    seed: int

    @property
    def train(self) -> np.ndarray:
        """All places that are trained on."""
        return np.sort(np.concatenate([self.fit, self.held]))


# What a probe says: the class int `[m]` of each test clip, and how it was chosen.
Answer = tuple[np.ndarray, dict[str, Any]]


class Suite:
    """The probes of one config.

    Args:
      data: the section `data`.
      probe: the section `probe`, as `default_probe`.
      store: where features come from.
      dtype: in which attentive probes compute.
      mesh: where they are trained.
    """

    def __init__(
        self,
        data: DataConfig,
        probe: ConfigDict,
        store: FeatureStore,
        *,
        mesh: jax.sharding.Mesh,
        dtype: str = "float32",
    ):
        check(probe)
        self.config = probe
        self._data, self._store, self._mesh, self._dtype = data, store, mesh, dtype
        # Seeds that train on all labels and choose the same penalty need one fit.
        self._fitted: dict[tuple[float, bytes], probes_linear.Linear] = {}
        names = tuple(probe.labels) or (data.label,)
        self.labels: Mapping[str, Labelled] = probes_labels.read(
            data,
            names,
            train=probe.train_split,
            test=probe.test_split,
            limit=probe.test_count,
        )
        seeds = range(
            probe.seed,
            probe.seed + max(probe.seeds, probe.attentive.seeds, probe.finetune.seeds),
        )
        self._drawn = {
            (name, seed): probes_labels.draw(label.train, probe.train_labels, seed=seed)
            for name, label in self.labels.items()
            for seed in seeds
        }
        # One pass over the clips of a split, whatever the number of labels and seeds.
        self._train = np.unique(np.concatenate(list(self._drawn.values())))
        tested = np.stack([label.test for label in self.labels.values()])
        self._test = np.flatnonzero((tested >= 0).any(axis=0))

    def measure(self, encoder: Encoder, label: str, probe: str) -> tuple[dict[str, Any], list[Any]]:
        """Returns the numbers of one probe, and what each test clip earned, mean over seeds.

        Args:
          encoder: whose features.
          label: of `labels`.
          probe: of `PROBES`.

        Raises:
          UserError: features that are too wide, not finite or not there.
        """
        folds = self.folds(label, self._seeds(probe))
        if probe == "finetune":
            answers = [self._finetune(encoder, label, fold) for fold in folds]
            return self._summary(label, folds, answers, ())
        kind = "tokens" if probe == "attentive" else "pooled"
        train, test = (
            self._store.get(encoder, self._data, split, numbers, [kind])[kind]
            for split, numbers in (
                (self.config.train_split, self._train),
                (self.config.test_split, self._test),
            )
        )
        if kind == "pooled" and not encoder.exempt:
            self._check_width(train.shape[1])
        answer: Callable[[np.ndarray, np.ndarray, Fold], Answer] = getattr(self, f"_{probe}")
        self._fitted.clear()
        answers = [answer(train, test, fold) for fold in folds]
        return self._summary(label, folds, answers, train.shape[1:])

    def protocol(self, label: str, probe: str) -> str:
        """Returns a digest of all but the encoder that decides what a probe of a label finds.

        What `frame_control` takes away is the encoder's, so that it can be compared.
        """
        others = {*PROBES, "labels", "batch_size"} - {probe}
        section = {key: value for key, value in self.config.to_dict().items() if key not in others}
        seen = probes_features.seen(dataclasses.replace(self._data, frame_control="none"))
        said = [section, seen, self.labels[label].digest, label, probe, self._dtype]
        return probes_features.digest_of_words(said)

    def identity(self, encoder: Encoder, label: str, probe: str) -> str:
        """Returns a digest of all that decides what a probe finds."""
        said = [self.protocol(label, probe), encoder.digest, self._data.frame_control]
        return probes_features.digest_of_words(said)

    def groups(self, label: str) -> np.ndarray:
        """Returns the group of each test clip of a label, in the order of what they earned."""
        of = self.labels[label]
        return of.groups[of.test >= 0]

    def folds(self, label: str, seeds: Sequence[int]) -> list[Fold]:
        """Returns the clips of a label for each seed."""
        of = self.labels[label]
        found = []
        for seed in seeds:
            drawn = self._drawn[label, seed]
            places = np.searchsorted(self._train, drawn)
            fit, held = probes_labels.hold_out(of.train[drawn], self.config.held_out, seed=seed)
            found.append(
                Fold(
                    fit=places[fit],
                    held=places[held],
                    test=np.flatnonzero(of.test[self._test] >= 0),
                    train_ids=of.train[self._train],
                    test_ids=of.test[self._test],
                    classes=len(of.classes),
                    seed=seed,
                )
            )
        return found

    def _seeds(self, probe: str) -> range:
        section = self.config if probe in ("knn", "linear") else self.config[probe]
        count = section.seeds
        if probe == "knn" and self.config.train_labels is None:
            count = 1  # nothing is drawn, so another seed would change nothing
        return range(self.config.seed, self.config.seed + count)

    def _check_width(self, width: int) -> None:
        most = self.config.most_features
        if most is not None and width > most:
            raise UserError(
                f"the pooled features have {width} numbers, and config.probe.most_features allows "
                f"{most}; take a narrower encoder, or raise it and say so beside the figure"
            )

    def _knn(self, train: np.ndarray, test: np.ndarray, fold: Fold) -> Answer:
        section = self.config.knn
        said = probes_knn.predict(
            train[fold.train],
            fold.train_ids[fold.train],
            test[fold.test],
            classes=fold.classes,
            k=section.k,
            temperature=section.temperature,
        )
        return said, {"k": min(section.k, len(fold.train))}

    def _linear(self, train: np.ndarray, test: np.ndarray, fold: Fold) -> Answer:
        """Chooses a penalty on the labels held out, and fits all labels with it."""
        section = self.config.linear
        options = {"classes": fold.classes, "iterations": section.iterations}
        tried = probes_linear.fit(
            train[fold.fit], fold.train_ids[fold.fit], l2=tuple(section.l2), **options
        )
        logits = tried.logits(train[fold.held])
        best = probes_linear.select(logits, fold.train_ids[fold.held])
        chosen = section.l2[best]
        key = chosen, fold.train.tobytes()
        if key not in self._fitted:
            self._fitted[key] = probes_linear.fit(
                train[fold.train], fold.train_ids[fold.train], l2=(chosen,), **options
            )
        final = self._fitted[key]
        said = final.logits(test[fold.test])[0].argmax(axis=1)
        return said, {"l2": chosen, **_held(logits[best], fold), "steps": final.steps}

    def _attentive(self, train: np.ndarray, test: np.ndarray, fold: Fold) -> Answer:
        options = probes_attentive.Options(**_options(self.config.attentive), dtype=self._dtype)
        probes = probes_attentive.Probes(
            classes=fold.classes, width=train.shape[-1], options=options, mesh=self._mesh
        )
        params = probes.train(train, fold.train_ids, fold.fit, seed=fold.seed)
        logits = probes.logits(params, train, fold.held)
        best = probes_linear.select(logits, fold.train_ids[fold.held])
        one = jax.tree.map(lambda x: x[best : best + 1], params)
        said = probes.logits(one, test, fold.test)[0].argmax(axis=1)
        rate, decay = options.grid[best]
        how = {"learning_rate": rate, "weight_decay": decay, "heads": probes.model.heads}
        return said, {**how, **_held(logits[best], fold)}

    def _finetune(self, encoder: Encoder, label: str, fold: Fold) -> Answer:
        options = probes_finetune.Options(**_options(self.config.finetune))
        tuner = probes_finetune.FineTuner(
            encoder, self._data, classes=fold.classes, options=options, mesh=self._mesh
        )
        config = self.config
        tried: list[tuple[float, np.ndarray, Any]] = []
        for rate in options.learning_rates:
            weights = tuner.train(
                config.train_split,
                self._train[fold.fit],
                fold.train_ids[fold.fit],
                rate=rate,
                seed=fold.seed,
            )
            held = tuner.logits(weights, config.train_split, self._train[fold.held])
            best = probes_linear.select(
                np.stack([*(other for _, other, _ in tried), held]), fold.train_ids[fold.held]
            )
            # Only the best weights so far are kept.
            tried.append((rate, held, weights))
            tried = [(r, h, w if place == best else None) for place, (r, h, w) in enumerate(tried)]
        rate, held, weights = tried[best]
        said = tuner.logits(weights, config.test_split, self._test[fold.test]).argmax(axis=1)
        return said, {"learning_rate": rate, **_held(held, fold)}

    def _summary(
        self,
        label: str,
        folds: Sequence[Fold],
        answers: Sequence[Answer],
        shape: tuple[int, ...],
    ) -> tuple[dict[str, Any], list[Any]]:
        of, fold = self.labels[label], folds[0]
        truth = fold.test_ids[fold.test]
        hits = np.stack([said == truth for said, _ in answers])
        mean = hits.mean(axis=0)
        by_seed = hits.mean(axis=1)
        common = np.bincount(truth, minlength=fold.classes).max() / len(truth)
        numbers = {
            "accuracy": intervals.clustered_proportion(mean, self.groups(label), float(common)),
            "balanced_accuracy": intervals.balanced_proportion(
                mean, truth, 1 / len(np.unique(truth))
            ),
            "per_class": {
                name: intervals.proportion(mean[truth == number])
                for number, name in enumerate(of.classes)
                if np.any(truth == number)
            },
            "by_seed": by_seed.tolist(),
            "spread": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
            "features": list(shape),
            "labels": {
                "train": len(fold.train),
                "test": len(truth),
                "train_without": int((of.train < 0).sum()),
                "test_without": int((of.test < 0).sum()),
            },
            "chosen": [how for _, how in answers],
        }
        return numbers, np.round(mean, 6).tolist()


def _options(section: ConfigDict) -> dict[str, Any]:
    """A section without its seeds, its lists as tuples."""
    values = {key: value for key, value in section.items() if key != "seeds"}
    return {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in values.items()}


def _held(logits: np.ndarray, fold: Fold) -> dict[str, float]:
    hits = logits.argmax(axis=-1) == fold.train_ids[fold.held]
    return {"held_out_accuracy": float(hits.mean())}
