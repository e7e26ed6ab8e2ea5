"""The k-NN probe of an encoder while it trains: its quality, where the loss says nothing of it.

For every method that embeds a clip alone. The same clips are embedded each time, nothing is fitted
or written down, and labels touch no weight. What it finds on given clips is what the probe `knn` of
`jepa.evaluation.probes` finds on them.

Letters: N training clips, M test clips, F features, C classes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jepa.data.config import DataConfig
from jepa.data.evalset import EvalSet
from jepa.errors import UserError, check_known
from jepa.evaluation import probes_embedding, probes_features, probes_knn, probes_labels
from jepa.methods.base import Method, Params
from jepa.nn.frames import Video
from jepa.parallel import mesh as meshes

log = logging.getLogger("jepa")

_SECTION = "evaluation.knn"
_LEAST = {"train_count": 1, "test_count": 1, "seed": 0, "batch_size": 1, "k": 1}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The section `evaluation.knn`.

    Attributes:
      train_split: whose labels vote; of the first dataset in `data`.
      test_split: which is measured; not one that results are reported on.
      labels: names of labels; () for `data.label`.
      train_count: labelled training clips for each label, drawn in turns of the classes; all where
        there are fewer.
      test_count: test clips for each label, drawn from those that have it; all where there are
        fewer.
      seed: of both draws.
      batch_size: clips embedded at once; rounded up to a multiple of the mesh's batch parts.
      k, temperature: of the probe; see `probes_knn`.
    """

    train_split: str = "train"
    test_split: str = "validation"
    labels: tuple[str, ...] = ()
    train_count: int = 2000
    test_count: int = 1000
    seed: int = 0
    batch_size: int = 64
    k: int = 20
    temperature: float = 0.07

    @staticmethod
    def parse(section: Mapping[str, Any]) -> Settings:
        """Returns the section with its defaults filled in.

        Raises:
          UserError: a key that does not exist, or a value out of range.
        """
        if not hasattr(section, "items"):
            raise UserError(
                f"config.{_SECTION} is {section!r}; give "
                "jepa.evaluation.online_knn.default_knn(...), or None to leave it out"
            )
        check_known(_SECTION, section, [field.name for field in dataclasses.fields(Settings)])
        found = Settings(**dict(section.items()))
        found._check()
        return dataclasses.replace(found, labels=tuple(found.labels))

    def _check(self) -> None:
        for key in ("train_split", "test_split"):
            split = getattr(self, key)
            if not isinstance(split, str) or not split:
                raise UserError(f"config.{_SECTION}.{key} is {split!r}; give the name of a split")
        if self.train_split == self.test_split:
            raise UserError(
                f"config.{_SECTION} has {self.train_split!r} for both train_split and test_split; "
                "a clip is its own nearest neighbour: name another split to test on"
            )
        named, several = self.labels, isinstance(self.labels, (tuple, list))
        if not several or not all(isinstance(name, str) and name for name in named):
            raise UserError(
                f"config.{_SECTION}.labels is {named!r}; give a tuple of names, as ('colour',)"
            )
        if len(set(named)) < len(named):
            raise UserError(f"config.{_SECTION}.labels is {named!r}; name each label once")
        for key, least in _LEAST.items():
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(
                    f"config.{_SECTION}.{key} is {value!r}; give a whole number of at least {least}"
                )
        number = isinstance(self.temperature, float)
        if not number or not 0 < self.temperature < 1:
            raise UserError(
                f"config.{_SECTION}.temperature is {self.temperature!r}; make it above 0 and below "
                "1"
            )


