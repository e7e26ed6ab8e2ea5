"""How long a checkpoint holds up the steps of a run: the suite `saving`.

The steps are those of a config on a small world of its own, with the batches, caches and compiled
program of a real run; after every tenth one there is a save, far enough apart that the one before
is written. What counts is the time until `Checkpoints.save` returns. That the disk is written
beside the steps slows them too, so their time meanwhile is told as well.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks import child
from experiments.benchmarks.measurement import Measurement, progress
from jepa.errors import UserError

_CONFIG = "configs/vl_jepa/quickstart.py"
_CLIPS = 128
_GAP = 10  # steps from one save to the next
_EVERY = 50  # steps that the share of a save is taken of
_WARM = 3  # steps that are not counted


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this suite's flags."""
    group = parser.add_argument_group("saving")
    group.add_argument("--saving_config", default=_CONFIG, help="config file without phases")
    group.add_argument("--saving_devices", type=int, default=2, help="CPU devices, along data")
    group.add_argument("--saves", type=int, default=4, help="checkpoints to write")


def check(args: argparse.Namespace) -> None:
    """Checks the flags.

    Raises:
        UserError: A number below 1 (2 saves), or no such file.
    """
    if args.saves < 2 or args.saving_devices < 1:
        raise UserError("--saves must be at least 2, and --saving_devices at least 1")
    if not Path(args.saving_config).is_file():
        raise UserError(f"--saving_config={args.saving_config}: there is no such file")


def suite(args: argparse.Namespace) -> list[Measurement]:
    """The share of the time that the first save and later ones take, at one save in 50 steps."""
    found = child.call(
        "experiments.benchmarks.saving:measure",
        {
            "path": os.fspath(Path(args.saving_config).absolute()),
            "devices": args.saving_devices,
            "saves": args.saves,
        },
    )
    step, blocked = statistics.median(found["steps"]), found["blocked"]
    later = statistics.median(blocked[1:])
    shares = [100 * seconds / (_EVERY * step) for seconds in (blocked[0], later)]
    beside = statistics.median(found["beside"]) if found["beside"] else step
    size, devices = found["bytes"] / 2**20, args.saving_devices
    note = f"{Path(args.saving_config).stem}, {devices} CPU devices, {size:.0f} MiB a checkpoint"
    of = f"of the time, at one save every {_EVERY} steps"
    return [
        Measurement("step", step, "s", note, "cpu"),
        Measurement("step while a checkpoint is written", beside, "s", "", "cpu"),
        Measurement("the first save holds up the steps for", blocked[0], "s", "", "cpu"),
        Measurement("a later save", later, "s", f"median of {len(blocked) - 1}", "cpu"),
        Measurement(f"the first save, {of}", shares[0], "%", "", "cpu").held_to(at_most=5),
        Measurement(f"a later save, {of}", shares[1], "%", "", "cpu").held_to(at_most=5),
    ]


def measure(path: str, devices: int, saves: int) -> dict[str, Any]:
    """Trains and saves, in a process of its own.

    Returns:
        `steps`: seconds of each step while nothing is written; `beside`: of those while a
        checkpoint is; `blocked`: seconds of each save; `bytes`: of a checkpoint.
    """
    from experiments import train
    from jepa.data.world.write import write_world
    from jepa.parallel import mesh as meshes
    from jepa.training import config as configs

    specification = importlib.util.spec_from_file_location("saving_config", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    config = configs.resolve(module.get_config())
    if config.phases:
        raise UserError(f"{path} has phases; give a config without them")
    config.mesh.update(data=devices, fsdp=1, tensor=1, context=1)
    with tempfile.TemporaryDirectory() as place:
        config.data.path = f"{place}/world"
        progress(f"writing {_CLIPS} clips")
        write_world(config.data.path, clips={"train": _CLIPS}, progress=False)
        train.setup(config)
        mesh = meshes.make_mesh(config.mesh)
        return _train(config, mesh, Path(place), saves)


@dataclasses.dataclass
class _Steps:
    """Seconds of steps, by whether a checkpoint was being written meanwhile."""

    alone: list[float] = dataclasses.field(default_factory=list)
    beside: list[float] = dataclasses.field(default_factory=list)


def _train(config: Any, mesh: Any, place: Path, saves: int) -> dict[str, Any]:
    import jax

    from experiments import train
    from jepa.data.prefetch import prefetch
    from jepa.parallel import mesh as meshes
    from jepa.training import workdir
    from jepa.training.checkpoints import Checkpoints
    from jepa.training.prepare import prepare
    from jepa.training.step import compile_step, global_spec

    parts = train.Parts(mesh, place)
    (made,) = prepare(config, parts, mesh)
    state = made.initializer.create()
    loader = parts.loader(made.phase, made.method, state.params, lambda: False)
    assert loader is not None
    with contextlib.closing(loader):
        progress("compiling the step")
        spec = global_spec(loader.element_spec)
        program = compile_step(made.step, mesh, made.initializer.shapes, spec)
        checkpoints = Checkpoints(place / "checkpoints", keep_last=2)
        steps, blocked = _Steps(), []
        with contextlib.closing(prefetch(loader, meshes.batch_sharding(mesh))) as stream:
            done = 0
            for number in range(saves + 1):
                for index in range(_GAP):
                    begin = time.perf_counter()
                    state, values = program(state, next(stream))
                    jax.block_until_ready(values)
                    done += 1
                    writing = number > 0 and checkpoints.busy()
                    if number > 0 or index >= _WARM:
                        (steps.beside if writing else steps.alone).append(
                            time.perf_counter() - begin
                        )
                if number == saves:
                    break
                checkpoints.wait()
                begin = time.perf_counter()
                checkpoints.save(done, state, stream.state(), workdir.plain(config))
                blocked.append(time.perf_counter() - begin)
                progress(f"save {number + 1} of {saves}: held up for {blocked[-1]:.2f} s")
        checkpoints.close()
    files = (place / "checkpoints" / str(done - _GAP)).rglob("*")
    size = sum(path.stat().st_size for path in files if path.is_file())
    return {"steps": steps.alone, "beside": steps.beside, "blocked": blocked, "bytes": size}
