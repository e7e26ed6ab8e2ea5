"""How long compiling the train step takes, by depth and by devices: it should grow with neither.

V-JEPA 2's step on clips of 64 pixels, for TPUs that are not there. Depth: an encoder of so many
blocks, and of twice as many, on a few chips. Devices: the same network on a few chips and on a pod,
each chip with as many clips. What is timed is tracing, lowering and compiling, as processor time,
in a process that has compiled something before.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from configs.v_jepa_2 import world
from experiments import precompile_program
from experiments.benchmarks import child
from experiments.benchmarks.measurement import Measurement, progress
from jepa.errors import UserError
from jepa.parallel import chips, topology
from jepa.parallel.mesh import replicated
from jepa.training.step import lower

DEPTH_BAR, DEVICES_BAR = 1.2, 2.0
_SIZES = (24, 48, "v5e:2x4", "v5e:16x16")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this suite's flags."""
    group = parser.add_argument_group("compile")
    group.add_argument("--compile_depths", type=int, nargs=2, default=_SIZES[:2], metavar="N")
    group.add_argument("--compile_chips", nargs=2, default=_SIZES[2:], metavar="TOPOLOGY")
    group.add_argument("--compile_width", type=int, default=384, help="of the encoder")
    group.add_argument("--compile_clips", type=int, default=2, help="of each chip")


def check(args: argparse.Namespace) -> None:
    """Checks the flags.

    Raises:
        UserError: A topology that is none, a size out of range, or no libtpu.
    """
    for name in args.compile_chips:
        if not chips.topology(name).tpu:
            raise UserError(f"--compile_chips={name}: only programs for TPUs are compiled")
    if args.compile_width < 64 or args.compile_width % 64:
        raise UserError(
            f"--compile_width={args.compile_width}: make it a multiple of 64, the width of a head"
        )
    if args.compile_clips < 1:
        raise UserError(f"--compile_clips is {args.compile_clips}; it must be at least 1")
    if min(args.compile_depths) < 1:
        raise UserError(f"--compile_depths={args.compile_depths}: a network has a block or more")
    if not topology.has_libtpu():
        raise UserError("--suite=compile needs libtpu: pip install -r requirements-tpu-compile.txt")


def suite(args: argparse.Namespace) -> list[Measurement]:
    """Compiles each program `--rounds` times, in turn."""
    found = child.call(
        f"{__name__}:measure",
        {
            "depths": list(args.compile_depths),
            "where": list(args.compile_chips),
            "width": args.compile_width,
            "clips": args.compile_clips,
            "rounds": args.rounds,
        },
    )
    return [Measurement(**item) for item in found]


def measure(
    *, depths: list[int], where: list[str], width: int, clips: int, rounds: int
) -> list[dict[str, Any]]:
    """Seconds of each program, and their ratios.

    Args:
        depths: Blocks of the encoder, in one program and the other.
        where: Chips of one program and of the other.
        width: Of the encoder.
        clips: Of each chip.
        rounds: Compilations of each program, of which the median.
    """
    few, many = where
    seconds: dict[tuple[int, str], list[float]] = {}
    wanted = [(depths[0], few), (depths[1], few), (depths[0], many)]
    mesh = topology.tpu_mesh(few, {"data": -1})
    whole = jax.ShapeDtypeStruct((), "float32", sharding=replicated(mesh))
    topology.compile_for_tpu(lambda x: x + 1, whole)  # what the first compilation takes once
    for number in range(rounds):
        for key in wanted[:: -1 if number % 2 else 1]:
            run = _program(_config(width, key[0], chips.topology(key[1]).chips, clips), key[1])
            begin = time.process_time()
            run()
            seconds.setdefault(key, []).append(time.process_time() - begin)
            progress(f"{key[0]} blocks, {key[1]}: {seconds[key][-1]:.1f} s of processor time")
    median = {key: statistics.median(values) for key, values in seconds.items()}
    bars = tuple(depths) == _SIZES[:2] and tuple(where) == _SIZES[2:]
    note = f"V-JEPA 2, width {width}, 64 pixels, {clips} clip(s) a chip; processor time, "
    note += f"median of {rounds}"
    made = [
        Measurement(f"train step of {depth} blocks, {name}: compiling", value, "s", note, name)
        for (depth, name), value in median.items()
    ]
    base = median[wanted[0]]
    for key, what, bar in (
        (wanted[1], f"compiling {depths[1]} blocks over {depths[0]}", DEPTH_BAR),
        (wanted[2], f"compiling for {many} over {few}", DEVICES_BAR),
    ):
        ratio = Measurement(what, median[key] / base, "", note)
        made.append(ratio.held_to(at_most=bar) if bars else ratio)
    return [dataclasses.asdict(item) for item in made]


def _config(width: int, depth: int, devices: int, clips: int) -> ConfigDict:
    config = world.get_config()
    config.dtype = "bfloat16"
    config.model.encoder.update(width=width, depth=depth, heads=width // 64, remat="full")
    config.optimizer.name = "adamw"
    config.train.global_batch = devices * clips
    config.mesh.update(data=-1, fsdp=4)
    return config


def _program(config: ConfigDict, where: str) -> Callable[[], object]:
    """Prepares a step; the result traces, lowers and compiles it."""
    named = chips.topology(where)
    job = precompile_program.make_job("compile", config, named, None)
    (prepared,) = job.phases
    spec = precompile_program.Outline().step_spec(prepared.phase, prepared.method)
    state = prepared.initializer.shapes
    return lambda: lower(prepared.step, job.mesh, state, spec).compile()