def default_knn(**values: Any) -> ConfigDict:
    """The section `evaluation.knn` with its defaults; see `Settings`."""
    return ConfigDict({**dataclasses.asdict(Settings()), **values})


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The clips of one label.

    Attributes:
      train, test: int `[N]` and `[M]`, records of the two splits, ascending.
      train_ids, test_ids: their classes, int.
      classes: C.
    """

    train: np.ndarray
    test: np.ndarray
    train_ids: np.ndarray
    test_ids: np.ndarray
    classes: int

    @property
    def chance(self) -> float:
        """What naming the most common class of the test clips gets."""
        return float(np.bincount(self.test_ids).max() / len(self.test_ids))


def draw(settings: Settings, data: DataConfig) -> dict[str, Drawn]:
    """Returns the clips of each label; they depend on nothing but the data and the section.

    Raises:
      UserError: a split or label does not exist, or there are fewer training clips than classes.
    """
    labels = probes_labels.read(
        data,
        settings.labels or (data.label,),
        train=settings.train_split,
        test=settings.test_split,
        limit=None,
        section=_SECTION,
    )
    return {name: _draw(settings, label) for name, label in labels.items()}


def _draw(settings: Settings, label: probes_labels.Labelled) -> Drawn:
    classes = len(np.unique(label.train[label.train >= 0]))
    if settings.train_count < classes:
        raise UserError(
            f"config.{_SECTION}.train_count is {settings.train_count}, and {label.name!r} has "
            f"{classes} classes, so some would never be said; make it at least {classes}"
        )
    train = probes_labels.draw(label.train, settings.train_count, seed=settings.seed)
    tested = np.random.default_rng([settings.seed, 2]).permutation(np.flatnonzero(label.test >= 0))
    test = np.sort(tested[: settings.test_count])
    return Drawn(train, test, label.train[train], label.test[test], len(label.classes))


class OnlineKnn:
    """Accuracies of the k-NN probe on clips that are drawn once.

    The program that embeds is compiled once. Clips are read anew each time, middle window and
    centre crop, as in every evaluation: kept, they would fill the memory. Every process of a
    multi-host run must make the same calls, reads its part of the clips, and gets the same numbers.

    Attributes:
      keys: names of the numbers: `LABEL` and `LABEL_chance` for each label.

    Args:
      method: gives `pooled["video"]` `[B, F]` by `embed` for a batch of clips alone.
      data_config: the `data` section.
      section: the section `evaluation.knn`.
      mesh: where the parameters lie.

    Raises:
      UserError: see `Settings.parse` and `draw`.
    """

    def __init__(
        self,
        method: Method,
        data_config: DataConfig | Mapping[str, Any],
        section: Mapping[str, Any],
        mesh: jax.sharding.Mesh,
    ):
        self._settings = settings = Settings.parse(section)
        data = DataConfig.parse(data_config)
        self._drawn = draw(settings, data)
        self.keys = [f"{name}{end}" for name in self._drawn for end in ("", "_chance")]
        # Some clips of a split are read; a cache in memory would decode and hold all of them.
        cache = "none" if data.cache == "memory" else data.cache
        data = dataclasses.replace(data, streams=("video",), text_features=None, cache=cache)
        self._train = EvalSet(data, settings.train_split)
        self._test = EvalSet(data, settings.test_split)
        self._mesh, shards = mesh, meshes.batch_shards(mesh)
        self._batch_size = -(-settings.batch_size // shards) * shards
        read = probes_features.reader(method, "mean")

        def embed(params: Params, state: Params, video: Video) -> dict[str, jax.Array]:
            return {"pooled": read((params, state), video)["pooled"].astype(jnp.float32)}

        # Every process gets all of the features.
        self._embed = jax.jit(embed, out_shardings=meshes.replicated(mesh))

    def __call__(self, params: Params, state: Params) -> dict[str, float]:
        """Measures.

        Args:
          params: `TrainState.averaged`: the moving average of the parameters where there is one.
          state: the method's mutable state.

        Returns:
          The numbers of `keys`; an accuracy is NaN where features are not finite.
        """
        drawn = list(self._drawn.values())
        train, train_places = self._features(
            self._train, [each.train for each in drawn], params, state
        )
        test, test_places = self._features(self._test, [each.test for each in drawn], params, state)
        hits = np.full(len(drawn), -1, np.int32)
        if not (np.isfinite(train).all() and np.isfinite(test).all()):
            log.warning("evaluation.knn: features are not finite, so no accuracy can be measured")
        elif jax.process_index() == 0:
            for number, (each, fit, asked) in enumerate(
                zip(drawn, train_places, test_places, strict=True)
            ):
                said = probes_knn.predict(
                    train[fit],
                    each.train_ids,
                    test[asked],
                    classes=each.classes,
                    k=self._settings.k,
                    temperature=self._settings.temperature,
                )
                hits[number] = np.sum(said == each.test_ids)
        if jax.process_count() > 1:
            # Which checkpoint is the best must be the same to all, to the last bit.
            hits = np.asarray(multihost_utils.broadcast_one_to_all(hits))
        found = {}
        for name, each, right in zip(self._drawn, drawn, hits.tolist(), strict=True):
            found[name] = right / len(each.test) if right >= 0 else float("nan")
            found[f"{name}_chance"] = each.chance
        return found

    def _features(
        self, view: EvalSet, wanted: Sequence[np.ndarray], params: Params, state: Params
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Features float32 `[n, F]` of all records wanted, and the places of each label's in it."""
        numbers = np.unique(np.concatenate(wanted))
        with jax.set_mesh(self._mesh):
            parts = probes_embedding.embedded(
                lambda video: self._embed(params, state, video),
                view,
                numbers,
                batch_size=self._batch_size,
                mesh=self._mesh,
            )
            features = np.concatenate([part["pooled"] for part in parts])
        return features, [np.searchsorted(numbers, records) for records in wanted]
