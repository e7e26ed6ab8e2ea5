"""The k-NN probe as an evaluation of a run: beside the loss, by the average, for the best step."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import cli, restoring, train
from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.evaluation import held_out, online_knn, probes, probes_features, suite
from jepa.methods.base import Outputs, Requirements
from jepa.nn.frames import to_float
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop, phases
from jepa.training.step import Compiled, lower
from tests.evaluation import probe_toy


class Fading:
    """Pools the halves of a picture; the weight of the left one falls by 1 a step, from 49/16."""

    requirements = Requirements(ema=True)
    partition_table = (("scale", (None,)),)

    def __init__(self, config):
        pass

    def init(self, rng, batch):
        return {"scale": jnp.array([49 / 16, 1.0])}, {}

    def pretrained(self):
        return {}

    def embed(self, params, state, batch):
        halves = to_float(batch["video"])[:, 0].reshape(-1, 8, 2, 4, 3).mean(axis=(1, 3, 4))
        halves = halves * params["scale"]
        return Outputs(tokens={"video": halves[:, None]}, pooled={"video": halves})

    def represent(self, params, target_params, state, batch, rng):
        weight = jnp.broadcast_to(params["scale"][:1], (len(batch["video"]), 1))
        return Outputs(pooled={"weight": weight}), state

    def objective(self, outputs, step):
        return outputs.pooled["weight"].mean(), {}

    def flops(self, batch):
        return 1.0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "set"
    probe_toy.write(path)
    return path


def config_of(pictures, **settings):
    found = probe_toy.config(pictures)
    found.method = f"{__name__}.Fading"
    found.ema.update(momentum=0.5, schedule="constant")
    found.optimizer = ConfigDict(
        {"name": "sgd", "b1": 0.0, "learning_rate": 1.0, "schedule": "constant", "warmup_steps": 0}
    )
    found.train.update(
        {"steps": 4, "eval_every": 1, "keep_last": 1, "log_every": 1, "health_every": 0, **settings}
    )
    found.evaluation = ConfigDict(
        {
            "held_out": held_out.default_held_out(split="test", batches=1),
            "knn": online_knn.default_knn(test_split="test", train_count=30, batch_size=16, k=5),
        }
    )
    return found


def afterwards(pictures, directory, scale):
    """The accuracy of the probe that has files."""
    mesh = meshes.make_mesh({}, jax.devices()[:1])
    store = probes_features.FeatureStore(directory, mesh, batch_size=16, storage="float32")
    section = probe_toy.section(train_labels=30)
    section.update(seeds=1, knn=ConfigDict({"k": 5, "temperature": 0.07}))
    data = DataConfig.parse({"path": f"idx:{pictures}", "frames": 1, "size": 8})
    encoder = probes_features.of_method(
        Fading(None), {"scale": np.array(scale, np.float32)}, {}, [], pooling="mean", name="fading"
    )
    found = probes.Suite(data, section, store, mesh=mesh).measure(encoder, "class", "knn")
    return found[0]["accuracy"]["value"]


def test_a_run_logs_it_and_keeps_the_best(pictures, tmp_path, monkeypatch):
    compiled = []

    def compile_step(*given):
        compiled.append(given)
        options = {"xla_backend_optimization_level": 0}
        return Compiled(lower(*given).compile(compiler_options=options), 0.0, None)

    monkeypatch.setattr(loop, "compile_step", compile_step)
    config = configs.resolve(config_of(pictures, keep_best_metric="knn/class"))
    train.check_evaluation(config)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:2])
    loop.train_phases(config, tmp_path / "run", parts=train.Parts(mesh), mesh=mesh)
    assert len(compiled) == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    rows = [row for row in rows if "knn/class" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["knn/class_chance"] == 14 / 40 and "held_out/loss" in row for row in rows)
    # The weight is 33/16, 17/16, 1/16, -15/16; its average goes halfway to it each time, and hides
    # the left half at the last step.
    wanted = [
        afterwards(pictures, tmp_path / "features", (average, 1.0))
        for average in (41 / 16, 29 / 16, 15 / 16, 0.0)
    ]
    assert [row["knn/class"] for row in rows] == wanted
    assert afterwards(pictures, tmp_path / "features", (-15 / 16, 1.0)) != wanted[-1]
    best = restoring.find_step(tmp_path / "run", "best", config)
    assert wanted[best - 1] == max(wanted) > min(wanted) and best < 4
    # Nothing of it is written but the numbers.
    assert not (tmp_path / "run" / "features").exists()


def test_it_stands_beside_the_loss_or_the_suite_or_alone(pictures, monkeypatch):
    class Quick:
        def __init__(self, *given):
            pass

        quick = None

    monkeypatch.setattr(suite, "Evaluator", Quick)
    monkeypatch.setattr(train.Parts, "_held_out", lambda *given: len)
    config = config_of(pictures)
    both, knn = config.evaluation, config.evaluation.knn
    mesh = meshes.make_mesh({}, jax.devices()[:1])
    for section, names in (
        (both, ["held_out", "knn"]),
        ({"knn": knn}, ["knn"]),
        ({"knn": None}, ["held_out"]),
        ({"held_out": None, "knn": knn}, ["knn"]),
        ({**suite.default_evaluation(), "knn": knn}, ["evaluation", "knn"]),
        ({**suite.default_evaluation(), "knn": None}, ["evaluation"]),
    ):
        config.evaluation = ConfigDict(section)
        resolved = configs.resolve(config)
        train.check_evaluation(resolved)
        (phase,) = phases.plan(resolved)
        assert list(train.Parts(mesh).evaluators(phase, Fading(None))) == names


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation.knn.test_split": "train"}, "both train_split and test_split"),
        ({"evaluation.knn.test_split": "validation"}, "'validation'"),
        ({"evaluation.knn.labels": ("colour",)}, "evaluation.knn.labels"),
        ({"evaluation.knn.train_count": -5}, "train_count is -5"),
        ({"evaluation.knn": True}, "evaluation.knn is True"),
        ({"train.keep_best_metric": "knn/colour"}, "held_out/..., knn/class, knn/class_chance"),
    ],
)
def test_a_mistake_is_a_sentence_before_anything_is_compiled(
    pictures, tmp_path, capsys, monkeypatch, changes, words
):
    monkeypatch.setattr(loop, "compile_step", None)
    config = config_of(pictures)
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    assert cli.exit_code(lambda: train.main(config, tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_later_phase_on_other_data_is_checked_first(pictures, tmp_path):
    other = tmp_path / "other"
    probe_toy.write(other, train=4, test=2)
    (other / "train-labels-idx1-ubyte").unlink()
    config = config_of(pictures)
    config.phases = (
        {"name": "one", "steps": 2},
        {"name": "two", "steps": 2, "data.path": f"idx:{other}"},
    )
    with pytest.raises(UserError, match="two"):
        train.check_labels(configs.resolve(config))
    config.evaluation = ConfigDict({"held_out": config.evaluation.held_out})
    train.check_labels(configs.resolve(config))
