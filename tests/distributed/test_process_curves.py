"""Loss curves and records of the real command, on one process and on several."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jepa.data.world.write import write_world
from jepa.training import record_log

sys.path.insert(0, str(Path(__file__).parent))
import launch  # noqa: E402
from tiny_configs import NAMES  # noqa: E402

CONFIGS = "tests/distributed/tiny_configs.py"
DEVICES = 8  # of all processes
COUNTS = (1, 2, 4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "world"
    clips = {"train": 24, "validation": 13}
    write_world(directory, clips=clips, processes=1, progress=False)
    return directory


def train(name, world, workdir, count, *more, devices=DEVICES):
    workdir.mkdir(parents=True, exist_ok=True)
    return launch.run(
        workdir,
        ["-m", "experiments.train", f"--config={CONFIGS}:{name}", f"--workdir={workdir / 'run'}",
         f"--config.data.path={world}", f"--devices={devices // count}",
         "--config.train.log_records=True", *more],
        count,
    )  # fmt: skip


def curve(workdir, name="loss"):
    """Returns the numbers of a name, step by step; each step must be there once."""
    rows = [json.loads(line) for line in (workdir / "run" / "metrics.jsonl").read_text().split("\n")
            if line]  # fmt: skip
    steps = [row["step"] for row in rows if name in row]
    assert steps == list(range(1, len(steps) + 1))
    return np.array([row[name] for row in rows if name in row])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_curves_are_alike_on_one_two_and_four_processes(world, tmp_path, name):
    mesh = ("--config.mesh.data=4", "--config.mesh.fsdp=2")
    for count in COUNTS:
        train(name, world, tmp_path / f"{count}", count, "--config.dtype=float64", *mesh)
    wanted = curve(tmp_path / "1")
    assert len(wanted) == 50 and np.ptp(wanted) > 1e-3 * abs(wanted[0])
    for count in COUNTS[1:]:
        for quantity in ("loss", "gradient_norm"):
            one, several = (curve(tmp_path / f"{n}", quantity) for n in (1, count))
            np.testing.assert_allclose(several, one, rtol=1e-9, err_msg=f"{count} processes")
        # The same records in the same places: each process read its slice, and all is there.
        one, several = (record_log.read(tmp_path / f"{n}" / "run") for n in (1, count))
        assert several == one
        logs = sorted((tmp_path / f"{count}" / "run" / "records").iterdir())
        assert len(logs) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_first_steps_in_float32_are_alike(world, tmp_path, name):
    for count in COUNTS:
        train(name, world, tmp_path / f"{count}", count, "--config.train.steps=1")
    first = [curve(tmp_path / f"{count}")[0] for count in COUNTS]
    np.testing.assert_allclose(first, first[0], rtol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_on_other_numbers_of_processes_and_devices(world, tmp_path):
    """Saved by one layout, gone on with by another, against never stopping: float64."""
    more = ("--config.dtype=float64", "--config.mesh.fsdp=-1", "--config.mesh.data=1")
    layouts = ((1, 8), (1, 4), (2, 2), (1, 1), (2, 8))  # processes, devices of them all
    for last, (count, devices) in zip(range(4, 24, 4), layouts, strict=True):
        given = (*more, f"--config.train.steps={last}")
        started = train("lejepa", world, tmp_path / "elastic", count, *given, devices=devices)
        assert last == 4 or f"resuming at step {last - 4}" in started.log()
    train("lejepa", world, tmp_path / "whole", 1, *given, devices=1)
    np.testing.assert_allclose(curve(tmp_path / "elastic"), curve(tmp_path / "whole"), rtol=1e-9)
    elastic, whole = (record_log.read(tmp_path / n / "run") for n in ("elastic", "whole"))
    assert elastic == whole
