"""The evaluation of a trained model: retrieval, zero-shot classes, questions, controls.

`Evaluator.evaluate` returns the nested numbers of `evaluation.json`; `Evaluator.quick` a flat
subset for callbacks during training. Both use the same programs, compiled once.

Keys of the result, each number a `Measure` {value, low, high, count, chance}:

    retrieval.{text_to_video,video_to_text}.{recall_at_1,recall_at_5,recall_at_10,median_rank}
    zero_shot.labels.LABEL.{accuracy,mean_class_accuracy,per_class.CLASS}, .classes, .confusion
    questions.{overall,balanced}, questions.kinds.KIND.{accuracy,balanced,answers.ANSWER}
    hard.{text_to_video,video_to_text}, hard.groups
    novel.retrieval, novel.zero_shot                as above, on unseen combinations
    controls.blank.questions                        the same model sees grey frames
    controls.{single,shuffled}.hard                 the same model sees one frame, or no order
    gains.questions_over_blank                      paired differences to these controls
    gains.hard_over_same_model_{single,shuffled}

The controls take something away from a model that was trained with it. How far it is above a model
that was *trained* on single or shuffled frames is another question: see
`jepa.evaluation.baselines`. Such a model (`data.frame_control` is set) is evaluated on its own kind
of frames throughout, and without controls.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jepa.errors import UserError, check_known
from jepa.evaluation import intervals, tasks
from jepa.evaluation.embedding import Embedder, Pair
from jepa.evaluation.source import DatasetSource, Source
from jepa.methods.base import Method, Params

Name = tuple[str, ...]
# What the keys of the result begin with.
_MEASURED = ("retrieval", "zero_shot", "questions", "hard", "novel", "controls", "gains")


def default_evaluation() -> ConfigDict:
    """The `evaluation` section with its defaults; set a task to None to leave it out.

    `zero_shot.query` is one query for all labels or a mapping from label to query; None means the
    dataset's caption query. `hard.groups` None means all. `bars` are (dotted key of the result,
    least value) pairs that the report compares with.
    """
    return ConfigDict(
        {
            "batch_size": 64,
            "seed": 0,
            "retrieval": {"split": "validation", "count": 256, "level": "full"},
            "zero_shot": {
                "split": "validation",
                "count": 1000,
                "labels": ("colour", "shape", "size", "direction"),
                "query": placeholder(str),
            },
            "questions": {"split": "validation", "count": 1000},
            "hard": {"split": "hard", "level": "full", "groups": placeholder(int)},
            "novel": {"split": "novel", "count": 256},
            "controls": True,
            # Sizes during training; 0 leaves a task out.
            "quick": {"retrieval": 128, "zero_shot": 256, "questions": 256, "hard": 64},
            "bars": (),
        }
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one evaluation found.

    Attributes:
      numbers: what `evaluation.json` holds under the keys of this module's docstring.
      evidence: the arrays behind them by task, e.g. `("retrieval",)`; see `jepa.evaluation.tasks`.
    """

    numbers: dict[str, Any]
    evidence: dict[Name, dict[str, Any]]


