"""Stopping at any step and starting again gives what never stopping gives, bit for bit.

The signals arrive in the second of two phases; tests/training/test_phases.py stops at the border.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
STEPS = 40


def start(workdir, seconds=0.0):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.toy_run", str(workdir), str(STEPS), str(seconds)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def final(workdir):
    with np.load(workdir / "final.npz") as arrays:
        return dict(arrays)


def signal_at(process, step, number):
    """Sends a signal when the run has logged `step`."""
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            process.send_signal(number)
            break
    rest, _ = process.communicate(timeout=120)
    return rest


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(start(workdir))
    return workdir


def assert_same_end(workdir, other):
    ours, theirs = final(workdir), final(other)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)


def test_sigterm_saves_exits_0_and_resumes_exactly(uninterrupted, tmp_path):
    process = start(tmp_path, 0.05)
    rest = signal_at(process, 18, signal.SIGTERM)
    assert process.returncode == 0, rest
    assert "stopped by SIGTERM at step" in rest
    assert not (tmp_path / "final.npz").exists()
    assert "resuming at step" in finish(start(tmp_path))
    assert_same_end(tmp_path, uninterrupted)
    assert "finished already" in finish(start(tmp_path))


def test_kill_9_resumes_exactly_from_the_last_checkpoint(uninterrupted, tmp_path):
    process = start(tmp_path, 0.05)
    signal_at(process, 25, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    finish(start(tmp_path))
    assert_same_end(tmp_path, uninterrupted)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    losses = [record["loss"] for record in records]
    others = [json.loads(line)["loss"] for line in (uninterrupted / "metrics.jsonl").open()]
    assert losses == others
