"""From encoded video to evaluation.json by the commands of the README, killed on the way.

TensorFlow is on the path of the processes here as a package that refuses to be imported.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import train
from jepa.data.world.write import write_world
from tests.experiments import tiny

ROOT = Path(__file__).parents[2]

# The command line; says at the end how often the train step was compiled.
COUNTED = textwrap.dedent(
    """
    import runpy, jax.monitoring
    names = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **more: names.append(str(more.get("fun_name")))
        if event.endswith("backend_compile_duration") else None
    )
    try:
        runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
    finally:
        print("train step compilations:", sum("train_step" in name for name in names))
    """
)
# The power goes during step 5, when the checkpoint of step 3 is complete.
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
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(stub), str(ROOT)]),
        # Most of the time goes into compiling, and nothing here needs to be fast.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
    }


@pytest.fixture(scope="module")
def run(environment, tmp_path_factory):
    """Runs `python PROGRAM` with the flags of a run in `workdir`."""
    directory = tmp_path_factory.mktemp("real")
    write_world(
        directory / "world", clips={"train": 16, "validation": 8}, processes=1, progress=False
    )

    def command(program, workdir):
        flags = [
            "--config=tests/experiments/tiny.py",
            f"--config.data.path={directory / 'world'}",
            f"--workdir={workdir}",
        ]
        return subprocess.run(
            [sys.executable, *program, *flags],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return command


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The directory and the output of a run that nobody stops."""
    workdir = tmp_path_factory.mktemp("whole")
    done = run(["-c", COUNTED], workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.fixture(scope="module")
def resumed(run, tmp_path_factory):
    """The directory of a run that was killed and went on."""
    workdir = tmp_path_factory.mktemp("killed")
    killed = run(["-c", DYING, str(workdir)], workdir)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "step 4/8" in killed.stdout and "step 6/8" not in killed.stdout
    done = run(["-m", "experiments.train"], workdir)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 3" in done.stdout
    return workdir


def final(workdir):
    """Every array of the last checkpoint, by path."""
    state = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / "8" / "state")
    return dict(jax.tree_util.tree_leaves_with_path(state))


def test_the_train_step_is_compiled_once(whole):
    assert "train step compilations: 1\n" in whole[1]


def test_killed_and_resumed_ends_bit_for_bit_where_the_whole_run_ends(whole, resumed):
    first, second = final(whole[0]), final(resumed)
    assert first.keys() == second.keys() and len(first) > 60
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path], err_msg=str(path))
    one, two = (
        [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        for workdir in (whole[0], resumed)
    )
    assert [line["step"] for line in two] == list(range(1, 9))
    assert [line["loss"] for line in one] == [line["loss"] for line in two]


def test_its_checkpoint_is_evaluated(run, resumed):
    done = run(["-m", "experiments.evaluate"], resumed)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((resumed / "evaluation.json").read_text())
    assert numbers["checkpoint_step"] == 8
    assert 0 <= numbers["retrieval"]["text_to_video"]["recall_at_1"]["value"] <= 1
    assert (resumed / "report.html").stat().st_size > 1000


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
    monkeypatch.setattr(train.hosts, "count", lambda: processes)
    monkeypatch.setattr(train.meshes, "set_cpu_devices", seen.append)
    train.setup(config)
    assert seen == ([] if shown is None else [shown])


def test_a_warning_is_said_once_whoever_else_listens(monkeypatch, capsys):
    log, root = logging.getLogger("jepa"), logging.getLogger()
    monkeypatch.setattr(root, "handlers", [logging.StreamHandler(sys.stderr)])
    monkeypatch.setattr(log, "handlers", [])
    train.setup(train.configs.resolve(tiny.get_config()))
    log.warning("of this library")
    logging.getLogger("another").warning("of another")
    assert capsys.readouterr().err == "WARNING: of this library\nof another\n"


@pytest.mark.parametrize("devices", [1, 2])
def test_the_compilation_cache_is_not_used_for_several_cpu_devices(tmp_path, caplog, devices):
    mesh = train.meshes.make_mesh({"data": devices}, jax.devices()[:devices])
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        with caplog.at_level("WARNING", logger="jepa"):
            train.distrust_cache(mesh)
        assert jax.config.jax_enable_compilation_cache == (devices == 1)
        assert ("is not used" in caplog.text) == (devices == 2)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", before)
        train.compilation_cache.reset_cache()


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
