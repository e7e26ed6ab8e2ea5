"""Metrics, progress, peaks: what a run tells."""

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jepa.training import flops, metrics, progress


def test_json_lines_are_strict_json(tmp_path):
    writer = metrics.JsonLinesWriter(tmp_path / "deep" / "metrics.jsonl")
    writer.write_scalars(3, {"loss": np.float32(0.5), "odd": float("nan"), "far": np.inf})
    writer.write_scalars(4, {"loss": jax.numpy.asarray(2)})
    writer.close()
    lines = (tmp_path / "deep" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 3, "loss": 0.5, "odd": None, "far": None}
    assert json.loads(lines[1]) == {"step": 4, "loss": 2.0}


def test_the_writer_of_a_run_writes_both(tmp_path):
    writer = metrics.make_writer(tmp_path)
    writer.write_scalars(1, {"loss": 1.0})
    writer.flush()
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 1.0}
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_other_processes_write_nothing(tmp_path):
    writer = metrics.make_writer(tmp_path, main=False)
    writer.write_scalars(1, {"loss": 1.0})
    writer.close()
    assert not list(tmp_path.iterdir())


def test_tensorflow_is_never_imported():
    code = (
        "import sys; import jepa.training.metrics, jepa.training.loop; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_overview_and_count():
    params = {"a": {"kernel": np.zeros((2, 3), np.float32)}}
    assert "a/kernel" in metrics.overview(params)
    with_scalar = {**params, "temperature": np.zeros(())}
    total = metrics.overview(with_scalar).splitlines()[-1]
    assert total.startswith(f"Total: {metrics.count(with_scalar)} -- ") and "." not in total
    assert metrics.count(params) == 6


def test_the_number_of_parameters_that_are_trained():
    params = {"a": {"kernel": np.zeros((200, 30))}, "b": {"kernel": np.zeros(4)}}
    assert metrics.trainable(params, ()) == "trainable 6,004 of 6,004 parameters"
    assert metrics.trainable(params, ("a/.*",)) == "trainable 4 of 6,004 parameters"
    assert metrics.trainable(params, (".*",)) == "trainable 0 of 6,004 parameters"


def test_periodically_calls_when_due():
    seen = []
    action = metrics.periodically(4, lambda step, metrics: seen.append(step), also=(1, 10))
    for step in range(1, 11):
        action(step, metrics={})
    assert seen == [1, 4, 8, 10]


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0s"), (59.2, "59s"), (125, "2m05s"), (7500, "2h05m")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_and_lines_elsewhere():
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        telling = progress.Progress(start=2, steps=4, stream=stream)
        telling.step()
        telling.line("hello")
        telling.step()
        telling.close()
    assert plain.getvalue() == "hello\n"
    assert "hello\n" in terminal.getvalue() and "4/4" in terminal.getvalue()


def test_a_log_line_has_all_it_should():
    line = progress.describe(
        50, 100,
        {"loss": 1.25, "clips_per_second": 99.5, "mfu": 0.41, "data_wait_seconds": 0.5,
         "skipped": 2.0, "eta_seconds": 61},
    )  # fmt: skip
    for part in ("step 50/100", "loss 1.25", "99.5 clips/s", "MFU 41.0%", "data wait 0.50s",
                 "skipped 2", "ETA 1m01s"):  # fmt: skip
        assert part in line


def test_goodput_is_the_share_of_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    clock = progress.Clock()
    for what, seconds in (("start", 2.0), ("step", 6.0), ("save", 2.0)):
        with clock.on(what):
            now[0] += seconds
    assert clock.goodput() == pytest.approx(0.6)
    assert clock.summary() == "goodput 60.0% of 10s (step 6s, start 2s, save 2s)"


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v5p", 459e12), ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12), ("NVIDIA GB200", 2250e12), ("Unheard-of", None),
    ],
)  # fmt: skip
def test_peaks_by_kind(kind, peak):
    device = SimpleNamespace(device_kind=kind, platform="other", process_index=0)
    found = flops.peak([device, device])
    assert found.flops == (None if peak is None else 2 * peak)
    if peak is None:
        assert found.utilisation(1e12, 1.0) is None
    else:
        assert found.utilisation(peak, 1.0) == pytest.approx(0.5)


def test_the_cpu_is_measured_and_says_so():
    found = flops.peak(jax.devices())
    assert "measured" in found.label
    assert 1e9 < found.flops < 1e14


def test_a_moment_of_load_does_not_pass_for_a_slow_processor(monkeypatch):
    now = [0.0]

    def pass_time(seconds):
        now[0] += seconds

    monkeypatch.setattr(flops.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(flops.time, "sleep", pass_time)
    busy_until = 0.4
    found = flops._fastest(lambda: pass_time(0.02 if now[0] >= busy_until else 0.2))
    assert found == pytest.approx(0.02)
    assert now[0] < 2.0


def test_means_leave_out_what_is_not_finite_and_start_again():
    means = metrics.Means()
    for loss in (1.0, np.nan, 3.0):
        means.add({"loss": np.float32(loss), "bad": np.float32(np.inf)})
    taken = means.take()
    assert taken["loss"] == 2.0 and np.isnan(taken["bad"])
    means.add({"loss": np.float32(5.0)})
    assert means.take() == {"loss": 5.0}
