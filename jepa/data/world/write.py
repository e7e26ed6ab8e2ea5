"""Write the world as a dataset: shards of encoded clips, in parallel, resumable."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from jepa.data import schema
from jepa.data.jobs import Progress, run_jobs
from jepa.data.world import encode, words
from jepa.data.world.generate import Clip, scene
from jepa.data.world.physics import FPS
from jepa.data.world.render import FRAME
from jepa.data.world.splits import GROUPED, SPLITS, block_size
from jepa.data.writer import DatasetWriter, write_shard
from jepa.errors import UserError

#: Changes whenever the same seed would give other records; a directory of another version is
#: refused. 2 added the label "first"; its pictures, captions and questions are those of 1.
VERSION = 2
CLIPS_PER_SHARD = 500

#: What the demo trains and is measured on.
DEMO_CLIPS = {"train": 12000, "validation": 600, "novel": 300, "hard": 400, "surprise": 200}

_NOTES = (
    "Simulated coloured shapes, 64x64 px, 16 frames at 8 per second. Classes and pixel sizes: "
    "jepa/data/world/words.py. Splits: jepa/data/world/splits.py."
)

_Task = tuple[str, int, str, int, int, int]


def record(clip: Clip) -> schema.Record:
    """The clip as it is stored."""
    return schema.Record(
        key=clip.key,
        video=encode.encode(clip.frames),
        width=FRAME,
        height=FRAME,
        frames=len(clip.frames),
        fps=float(FPS),
        codec=encode.CODEC,
        colour_range=encode.COLOUR_RANGE,
        colour_space=encode.COLOUR_SPACE,
        captions=tuple(
            schema.Caption(name, text, level, words.LEVEL_QUERIES.get(level, ""))
            for name, text, level in clip.captions
        ),
        questions=tuple(schema.Question(*question) for question in clip.questions),
        events=tuple(
            schema.Event(event.time, event.kind, event.subjects)
            for event in sorted(clip.events, key=lambda event: event.time)
        ),
        labels=clip.labels,
        group=clip.group,
        actions=clip.actions,
        states=clip.states,
        source=f"world version {VERSION}",
    )


def write_world(
    directory: str | Path,
    *,
    seed: int = 0,
    clips: Mapping[str, int] = DEMO_CLIPS,
    processes: int = 1,
    progress: bool = True,
) -> None:
    """Write the dataset, or what is missing of it.

    Args:
        directory: Where it goes.
        seed: Decides every clip; the same seed gives the same bytes with any number of processes.
        clips: Number of clips of each split.
        processes: Worker processes; 1 works in this one.
        progress: Show a bar on a terminal, and lines elsewhere.

    Raises:
        UserError: an unknown split, a count that is not positive or breaks a group, or a directory
            that cannot be written or holds another dataset.
    """
    clips = dict(clips)
    _check(seed, clips, processes)
    writer = DatasetWriter(
        directory, name="world", settings={"seed": seed, "clips": clips, "world": VERSION}
    )
    shards = {split: -(-count // CLIPS_PER_SHARD) for split, count in clips.items()}
    tasks: list[_Task] = [
        (str(directory), seed, split, clips[split], index, total)
        for split, total in shards.items()
        for index in writer.missing(split, total)
    ]
    total = sum(len(_span(*task[3:])) for task in tasks)
    with contextlib.ExitStack() as stack:
        shown = (
            stack.enter_context(Progress("world", total, "clip")) if progress and tasks else None
        )
        # Closed at once when interrupted, so that no worker outlives the run.
        results = stack.enter_context(contextlib.closing(run_jobs(_write, tasks, processes)))
        for written in results:
            if shown is not None:
                shown.add(written)
    writer.finish(
        shards,
        attributes=words.ATTRIBUTES,
        caption_queries=words.CAPTION_QUERIES,
        licence="CC0-1.0",
        notes=_NOTES,
    )


def _check(seed: int, clips: dict[str, int], processes: int) -> None:
    if seed < 0:
        raise UserError(f"seed is {seed}; give a whole number of at least 0")
    if processes < 1:
        raise UserError(f"processes is {processes}; give at least 1")
    if not clips:
        raise UserError("clips names no split; give the number of clips of at least one")
    for split, count in clips.items():
        if split not in SPLITS:
            raise UserError(f"the world has no split {split!r}; choose from {', '.join(SPLITS)}")
        if count < 1:
            raise UserError(f"split {split!r} has {count} clips; give at least 1 or leave it out")
        if split in GROUPED and count % block_size(split):
            raise UserError(
                f"split {split!r} has {count} clips; it is made of whole groups, so give a "
                f"multiple of {block_size(split)}"
            )


def _span(count: int, index: int, total: int) -> range:
    """Indices of one of `total` shards of `count` clips."""
    return range(count * index // total, count * (index + 1) // total)


def _write(task: _Task) -> int:
    directory, seed, split, count, index, total = task
    span = _span(count, index, total)
    write_shard(directory, split, index, total, (record(scene(seed, split, i)) for i in span))
    return len(span)
