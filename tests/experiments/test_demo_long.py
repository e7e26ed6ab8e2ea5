"""The two stages in a row: which commands run, what fits what, and (slow) that all of it works."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.v_jepa_2 import world
from configs.vl_jepa import quickstart_long
from jepa import methods
from jepa.errors import UserError
from jepa.interop import parameters, starting
from jepa.training import config as configs
from jepa.training import phases, workdir

ROOT = Path(__file__).parents[2]
MAIN = """
from experiments import cli, demo_long
class Told(demo_long.Stages):
    def run(self, name, module, arguments):
        print("RUN", repr([name, module, list(arguments)]))
demo_long.Stages = Told
cli.run_absl(demo_long.main)
"""


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    lines = [line[4:] for line in done.stdout.splitlines() if line.startswith("RUN ")]
    stages = [json.loads(line.replace("'", '"')) for line in lines]
    return done.returncode, done.stderr, {name: rest for name, _, rest in stages}


def test_stages_in_a_row_and_what_they_are_given(tmp_path):
    code, errors, stages = run(f"--workdir={tmp_path / 'run'}", f"--data={tmp_path / 'world'}")
    assert code == 0, errors
    assert list(stages) == [
        "data",
        "train pretraining",
        "export",
        "train",
        "train random_frozen",
        "evaluate random_frozen",
        "train joint",
        "evaluate joint",
        "evaluate",
    ]
    encoder = tmp_path / "run" / "pretraining" / "encoder.safetensors"
    assert f"--to={encoder}" in stages["export"]
    assert stages["export"][:-1] == stages["train pretraining"]
    assert f"--config.model.x_encoder.weights={encoder}" in stages["train"]
    assert f"--workdir={tmp_path / 'run' / 'baselines' / 'joint'}" in stages["train joint"]
    assert not any("weights" in argument for argument in stages["train random_frozen"])


@pytest.mark.slow
def test_a_config_is_refused():
    code, errors, stages = run("--config=configs/vl_jepa/quickstart.py")
    assert code == 2 and errors.startswith("error: --config: ") and not stages


def encoder_of_world():
    config = configs.resolve(world.get_config())
    method = methods.from_config(config)
    encoder = config.model.encoder
    size = encoder.patch
    clip = np.zeros((1, encoder.tubelet, size, size, 3), np.float32)
    shapes = jax.eval_shape(method.encoder.init, jax.random.key(0), clip)["params"]
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    return tree, workdir.plain(encoder)


def vl_jepa(path, **overrides):
    config = quickstart_long.get_config()
    config.model.x_encoder.weights = str(path)
    config.model.y_encoder.tower = "transformer"  # MiniLM's file is another matter
    config.update_from_flattened_dict(overrides)
    return methods.from_config(configs.resolve(config))


def test_the_encoder_of_the_pretraining_drops_in(tmp_path):
    tree, fields = encoder_of_world()
    path = tmp_path / "encoder.safetensors"
    parameters.save(path, tree, {"fields": json.dumps(fields)})
    got = starting.read(vl_jepa(path).pretrained()["x_encoder"])
    jax.tree.map(np.testing.assert_array_equal, got, tree)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model.x_encoder.heads": 4}, "heads"),
        ({"model.x_encoder.rope": "tiled"}, "rope"),
        ({"model.x_encoder.positions": "sincos"}, "positions"),
        ({"model.x_encoder.patch": 8}, "patches/kernel"),
    ],
)
def test_weights_of_another_encoder_are_named(tmp_path, overrides, words):
    tree, fields = encoder_of_world()
    path = tmp_path / "encoder.safetensors"
    parameters.save(path, tree, {"fields": json.dumps(fields)})
    with pytest.raises(UserError, match=rf"config.model.x_encoder.weights.*{words}"):
        vl_jepa(path, **overrides).pretrained()


def test_every_tensor_that_is_wrong_is_named(tmp_path):
    tree, _ = encoder_of_world()
    tree["other"] = tree.pop("norm")
    tree["patches"]["bias"] = tree["patches"]["bias"][:-1]
    path = tmp_path / "encoder.safetensors"
    parameters.save(path, tree, {})
    with pytest.raises(UserError) as raised:
        vl_jepa(path).pretrained()
    for name in ("norm/bias", "norm/scale", "other/bias", "other/scale", "patches/bias"):
        assert name in str(raised.value)
    with pytest.raises(UserError, match="absent.safetensors"):
        vl_jepa(tmp_path / "absent.safetensors").pretrained()


def test_variants_train_what_they_say():
    frozen, unfrozen = phases.plan(configs.resolve(quickstart_long.get_config()))
    assert frozen.config.model.x_encoder.cache_features
    assert frozen.config.data.sampling == "uniform"
    assert not unfrozen.config.model.x_encoder.frozen and unfrozen.config.data.sampling == "random"
    assert quickstart_long.get_config("random_frozen").model.x_encoder.cache_features
    assert not quickstart_long.get_config("joint").model.x_encoder.frozen
    with pytest.raises(UserError, match="quickstart_long.py:other: there is pretrained"):
        quickstart_long.get_config("other")


@pytest.mark.slow
def test_smoke_goes_through_everything_and_a_second_time_through_nothing(tmp_path):
    command = [sys.executable, "-m", "experiments.demo_long", "--smoke"]
    command += [f"--workdir={tmp_path / 'run'}", f"--data={tmp_path / 'world'}"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stderr
    assert "encoding the clips once" in first.stderr
    numbers = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(numbers["baselines"]) == {"random_frozen", "joint"}
    training = numbers["training"]
    assert min(training[f"{part}seconds"] for part in ("pretraining_", "feature_", "")) > 0
    assert "feature_seconds" in numbers["baselines"]["random_frozen"]["training"]
    assert 'id="comparison"' in (tmp_path / "run" / "report.html").read_text()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0, again.stderr
    told = [line for line in again.stdout.splitlines() if line.startswith("== ")]
    assert len(told) == 9 and all(": " in line for line in told), told
