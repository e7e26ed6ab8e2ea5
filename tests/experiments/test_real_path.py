"""From encoded video to evaluation.json by the commands of the README, killed on the way.

TensorFlow is on the path of the processes here as a package that refuses to be imported.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.monitoring
import numpy as np
import pytest

from experiments import evaluate, train
from jepa.data.world.write import write_world
from jepa.training.optimizer import flatten
from tests.experiments import tiny

ROOT = Path(__file__).parents[2]

# The command line, and the power goes during step 5, when the checkpoint of step 3 is complete.
DYING = textwrap.dedent(
    """
    import os, pathlib, runpy, signal, sys, time
    from jepa.training.report import Reporter
    after, checkpoint = Reporter.after, pathlib.Path(sys.argv.pop(1)) / "checkpoints" / "3"
    def dying(self, step, values):
        after(self, step, values)
        while step == 5:
            if checkpoint.is_dir():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
    Reporter.after = dying
    runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
    """
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    stub = tmp_path_factory.mktemp("stub")
    (stub / "tensorflow").mkdir()
    (stub / "tensorflow" / "__init__.py").write_text("raise RuntimeError('TensorFlow came in')\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(stub), str(ROOT)])}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("real") / "world"
    write_world(directory, clips={"train": 16, "validation": 8}, processes=1, progress=False)
    made = tiny.get_config()
    made.data.path = str(directory)
    return made


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nobody stops, and the names of what it compiled."""
    compiled = []

    def listen(event, seconds, **kwargs):
        if event.endswith("backend_compile_duration"):
            compiled.append(kwargs.get("fun_name") or "")

    jax.monitoring.register_event_duration_secs_listener(listen)
    result = train.main(config, tmp_path_factory.mktemp("whole"))
    jax.monitoring.unregister_event_duration_listener(listen)
    return result, compiled


@pytest.fixture(scope="module")
def resumed(config, environment, tmp_path_factory):
    """The directory of a run that was killed and went on, and how that ended."""
    workdir = tmp_path_factory.mktemp("killed")
    killed = subprocess.run(
        [sys.executable, "-c", DYING, str(workdir), "--config=tests/experiments/tiny.py",
         f"--workdir={workdir}", f"--config.data.path={config.data.path}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "step 4/8" in killed.stdout and "step 6/8" not in killed.stdout
    return workdir, train.main(config, workdir)


def test_the_train_step_is_compiled_once(whole):
    _, compiled = whole
    assert sum("train_step" in name for name in compiled) == 1


def test_killed_and_resumed_ends_bit_for_bit_where_the_whole_run_ends(whole, resumed):
    first, second = (flatten(result.state.params) for result in (whole[0], resumed[1]))
    assert whole[0].finished and resumed[1].finished and first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path], err_msg=path)
    lines = [json.loads(line) for line in (resumed[0] / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_its_checkpoint_is_evaluated(config, resumed):
    workdir, _ = resumed
    evaluate.main(config, workdir)
    numbers = json.loads((workdir / "evaluation.json").read_text())
    assert numbers["checkpoint_step"] == 8
    assert 0 <= numbers["retrieval"]["text_to_video"]["recall_at_1"]["value"] <= 1
    assert (workdir / "report.html").stat().st_size > 1000


def test_no_entry_point_imports_tensorflow(environment):
    code = (
        "import experiments.quickstart, experiments.prepare_data, experiments.evaluate, sys;"
        "sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("mesh", "processes", "shown"), [(4, 1, 4), (4, 2, 2), (-1, 2, None)])
def test_the_devices_of_a_mesh_are_those_of_all_processes(monkeypatch, mesh, processes, shown):
    config, seen = train.configs.resolve(tiny.get_config()), []
    config.mesh.data = mesh
    monkeypatch.setattr(train, "_process_count", lambda: processes)
    monkeypatch.setattr(train.meshes, "set_cpu_devices", seen.append)
    train.setup(config)
    assert seen == ([] if shown is None else [shown])


PROCESS = textwrap.dedent(
    """
    import sys, jax
    from experiments import train
    from tests.experiments import tiny
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    config = train.configs.resolve(tiny.get_config())
    config.mesh.data = 4
    train.setup(config)
    print("devices", jax.local_device_count(), jax.device_count())
    """
)


@pytest.mark.slow
def test_two_processes_share_a_mesh(environment):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    bare = {key: value for key, value in environment.items() if key != "XLA_FLAGS"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(i)],
            cwd=ROOT, env=bare, stdout=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    assert ["devices 2 4" in process.communicate(timeout=300)[0] for process in both] == [True] * 2
