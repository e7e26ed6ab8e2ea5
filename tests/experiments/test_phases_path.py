"""Two phases by the entry points, longer clips and a thawed tower; then the first one evaluated."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jepa.data.world.write import write_world

ROOT = Path(__file__).parents[2]

CONFIG = textwrap.dedent(
    """
    from tests.experiments import tiny

    def get_config():
        config = tiny.get_config()
        config.phases = (
            {"name": "frozen", "steps": 2, "model.x_encoder.frozen": True},
            {"name": "thawed", "steps": 2, "data.frames": 8, "train.global_batch": 4,
             "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0}},
        )
        config.train.update(steps=4, save_every=0)
        return config
    """
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("phases")
    write_world(
        directory / "world", clips={"train": 16, "validation": 8}, processes=1, progress=False
    )
    (directory / "config.py").write_text(CONFIG)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
    }

    def command(program, *more):
        done = subprocess.run(
            [sys.executable, "-m", program, f"--config={directory / 'config.py'}",
             f"--config.data.path={directory / 'world'}", f"--workdir={directory / 'run'}", *more],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    command.workdir = directory / "run"
    return command


@pytest.mark.slow
def test_one_command_runs_through_all_phases_and_an_earlier_one_is_evaluated(run):
    told = run("experiments.train")
    assert "phase frozen: steps 1 to 2" in told and "phase thawed: steps 3 to 4" in told
    assert "fresh optimizer moments for" in told and "(x_encoder/" in told
    run("experiments.evaluate", "--checkpoint=2")
    numbers = json.loads((run.workdir / "evaluation.json").read_text())
    assert numbers["checkpoint_step"] == 2
    # The X-encoder is frozen in that phase, and nothing else in this config is in any.
    assert 0 < numbers["parameters"]["trained"] < numbers["parameters"]["total"]
    assert numbers["training"]["clips"] == 2 * 8 + 2 * 4