class Evaluator:
    """Evaluates parameters of one method on the splits that the config names.

    Args:
      method: the method, used through `embed`: `pooled["prediction"]` for a video and a query,
        `pooled["target"]` for a text.
      data_config: the `data` section.
      evaluation_config: the `evaluation` section; see `default_evaluation`.
      mesh: where the parameters lie.
      source: where clips and texts come from; by default the dataset of `data_config`.

    Raises:
      UserError: a key that does not exist, or a split that cannot serve its task.
    """

    def __init__(
        self,
        method: Method,
        data_config: ConfigDict,
        evaluation_config: ConfigDict,
        mesh: jax.sharding.Mesh,
        *,
        source: Source | None = None,
    ):
        check(evaluation_config)
        self.config = evaluation_config
        self.source = DatasetSource(data_config) if source is None else source
        self._embedder = Embedder(
            method,
            mesh,
            evaluation_config.batch_size,
            self.source.encode_queries,
            self.source.encode_texts,
        )
        self._plans: dict[bool, dict[Name, tasks.Task]] = {}

    def evaluate(self, params: Params, state: Params) -> dict[str, Any]:
        """Returns the numbers of the whole suite."""
        return self.examine(params, state).numbers

    def examine(self, params: Params, state: Params) -> Evaluation:
        """Returns the numbers of the whole suite and the arrays behind them."""
        scored = self._score(params, state, quick=False)
        numbers: dict[str, Any] = {}
        for name, result in scored.items():
            entry = numbers
            for part in name[:-1]:
                entry = entry.setdefault(part, {})
            entry[name[-1]] = result.numbers
        evidence = {name: result.evidence for name, result in scored.items()}
        gains = _gains(evidence, self.config.seed)
        return Evaluation({**numbers, "gains": gains} if gains else numbers, evidence)

    def hard_captions(self) -> list[tuple[str, str, str]]:
        """Returns (key of the clip, caption, group) of each caption of `hard`, if it is measured.

        They are in the order of the task's evidence, and known before anything is computed.
        """
        if not self.config.hard:
            return []
        records = self.source.records(self.config.hard.split)
        planned = self._hard(self.config.hard.groups).captions
        return [(records[index].key, caption, group) for index, caption, group in planned]

    def quick(self, params: Params, state: Params) -> dict[str, float]:
        """Returns a few headline numbers on small subsets, by flat name, for training's log."""
        scored = self._score(params, state, quick=True)
        flat: dict[str, float] = {}
        for (name,), result in scored.items():
            numbers = result.numbers
            if name == "retrieval":
                for direction, short in (("text_to_video", "t2v"), ("video_to_text", "v2t")):
                    flat[f"retrieval_{short}_r1"] = numbers[direction]["recall_at_1"]["value"]
                flat["retrieval_t2v_r10"] = numbers["text_to_video"]["recall_at_10"]["value"]
                flat["retrieval_t2v_median_rank"] = numbers["text_to_video"]["median_rank"]["value"]
            elif name == "zero_shot":
                for label, entry in numbers["labels"].items():
                    flat[f"zero_shot_{label}"] = entry["accuracy"]["value"]
            elif name == "questions":
                flat["questions_balanced"] = numbers["balanced"]["value"]
            else:
                flat["hard_t2v"] = numbers["text_to_video"]["value"]
        return flat

    def _score(self, params: Params, state: Params, *, quick: bool) -> dict[Name, tasks.Scored]:
        if quick not in self._plans:
            self._plans[quick] = self._plan_quick() if quick else self._plan()
        plan = self._plans[quick]
        texts = self._embedder.texts(
            params, state, (text for task in plan.values() for text in task.texts)
        )
        _check_finite(texts)
        # One pass over the clips of a split under a control, whatever the number of tasks.
        wanted: dict[tuple[str, str], dict[int, dict[str, None]]] = defaultdict(dict)
        for task in plan.values():
            for index, query in _seen(task):
                wanted[task.split, task.control].setdefault(index, {})[query] = None
        vectors: dict[tuple[str, str], dict[Pair, np.ndarray]] = {}
        for (split, control), queries in wanted.items():
            clips = functools.partial(self.source.clips, split, control)
            vectors[split, control] = self._embedder.videos(
                params, state, clips, {index: list(asked) for index, asked in queries.items()}
            )
            _check_finite(vectors[split, control])
        scored = {}
        for name, task in plan.items():
            found = vectors[task.split, task.control]
            seen = {pair: found[own] for pair, own in zip(task.needs, _seen(task), strict=True)}
            scored[name] = task.score(seen, texts)
        return scored

    def _plan(self) -> dict[Name, tasks.Task]:
        config = self.config
        controls = config.controls and self.source.frame_control == "none"
        plan: dict[Name, tasks.Task] = {}
        if config.retrieval:
            plan["retrieval",] = self._retrieval(config.retrieval.split, config.retrieval.count)
        if config.zero_shot:
            plan["zero_shot",] = self._zero_shot(config.zero_shot.split, config.zero_shot.count)
        if config.questions:
            plan["questions",] = self._questions(config.questions.count)
            if controls:
                plan["controls", "blank", "questions"] = self._questions(
                    config.questions.count, "blank"
                )
        if config.hard:
            plan["hard",] = self._hard(config.hard.groups)
            for control in ("single", "shuffled") if controls else ():
                plan["controls", control, "hard"] = self._hard(config.hard.groups, control)
        if config.novel:
            split, count = config.novel.split, config.novel.count
            if config.retrieval:
                plan["novel", "retrieval"] = self._retrieval(split, count)
            if config.zero_shot:
                plan["novel", "zero_shot"] = self._zero_shot(split, count)
        return plan

    def _plan_quick(self) -> dict[Name, tasks.Task]:
        config, sizes = self.config, self.config.quick
        plan: dict[Name, tasks.Task] = {}
        if config.retrieval and sizes.retrieval:
            plan["retrieval",] = self._retrieval(config.retrieval.split, sizes.retrieval)
        if config.zero_shot and sizes.zero_shot:
            plan["zero_shot",] = self._zero_shot(config.zero_shot.split, sizes.zero_shot)
        if config.questions and sizes.questions:
            plan["questions",] = self._questions(sizes.questions)
        if config.hard and sizes.hard:
            plan["hard",] = self._hard(sizes.hard)
        return plan

    def _retrieval(self, split: str, count: int) -> tasks.Retrieval:
        return tasks.plan_retrieval(
            self.source.records(split),
            split=split,
            query=self.source.caption_query,
            level=self.config.retrieval.level,
            count=count,
            seed=self.config.seed,
        )

    def _zero_shot(self, split: str, count: int) -> tasks.ZeroShot:
        section = self.config.zero_shot
        query = self.source.caption_query if section.query is None else section.query
        if isinstance(query, str):
            query = dict.fromkeys(section.labels, query)
        absent = [label for label in section.labels if label not in query]
        if absent:
            raise UserError(
                f"config.evaluation.zero_shot.labels has {absent[0]!r}, but zero_shot.query has "
                "no query for it; add one, or make it one text for all labels"
            )
        return tasks.plan_zero_shot(
            self.source.records(split)[:count],
            split=split,
            labels=section.labels,
            attributes=self.source.attributes,
            queries=query,
        )

    def _questions(self, count: int, control: str = "none") -> tasks.Questions:
        split = self.config.questions.split
        return tasks.plan_questions(
            self.source.records(split),
            split=split,
            count=count,
            seed=self.config.seed,
            control=control,
        )

    def _hard(self, groups: int | None, control: str = "none") -> tasks.Hard:
        section = self.config.hard
        return tasks.plan_hard(
            self.source.records(section.split),
            split=section.split,
            query=self.source.caption_query,
            level=section.level,
            groups=groups,
            control=control,
        )


