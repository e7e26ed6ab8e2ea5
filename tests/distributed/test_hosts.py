"""What the other processes of a run do when one is killed, stopped, late, absent or wrong."""

import json
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from launch import Run  # noqa: E402

HERE = socket.gethostname()
TOY = ("-m", "tests.distributed.toy_process")
BOUND = 60  # seconds in which all have ended; heartbeats stop counting after 10


def start(folder, *more, count=2, steps=4000, workdir=None):
    given = [*TOY, f"--workdir={workdir or folder / 'run'}", f"--steps={steps}", *more]
    return Run(folder, [*given, "--heartbeat=10"], count)


def last_line(log):
    return [line for line in log.splitlines() if line.startswith("error: ")][-1]


@pytest.mark.parametrize("mode, code", [("late", 1), ("fails", 2), ("well", 0)])
def test_two_processes_wait_for_each_other_and_end_together(tmp_path, mode, code):
    started = Run(tmp_path, ["-m", "tests.distributed.hosts_process", mode], 2)
    assert started.wait(90) == [code, code], started.logs()
    if mode == "late":
        late = f"process 1 ({HERE}) of 2 did not come to 'work' within 1"
        assert late in last_line(started.log(0))
        assert f"process 0 ({HERE}) of 2 failed: {late}" in last_line(started.log(1))
    if mode == "fails":
        why = "a mistake that only process 1 sees."
        assert last_line(started.log(1)) == f"error: {why}"
        assert last_line(started.log(0)) == f"error: process 1 ({HERE}) of 2 failed: {why}"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_ends_the_others(tmp_path, number):
    started = start(tmp_path, "--seconds=0.05")
    started.until("step 9/")  # the save of step 4 is over when that of step 8 begins
    started.processes[1].send_signal(number)
    try:
        first = started.processes[0].wait(BOUND)
    finally:
        started.kill()
    assert first == 1, started.logs()
    assert f"process 1 ({HERE}) of 2 is gone" in last_line(started.log(0))
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()


@pytest.mark.slow
def test_the_coordinator_that_is_gone_ends_the_others(tmp_path):
    started = start(tmp_path, "--seconds=0.05", count=4)
    started.until("step 5/")
    started.processes[0].kill()
    codes = started.wait(BOUND)
    assert codes[0] == -signal.SIGKILL
    # JAX itself may be quicker than our line; it aborts.
    assert set(codes[1:]) <= {1, -signal.SIGABRT}, started.logs()


@pytest.mark.slow
def test_a_process_that_is_late_in_a_run_is_named(tmp_path):
    started = start(tmp_path, "--late=1", "--barrier=40")
    started.until("step 6/")
    codes = started.wait(BOUND + 40)
    assert codes == [1, 1], started.logs()
    said = last_line(started.log(0))
    assert f"process 1 ({HERE}) of 2 did not come to 'step " in said and "--barrier_timeout" in said
    assert f"process 0 ({HERE}) of 2 failed: process 1 " in last_line(started.log(1))


@pytest.mark.slow
def test_an_absent_process_is_named(tmp_path):
    started = start(tmp_path, "--barrier=8", count=4)
    started.processes[2].kill()
    codes = started.wait()
    assert all(code not in (0, 2) for code in codes)
    assert "timed out task names:\n2" in started.log(0), started.logs()


@pytest.mark.slow
@pytest.mark.parametrize("fails", [0, 1])
def test_an_error_of_one_process_ends_all(tmp_path, fails):
    started = start(tmp_path, f"--fails={fails}")
    started.until("Traceback", fails)
    codes = started.wait(BOUND)
    assert codes == [1, 1], started.logs()
    why = "RuntimeError: this process fails"
    assert "Traceback" in started.log(fails) and why in last_line(started.log(fails))
    assert f"process {fails} ({HERE}) of 2 failed: {why}" in last_line(started.log(1 - fails))


def losses(workdir):
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.slow
def test_a_run_goes_on_on_more_and_on_fewer_processes(tmp_path):
    whole = Run(tmp_path, [*TOY, f"--workdir={tmp_path / 'whole'}", "--devices=1"], 1)
    assert whole.wait() == [0], whole.logs()
    wanted = losses(tmp_path / "whole")
    assert list(wanted) == list(range(1, 13))
    for first, then in ((1, 2), (2, 1)):
        workdir = tmp_path / f"{first}{then}"
        started = start(
            tmp_path, "--fails=0", "--devices=2", count=first, steps=12, workdir=workdir
        )
        assert started.wait() == [1] * first, started.logs()
        again = start(tmp_path, "--devices=2", count=then, steps=12, workdir=workdir)
        assert again.wait() == [0] * then, again.logs()
        assert "resuming at step 4" in again.log()
        found = losses(workdir)
        assert found.keys() == wanted.keys()
        # float64, summed in another order
        np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("told, number", [(0, signal.SIGINT), (1, signal.SIGTERM)])
def test_one_process_that_is_told_to_stop_saves_all_at_one_step(tmp_path, told, number):
    started = start(tmp_path, "--seconds=0.05")
    started.until("step 5/")
    started.processes[told].send_signal(number)
    codes = started.wait(BOUND)
    assert codes == [0, 0], started.logs()
    assert "stopped by SIGTERM at step" in started.log(0)
    stopped = int(started.log(0).split("stopped by SIGTERM at step ")[1].split(";")[0])
    assert (tmp_path / "run" / "checkpoints" / str(stopped)).is_dir()
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(row) for row in rows]
    assert max(record["step"] for record in records) == stopped


@pytest.mark.slow
def test_two_runs_in_one_workdir(tmp_path):
    (tmp_path / "logs").mkdir()
    started = start(tmp_path, "--seconds=0.05")
    started.until("step 5/")
    other = start(tmp_path / "logs", workdir=tmp_path / "run")
    codes = other.wait()
    started.kill()
    assert codes == [2, 2], other.logs()
    assert "Another run is training in" in last_line(other.log(0))
    assert "Another run is training in" in last_line(other.log(1))
