"""The suite `loader`: from ArrayRecord to batches, against decoding alone, and against masks."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np

from experiments.benchmarks import mask_share
from experiments.benchmarks.measurement import Measurement
from jepa.data import decode
from jepa.data.clips import View
from jepa.data.config import DataConfig
from jepa.data.dataset import Dataset
from jepa.data.loader import make_train_loader
from jepa.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this suite's flags."""
    group = parser.add_argument_group("loader")
    group.add_argument("--data", help="dataset directory; a small world is written without it")
    group.add_argument("--split", default="train")
    group.add_argument("--processes", type=int, default=1)
    group.add_argument("--clips", type=int, default=1024, help="clips a round")
    group.add_argument("--batch", type=int, default=64)
    group.add_argument("--frames", type=int, default=8)
    group.add_argument("--size", type=int, default=64)
    mask_share.add_flags(parser)


def check(args: argparse.Namespace) -> None:
    """Checks the flags.

    Raises:
        UserError: One that is out of range.
    """
    for name in ("processes", "clips", "batch", "frames", "size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    mask_share.check(args)


def suite(args: argparse.Namespace) -> list[Measurement]:
    """Clips a second of the loader, and of bare PyAV on the same clips and frames.

    Bare PyAV has the encoded files in memory, decodes each on one thread up to the last wanted
    frame and converts the wanted ones to RGB arrays; no sampling, text, records or batches. Rounds
    of both alternate, so that a change of the machine's mood meets both. Behind that, what drawing
    masks adds to the loader's time; see `mask_share`.
    """
    with _data(args) as directory:
        config = _loader_config(args, directory)
        kinds = {
            "loader, rgb": config,
            "loader, yuv420": dataclasses.replace(config, pixels="yuv420"),
            "loader, rgb, cached": dataclasses.replace(config, cache="memory", workers=0),
            "loader, yuv420, cached": dataclasses.replace(
                config, cache="memory", workers=0, pixels="yuv420"
            ),
        }
        rates: dict[str, list[float]] = {}
        with _Bare(config, args.processes) as bare:
            for _ in range(args.rounds):
                rates.setdefault("bare PyAV, rgb", []).append(bare.rate(args.clips))
                for name, kind in kinds.items():
                    rates.setdefault(name, []).append(_loader_rate(kind, args))
        masks = mask_share.measure(args, directory)
    note = f"{args.frames} frames of {args.size} px, {args.processes} process(es)"
    found = [
        Measurement(name, statistics.median(values), "clips/s", note)
        for name, values in rates.items()
    ]
    bare_rates = rates["bare PyAV, rgb"]
    for name in kinds:
        ratio = statistics.median(
            rate / base for rate, base in zip(rates[name], bare_rates, strict=True)
        )
        found.append(Measurement(f"{name} / bare PyAV, rgb", ratio, "x", "median of rounds"))
    return found + masks


@contextlib.contextmanager
def _data(args: argparse.Namespace) -> Iterator[Path]:
    """The dataset that was named, or a small world in a temporary directory."""
    if args.data:
        yield Path(args.data)
        return
    from jepa.data.world import write_world

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "world"
        write_world(path, seed=0, clips={args.split: 512}, processes=os.cpu_count() or 1)
        yield path


def _loader_config(args: argparse.Namespace, directory: Path) -> DataConfig:
    return DataConfig.parse(
        {
            "path": str(directory),
            "split": args.split,
            "frames": args.frames,
            "size": args.size,
            "sampling": "uniform",
            "tokenizer": "dataset",
            "threads": 1,
            "workers": args.processes if args.processes > 1 else 0,
        }
    )


def _loader_rate(config: DataConfig, args: argparse.Namespace) -> float:
    """Clips a second, from the first batch on (processes have started by then)."""
    # A cached clip costs microseconds: more of them, for a time that can be measured.
    clips = args.clips * (10 if config.cache != "none" else 1)
    steps = max(2, clips // args.batch)
    with make_train_loader(config, global_batch=args.batch, seed=0) as loader:
        next(loader)
        start = time.perf_counter()
        for _ in range(steps):
            next(loader)
        return steps * args.batch / (time.perf_counter() - start)


def _bare_clip(work: tuple[bytes, Sequence[int]]) -> int:
    """Decode one clip as one would without this library; returns the number of frames kept."""
    data, wanted = work
    kept = []
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                kept.append(frame.to_ndarray(format="rgb24"))
            if index == wanted[-1]:
                break
    return len(np.stack(kept))


class _Bare:
    """Decoding alone, in as many processes as asked for."""

    def __init__(self, config: DataConfig, processes: int):
        split = Dataset.open(config.path).split(config.split)
        view = View(config, seed=0)
        self._work = []
        for number in range(len(split)):
            record = split.record(number)
            if (record.width, record.height) != (config.size, config.size):
                raise UserError(
                    f"record {record.key!r} is {record.width}x{record.height}, but the comparison "
                    f"needs clips of the size that is asked for; set --size={record.height}"
                )
            count, rate, _ = decode.grid(record)
            indices = view.indices([count], [rate], np.array([number]))[0].tolist()
            self._work.append((record.video, indices))
        context = multiprocessing.get_context("spawn")
        self._pool = context.Pool(processes) if processes > 1 else None
        if self._pool is not None:
            self._pool.map(_bare_clip, self._work[:processes], chunksize=1)

    def __enter__(self) -> _Bare:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.terminate()

    def rate(self, clips: int) -> float:
        """Clips a second over `clips` clips."""
        work = [self._work[i % len(self._work)] for i in range(clips)]
        start = time.perf_counter()
        if self._pool is None:
            for item in work:
                _bare_clip(item)
        else:
            for _ in self._pool.imap_unordered(_bare_clip, work, chunksize=16):
                pass
        return clips / (time.perf_counter() - start)
