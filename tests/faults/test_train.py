"""What the training entry point says to mistakes: one sentence, exit code 2, nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments import cli, train
from jepa.data.world.write import write_world
from jepa.training import config as configs
from jepa.training import workdir as workdirs
from tests.training import toy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "world"
    write_world(directory, clips={"train": 8}, processes=1, progress=False)
    return str(directory)


def config(world, **overrides):
    made = toy.config(data={"path": world, "tokenizer": "dataset"}, **overrides)
    assert isinstance(made, ConfigDict)
    return made


def failure(made, workdir, capsys):
    code = cli.exit_code(lambda: train.main(made, workdir) and None)
    error = capsys.readouterr().err
    assert code == cli.USER_ERROR
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"train__global_batch": 12}, ("train.global_batch", "12", "multiple of 8")),
        ({"optimizer__lr": 0.1}, ("optimizer.lr",)),
        ({"mesh__tensor": 3}, ("tensor", "3", "8")),
        ({"data": {"path": "/nowhere/world"}}, ("/nowhere/world",)),
        ({"data": {"path": "", "mixture": ()}}, ("data.path",)),
        ({"data": {"paht": "x"}}, ("data.paht",)),
        ({"method": "jepa.methods.none.Such"}, ("config.method", "jepa.methods.none.Such")),
        ({"model__depht": 2}, ("model.depht",)),
        ({"evaluation": {"retreival": 3}}, ("evaluation.retreival",)),
    ],
)
def test_mistakes_in_the_config(world, tmp_path, capsys, overrides, words):
    made = config(world)
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        with made.ignore_type():
            if name:
                made[section][name] = value
            else:
                made[section] = ConfigDict(value) if isinstance(value, dict) else value
    error = failure(made, tmp_path / "run", capsys)
    for word in words:
        assert word in error
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_run(world, tmp_path, capsys):
    workdirs.claim(tmp_path, configs.resolve(config(world, seed=1)))
    before = sorted(tmp_path.iterdir())
    error = failure(config(world, seed=2), tmp_path, capsys)
    assert "seed (1 -> 2)" in error and str(tmp_path) in error
    assert sorted(tmp_path.iterdir()) == before


def test_an_unknown_key_on_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", "--config=configs/vl_jepa/quickstart.py",
         f"--workdir={tmp_path / 'run'}", "--config.optimizer.learning_rat=1"],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr and "learning_rat" in done.stderr
    assert not (tmp_path / "run").exists()
