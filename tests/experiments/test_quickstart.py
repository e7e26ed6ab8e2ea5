import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jepa.evaluation import baselines

ROOT = Path(__file__).parents[2]
MAIN = """
import sys
from experiments import cli, quickstart
sys.argv.insert(1, "--config=configs/vl_jepa/quickstart.py")
class Told(quickstart.Stages):
    def run(self, name, module, arguments):
        print("RUN", repr([name, module, list(arguments)]))
quickstart.Stages = Told
cli.run_absl(quickstart.main)
"""


@pytest.fixture
def quickstart(tmp_path):
    """Runs the quickstart without its stages: exit code, stdout, stderr, what was to be run."""

    def run(*arguments):
        places = [f"--workdir={tmp_path / 'run'}", f"--data={tmp_path / 'world'}"]
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *places, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("RUN ")]
        # A list of strings in Python's writing.
        stages = [json.loads(line[4:].replace("'", '"')) for line in lines]
        return done.returncode, done.stderr, {name: rest for name, _, rest in stages}

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--devices=3", "--config.train.global_batch=64"],
            "'train.global_batch' is 64, which the 3 batch shards",
        ),
        (["--devices=0"], "--devices=0: give 1 or more"),
        (["--workdir=gs://bucket/run"], "mount a bucket first"),
        (["--distributed"], "--distributed: this runs on one machine"),
        (["--baselines", "--config.data.frame_control=single"], "leave it out"),
        (["--config.loss.info_nce=0.0"], "config.loss has no term"),
    ],
)
def test_mistakes_are_named_before_the_videos_are_written(quickstart, tmp_path, arguments, message):
    code, errors, stages = quickstart(*arguments)
    assert code == 2, errors
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert stages == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["train", "evaluate"])
def test_a_bucket_is_no_workdir(module, tmp_path):
    config = f"--config={ROOT / 'configs/vl_jepa/quickstart.py'}"
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", config, "--workdir=gs://bucket/run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --workdir=gs://bucket/run: give a path")
    assert not (tmp_path / "gs:").exists()


def test_flags_of_the_stages_are_passed_on(quickstart):
    code, errors, stages = quickstart("--compile_cache=/c", "--verbosity=1", "--devices=4")
    assert code == 0, errors
    assert list(stages) == ["data", "train", "evaluate"]
    for name in ("train", "evaluate"):
        assert {"--compile_cache=/c", "--verbosity=1", "--devices=4"} <= set(stages[name])


def test_baselines_are_trained_evaluated_and_compared(quickstart, tmp_path):
    code, errors, stages = quickstart("--baselines")
    assert code == 0, errors
    less = ["train single_frame", "evaluate single_frame"]
    less += ["train shuffled_frames", "evaluate shuffled_frames"]
    assert list(stages) == ["data", "train", "evaluate", *less, "compare"]
    for name, control in (("single_frame", "single"), ("shuffled_frames", "shuffled")):
        arguments = stages[f"train {name}"]
        assert arguments == stages[f"evaluate {name}"]
        assert f"--config.data.frame_control={control}" in arguments
        places = [one for one in arguments if one.startswith("--workdir=")]
        assert places[-1] == f"--workdir={tmp_path / 'run' / baselines.DIRECTORY / name}"
    assert stages["compare"] == stages["evaluate"]
    assert not any("frame_control" in argument for argument in stages["compare"])
