import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from experiments import evaluate, quickstart, restoring
from jepa.errors import UserError
from jepa.training import config as configs

SLEEPER = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path("saved").write_text(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
pathlib.Path("ready").write_text("")
time.sleep(60)
"""


def toy_config(**train):
    return configs.resolve(
        configs.ConfigDict({"method": "m", "data": {}, "model": {}, "train": train})
    )


def test_no_checkpoint_is_an_error_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint; train first"):
        restoring.find_step(tmp_path / "mistyped", "latest", toy_config())
    assert not list(tmp_path.iterdir())
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint; train first"):
        restoring.find_step(tmp_path, "latest", toy_config())


def test_a_checkpoint_is_found_by_what_is_said(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, directory, **options):
            self.metric = options["keep_best_metric"]

        def steps(self):
            return [10, 20]

        def best_step(self):
            return 10 if self.metric else None

        def close(self):
            pass

    monkeypatch.setattr(restoring.checkpoints, "Checkpoints", Fake)
    plain, best = toy_config(), toy_config(eval_every=1, keep_best_metric="e/x")
    assert restoring.find_step(tmp_path, "latest", plain) is None
    assert restoring.find_step(tmp_path, "10", plain) == 10
    assert restoring.find_step(tmp_path, "best", best) == 10
    with pytest.raises(UserError, match="no checkpoint .* has the metric"):
        restoring.find_step(tmp_path, "best", plain)
    for wrong in ("15", "newest"):
        with pytest.raises(UserError, match="it has 10, 20"):
            restoring.find_step(tmp_path, wrong, plain)


def test_config_names_are_short():
    assert evaluate.config_name("configs/vl_jepa/quickstart.py") == "vl_jepa/quickstart"
    assert evaluate.config_name("/a/b/c.py") == "b/c"


def wait_for(path):
    for _ in range(1200):
        if path.exists():
            break
        time.sleep(0.05)
    return path.read_text()


@pytest.fixture
def stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        (tmp_path / "stage_of_test.py").write_text(text)
        return "stage_of_test"

    return write


def test_a_failing_stage_gives_its_exit_code(stage):
    stages = quickstart.Stages()
    with pytest.raises(quickstart.Stopped) as stopped:
        stages.run("data", stage("import sys; sys.exit(int(sys.argv[1]))"), ["2"])
    assert stopped.value.code == 2
    assert re.match(r"data \ds; in all \ds", stages.summary())


def test_a_killed_stage_gives_the_signal(stage):
    with pytest.raises(quickstart.Stopped) as stopped:
        quickstart.Stages().run("train", stage("import os; os.kill(os.getpid(), 9)"), [])
    assert stopped.value.code == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_stage_and_end_the_run(stage, tmp_path, number):
    def interrupt():
        wait_for(tmp_path / "ready")
        os.kill(os.getpid(), number)

    # Under nohup the tests themselves would inherit that it is ignored.
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stages, before = quickstart.Stages(), signal.getsignal(number)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(quickstart.Stopped) as stopped, stages.forwarding():
        stages.run("train", stage(SLEEPER), [])
    thread.join()
    # The stage saved and ended well, yet the run must not go on to the next one.
    assert stopped.value.code == 128 + number
    # A terminal that closes ends a stage as SIGTERM does: no stage knows SIGHUP.
    sent = signal.SIGTERM if number == signal.SIGHUP else number
    assert (tmp_path / "saved").read_text() == signal.Signals(sent).name
    assert signal.getsignal(number) is before
    signal.signal(signal.SIGHUP, hangup)


def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with quickstart.Stages().forwarding():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


ORPHAN = """
from experiments import cli, quickstart
quickstart.Stages().run("train", "stage_of_test", [])
"""

LEASHED = """
from experiments import cli
def main():
SLEEPER
cli.run(main)
"""


def test_a_stage_saves_and_ends_when_the_quickstart_is_killed(stage, tmp_path):
    stage(LEASHED.replace("SLEEPER", textwrap.indent(SLEEPER, "    ")))
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], env={**os.environ, "PYTHONPATH": path}
    )
    wait_for(tmp_path / "ready")
    parent.kill()
    parent.wait()
    assert wait_for(tmp_path / "saved") == "SIGTERM"


@pytest.mark.slow
def test_smoke_run_ends_with_a_report_and_is_not_done_twice(tmp_path):
    command = [sys.executable, "-m", "experiments.quickstart", "--smoke"]
    command += [f"--workdir={tmp_path / 'run'}", f"--data={tmp_path / 'world'}"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

    def run(*more):
        return subprocess.run(
            [*command, *more],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    first = run()
    assert first.returncode == 0, first.stderr
    report = tmp_path / "run" / "report.html"
    assert f"report: {report.as_uri()}" in first.stdout
    numbers = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert numbers["checkpoint_step"] == 6
    assert {"retrieval", "zero_shot", "questions", "hard", "novel", "controls"} <= set(numbers)
    written = report.stat().st_mtime_ns
    second = run()
    assert second.returncode == 0
    assert report.stat().st_mtime_ns == written
    wrong = run("--config.train.stpes=3")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
