"""Write a dataset: the demo's world (the default), or one of your own videos.

    python -m experiments.prepare_data
    python -m experiments.prepare_data --output data/mine --manifest clips.jsonl
    python -m experiments.prepare_data --output data/mine --manifest train=a.csv validation=b.csv
    python -m experiments.prepare_data --output data/mine --folder ~/videos --transcode-size 256
    python -m experiments.prepare_data --output data/mine --webdataset 'tars/*.tar' --split train

Millions of videos are prepared by Apache Beam on many machines, whose options follow after `--`
(BUILD.md):

    python -m experiments.prepare_data --output gs://bucket/mine --manifest gs://bucket/all.jsonl
        --runner DataflowRunner -- --project=... --region=... --temp_location=gs://bucket/tmp

Nothing is to be prepared for IDX files, folders of classes and TFDS sets, which are read in place.
A stopped run goes on where it was; a finished one is left alone. Columns of a manifest and the
layout of tar files: docs/data.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from experiments import cli
from jepa.data import build, plan
from jepa.data.dataset import Dataset
from jepa.data.storage import is_address
from jepa.data.world import DEMO_CLIPS, write_world
from jepa.data.writer import REJECTS_FILE
from jepa.errors import UserError

WORLD_OUTPUT = "data/world"
_REJECTS_SHOWN = 5


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = cli.ArgumentParser(
        prog="python -m experiments.prepare_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--output", metavar="DIR", help=f"where the dataset goes (the world: {WORLD_OUTPUT})"
    )
    result.add_argument(
        "--processes", type=int, help=f"worker processes (default: {_cores()}, the cores)"
    )
    world = result.add_argument_group("the world of coloured shapes (without a source of videos)")
    world.add_argument(
        "--world-clips",
        nargs="+",
        metavar="SPLIT=N",
        help="its splits and their numbers of clips (default: "
        + " ".join(f"{split}={count}" for split, count in DEMO_CLIPS.items())
        + ")",
    )
    world.add_argument("--seed", type=int, help="decides every clip (default: 0)")
    own = result.add_argument_group("your own videos (one source for each split)")
    for kind, what in (
        ("manifest", "JSONL or CSV, a clip a line; its paths are relative to it"),
        ("folder", "every video below it; captions in NAME.txt beside NAME.mp4"),
        ("webdataset", "glob of tar files (quote it)"),
    ):
        own.add_argument(f"--{kind}", nargs="+", default=[], metavar="[SPLIT=]PATH", help=what)
    own.add_argument(
        "--split", default="train", help="of sources without SPLIT= (default: %(default)s)"
    )
    own.add_argument("--name", default="", help="the dataset's name (default: that of DIR)")
    own.add_argument(
        "--folder-label", metavar="LABEL", help="make the first sub-folder the value of a label"
    )
    own.add_argument(
        "--transcode-size",
        type=int,
        metavar="N",
        help="re-encode to H.264 with a short side of N pixels, cut to [start, end) "
        "(default: keep the encoded bytes)",
    )
    own.add_argument(
        "--caption-query",
        nargs="+",
        metavar="TEXT",
        default=list(plan.CAPTION_QUERIES),
        help=f"queries that ask for a caption (default: {plan.CAPTION_QUERIES[0]!r})",
    )
    own.add_argument(
        "--records-per-shard",
        type=int,
        default=plan.RECORDS_PER_SHARD,
        help="clips in a shard (default: %(default)s; a tar becomes one shard)",
    )
    own.add_argument(
        "--max-rejects",
        type=float,
        default=0.5,
        metavar="FRACTION",
        help="stop when more than this are rejected (default: %(default)s)",
    )
    own.add_argument(
        "--runner",
        help="let Apache Beam write own videos on many machines: DirectRunner, DataflowRunner, "
        "FlinkRunner, SparkRunner; the runner's options follow after -- (BUILD.md)",
    )
    return result


def main(argv: list[str] | None = None) -> None:
    """Write the dataset that the command line asks for, and say what is in it."""
    cli.interrupt_on_terminate()
    given, flags = _split(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(given)
    _check_runner(options, flags)
    if options.processes is not None and options.processes < 1:
        raise UserError(f"--processes is {options.processes}; give at least 1")
    sources = _sources(options)
    if sources and options.runner:
        _write_with_beam(options, sources, flags)
        return
    if sources:
        output = _write_own(options, sources)
    else:
        output = _write_world(options)
    _report(output)


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Our arguments and those of Beam's runner, which follow after `--`."""
    end = argv.index("--") if "--" in argv else len(argv)
    return argv[:end], argv[end + 1 :]


