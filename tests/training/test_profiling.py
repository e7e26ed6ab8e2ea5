"""Where traces go when several processes write them."""

import jax
import pytest

from jepa.training.profiling import Profiler


@pytest.mark.parametrize(
    ("process", "processes", "where"),
    [(0, 1, "profile"), (0, 2, "profile/process-00000"), (17, 64, "profile/process-00017")],
)
def test_each_of_several_processes_has_a_directory(
    tmp_path, monkeypatch, process, processes, where
):
    said = []
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax.profiler, "start_trace", said.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: said.append("stop"))
    profiler = Profiler(tmp_path / "profile", (2, 4))
    for step in range(1, 7):
        profiler.before(step)
        profiler.after(step, {})
    assert said == [str(tmp_path / where), "stop"]
