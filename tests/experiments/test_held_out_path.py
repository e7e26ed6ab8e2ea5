"""The held-out loss as a run's evaluation: which checkpoint is kept, and whose parameters count."""

import dataclasses
import functools
import gzip
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import collapse_demo, restoring, train
from jepa.data.evalset import EvalSet
from jepa.errors import UserError
from jepa.evaluation import held_out, suite
from jepa.masks import config as masks_config
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop, phases
from jepa.training.state import TrainState
from jepa.training.step import Compiled, lower

QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def compile_quickly(monkeypatch):
    def compile_step(*given):
        return Compiled(lower(*given).compile(compiler_options=QUICK), 0.0, None)

    monkeypatch.setattr(loop, "compile_step", compile_step)
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 20)):
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (count, 28, 28), np.uint8)),
            ("labels-idx1", rng.integers(0, 3, count).astype(np.uint8)),
        ):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            path = directory / f"{split}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes()))
    return f"idx:{directory}"


def watched(config, **settings):
    config.evaluation = ConfigDict({"held_out": held_out.default_held_out(split="test")})
    config.train.update(global_batch=8, log_every=1, health_every=0, **settings)
    return configs.resolve(config)


def measured(workdir, name):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return {row["step"]: row[name] for row in rows if name in row}


def parts_of(config):
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    return train.Parts(mesh), mesh


def test_the_checkpoint_with_the_least_selection_score_is_kept(data, tmp_path):
    config = collapse_demo.lejepa_config(data, 0, 4, weight=0.05)
    config.model.encoder.update(width=16, depth=1)
    config.model.local_views.count = 0
    # So high a rate that the score gets worse again.
    config.optimizer.update(learning_rate=0.5, warmup_steps=6, schedule="constant")
    config.train.update(keep_best_metric="held_out/selection_score", keep_best_mode="min")
    config = watched(config, eval_every=1, keep_last=1)
    parts, mesh = parts_of(config)
    loop.train_phases(config, tmp_path, parts=parts, mesh=mesh)
    scores = measured(tmp_path, "held_out/selection_score")
    best = min(scores, key=scores.get)
    assert len(scores) == 4 and best < 4
    assert restoring.find_step(tmp_path, "best", config) == best
    losses = measured(tmp_path, "held_out/loss")
    assert scores[best] == pytest.approx(losses[best] / 0.05**0.4, rel=1e-5)


@dataclasses.dataclass
class State:
    params: Any
    target_params: Any
    method_state: Any

    averaged = TrainState.averaged


def test_the_objective_sees_both_and_embeddings_the_average(data, monkeypatch):
    config = collapse_demo.i_jepa_config(data, 0, 3, teacher=True)
    config.model.encoder.update(width=16, depth=1)
    config.model.predictor.update(depth=1)
    config = watched(config, eval_every=3)
    parts, mesh = parts_of(config)
    phase = phases.plan(config)[0]
    method = parts.method(phase)
    masks = masks_config.from_config(config.data.masks, (1, 4, 4))
    # By hand: 20 pictures are two batches and a rest that does not count.
    batches = [
        {"video": video, "masks": masks.sample(0, index * 8 + np.arange(8))}
        for index, (valid, video) in enumerate(EvalSet(config.data, "test").batches(8))
        if valid == 8
    ]
    params, target = (jax.jit(method.init)(jax.random.key(seed), batches[0])[0] for seed in (0, 1))

    @jax.jit
    def loss(params, target, batch):
        outputs, _ = method.represent(params, target, {}, batch, jax.random.key(0))
        return method.objective(outputs, jnp.int32(3))[0]

    wanted = np.mean([loss(params, target, batch) for batch in batches])
    other = np.mean([loss(params, params, batch) for batch in batches])
    measure = parts.evaluators(phase, method)["held_out"]
    found = measure(State(params, target, {}))
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)
    assert abs(found["loss"] - other) > 1e-3 * other
    assert found == measure(State(params, target, {}))

    seen = []

    class Recorder:
        def __init__(self, *given):
            pass

        def quick(self, params, method_state):
            seen.append(params)
            return {}

    monkeypatch.setattr(suite, "Evaluator", Recorder)
    phase.config.evaluation = suite.default_evaluation()
    embed = parts.evaluators(phase, method)["evaluation"]
    embed(State(params, target, {}))
    embed(State(params, None, {}))
    assert seen[0] is target and seen[1] is params


def test_texts_are_refused(data):
    config = watched(collapse_demo.i_jepa_config(data, 0, 3, teacher=True), eval_every=3)
    config.data.streams = ("video", "text")
    config.data.tokenizer = "minilm"
    parts, _ = parts_of(config)
    with pytest.raises(UserError, match="no texts"):
        parts.evaluators(phases.Phase(0, "", 0, config), None)


def test_mistakes_are_named():
    def check(section):
        train.check_evaluation(ConfigDict({"evaluation": section}))

    check({})
    check({"held_out": {"split": "test"}})
    with pytest.raises(UserError, match="held_out.splits"):
        check({"held_out": {"splits": "test"}})
    with pytest.raises(UserError, match=r"batches is 0"):
        check({"held_out": {"batches": 0}})
    with pytest.raises(UserError, match="evaluation.hold_out"):
        check({"hold_out": {}})