def check(config: ConfigDict) -> None:
    """Raises `UserError` for a key of the `evaluation` section that does not exist."""
    allowed = default_evaluation()
    check_known("evaluation", config, [*allowed, "knn"])  # which has checks of its own
    for key, value in config.items():
        if isinstance(allowed.get(key), ConfigDict) and isinstance(value, ConfigDict):
            check_known(f"evaluation.{key}", value, allowed[key])
    for bar in config.get("bars", ()):
        if len(bar) != 2 or str(bar[0]).split(".")[0] not in _MEASURED:
            raise UserError(
                f"config.evaluation.bars has {bar!r}; give (dotted key, least value), the key "
                f"beginning with one of {', '.join(_MEASURED)}"
            )
    missing = sorted(set(allowed) - set(config))
    if missing:
        raise UserError(
            f"config.evaluation.{missing[0]} is missing; start from "
            "jepa.evaluation.suite.default_evaluation()"
        )


def _seen(task: tasks.Task) -> list[Pair]:
    """The pairs to embed for the pairs that a task needs: of grey clips, one stands for all."""
    if task.control == "blank":
        return [(0, query) for _, query in task.needs]
    return list(task.needs)


def _check_finite(vectors: Mapping[Any, np.ndarray]) -> None:
    for key, vector in vectors.items():
        if not np.isfinite(vector).all():
            raise UserError(
                f"the model's embedding of {key!r} is not finite, so nothing can be measured; take "
                "an earlier checkpoint (--checkpoint=STEP) or train with a lower learning rate"
            )


def _gains(evidence: Mapping[Name, Mapping[str, Any]], seed: int) -> dict[str, intervals.Measure]:
    """How far the model is above itself under each control, on the same examples."""
    gains = {}
    for (*path, task), control in evidence.items():
        if path[:1] == ["controls"]:
            group = "clips" if task == "questions" else "groups"
            key = (
                f"{task}_over_blank" if path[1] == "blank" else f"{task}_over_same_model_{path[1]}"
            )
            gains[key] = intervals.paired_gain(
                evidence[task,]["hits"], control["hits"], np.array(control[group]), seed=seed
            )
    return gains