def _check_runner(options: argparse.Namespace, flags: list[str]) -> None:
    if flags and not options.runner:
        raise UserError(f"{flags[0]} is for Beam; name a --runner, or leave it out")
    if options.runner and options.processes is not None:
        raise UserError("--processes is for this machine; with --runner give Beam's own options")


def _sources(options: argparse.Namespace) -> list[plan.Source]:
    sources = []
    for kind in plan.KINDS:
        for argument in getattr(options, kind):
            split, given, location = argument.partition("=")
            # A path may hold "=" too.
            if not given or not split.isidentifier() or os.path.exists(argument):
                split, location = options.split, argument
            label = options.folder_label if kind == "folder" else None
            sources.append(plan.Source(split, kind, os.path.expanduser(location), label))
    return sources


def _write_own(options: argparse.Namespace, sources: list[plan.Source]) -> str:
    _check_own(options)
    for place in (options.output, *(source.location for source in sources)):
        if is_address(place):
            raise UserError(f"{place} is an address; name a path, or a --runner, which reads both")
    build.write_dataset(
        options.output,
        sources,
        name=options.name,
        records_per_shard=options.records_per_shard,
        transcode_size=options.transcode_size,
        caption_queries=options.caption_query,
        max_rejects=options.max_rejects,
        processes=options.processes or _cores(),
    )
    return options.output


def _write_with_beam(
    options: argparse.Namespace, sources: list[plan.Source], flags: list[str]
) -> None:
    _check_own(options)
    from jepa.data import beam  # only here: it needs Apache Beam

    counters = beam.write_dataset(
        options.output,
        sources,
        plan.Options(
            options.records_per_shard,
            options.transcode_size,
            options.caption_query,
            options.max_rejects,
        ),
        name=options.name,
        runner=options.runner,
        flags=flags,
    )
    print("written now: " + (", ".join(f"{n} {k}" for k, n in counters.items()) or "nothing"))
    if is_address(options.output):
        print(f"{options.output}: complete; train from a mount or a copy of it (BUILD.md)")
    else:
        _report(options.output)


def _check_own(options: argparse.Namespace) -> None:
    if options.world_clips or options.seed is not None:
        raise UserError("--world-clips and --seed make the world; leave them out for own videos")
    if not options.output:
        raise UserError("--output is missing; name the directory where the dataset goes")


def _write_world(options: argparse.Namespace) -> str:
    for name in ("transcode_size", "folder_label", "name", "runner"):
        if getattr(options, name):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is for own videos; name a --manifest, --folder or tar files")
    output = options.output or WORLD_OUTPUT
    clips = _clips(options.world_clips) if options.world_clips else DEMO_CLIPS
    write_world(
        output, seed=options.seed or 0, clips=clips, processes=options.processes or _cores()
    )
    return output


def _clips(arguments: list[str]) -> dict[str, int]:
    clips = {}
    for argument in arguments:
        split, _, count = argument.partition("=")
        if not count.isdecimal():
            raise UserError(f"--world-clips {argument}: give SPLIT=N, e.g. train=12000")
        clips[split] = int(count)
    return clips


def _report(output: str) -> None:
    dataset = Dataset.open(output)
    counts = ", ".join(f"{name} {len(split)}" for name, split in dataset.splits.items())
    print(f"{dataset.directory}: {counts} clips")
    path = dataset.directory / REJECTS_FILE
    if path.exists():
        rejects = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        print(f"{len(rejects)} rejected, listed in {path}:", file=sys.stderr)
        for reject in rejects[:_REJECTS_SHOWN]:
            print(f"  {reject['name']}: {reject['reason']}", file=sys.stderr)
        if len(rejects) > _REJECTS_SHOWN:
            print(f"  and {len(rejects) - _REJECTS_SHOWN} more", file=sys.stderr)


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    cli.run(main)
